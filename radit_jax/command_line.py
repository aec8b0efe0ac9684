"""Command lines: options of several commands, errors that help, and commands as a person spells them."""

import argparse
import difflib
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from radit_jax.config.experiment_files import FOLDER, PACKAGE

TINY = FOLDER / "tiny.py"
_EXPERIMENT_HELP = "one of the package's own, as wiki_small, or a Python file (default: {})"


class CommandParser(argparse.ArgumentParser):
    """A parser that refuses what it does not know by itself, with its own usage and the nearest option."""

    _words: Sequence[str] = ()

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        """As argparse's own, but nothing may stay unknown: the parser above would show another usage."""
        self._words = sys.argv[1:] if args is None else list(args)
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown

    def error(self, message: str) -> NoReturn:
        """End the program with exit code 2, as argparse does; name the option that may have been meant."""
        known = list(self._option_string_actions)
        # A misspelt option may also show as one that is missing.
        for word in self._words:
            name = word.partition("=")[0]
            is_known = any(option.startswith(name) for option in known)
            if name.startswith("--") and not is_known:
                close = difflib.get_close_matches(name, known, n=1)
                message += f". Did you mean {close[0]}?" if close else ""
                break
        super().error(message)


def module_parser(module: str, doc: str | None, run: Callable[..., int | None]) -> CommandParser:
    """The parser of a module that is a command: `doc`, the module's, begins with what `run` does."""
    description = (doc or "").partition("\n")[0]
    p = CommandParser(f"python -m radit_jax.{module}", description=description)
    # What `radit` calls with the options, too.
    p.set_defaults(run=run)
    return p


def add_set_option(p: argparse.ArgumentParser) -> None:
    """`--set`, as often as there are settings to change; a list, empty by default."""
    p.add_argument(
        "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="change a setting"
    )


def add_experiment_option(p: argparse.ArgumentParser, default: str | None = str(TINY)) -> None:
    """`--experiment`; without a `default`, it is None where it is not given."""
    meant = "tiny" if default else "that of the workdir's last run"
    p.add_argument("--experiment", default=default, metavar="NAME", help=_EXPERIMENT_HELP.format(meant))


def add_experiment_name(p: argparse.ArgumentParser) -> None:
    """Let the experiment stand first, as in `radit status wiki_small`; `--experiment` means the same."""
    p.add_argument(
        "experiment",
        nargs="?",
        default=argparse.SUPPRESS,  # --experiment has the default
        metavar="EXPERIMENT",
        help="as for --experiment",
    )


def spelled(words: str) -> str:
    """A command to type, as this person calls commands: by `radit`, or by `python -m radit_jax`."""
    # `python -m` runs a file of the package; the installed script is elsewhere.
    is_module = pathlib.PurePath(sys.argv[0]).is_relative_to(PACKAGE)
    return f"python -m radit_jax {words}" if is_module else f"radit {words}"


def run_stage(stage: str) -> str:
    """The command that makes a stage's output, between quotes; the person knows of which experiment."""
    command = spelled(f"run EXPERIMENT --stage={stage}")
    return f"`{command}`"
