"""The command `radit`: `radit demo`, `radit run wiki_small`, `radit status`; `radit --help` lists all.

A command is a module with a function `parser()`. Its parser's default `run` is the function that takes the
parsed options, does the work, and returns an exit code or None. Only the module of the command that is asked
for is imported.
"""

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import radit_jax
from radit_jax.command_line import CommandParser, spelled
from radit_jax.commands.output import output_options, shown_as
from radit_jax.errors import EXIT_CODES, ExitCode, exit_command, run_command


class Command(NamedTuple):
    """A word after `radit`, and the module that it runs."""

    name: str
    module: str  # without radit_jax
    summary: str

    def parser(self) -> argparse.ArgumentParser:
        """The command line of the module."""
        module = importlib.import_module(f"radit_jax.{self.module}")
        return module.parser()


# In the order in which a newcomer needs them.
COMMANDS = (
    Command("demo", "commands.demo", "train and evaluate a small system whole, in minutes"),
    Command("init", "commands.init", "write an experiment on your own documents and checkpoints"),
    Command("run", "commands.run", "train and evaluate an experiment"),
    Command("status", "commands.status", "what is done, what would run and why, and sizes on disk"),
    Command("ask", "ask", "ask a trained system a question"),
    Command("report", "report.__main__", "write a run as one page to look at"),
    Command("serve", "serving.command", "answer on a page and in JSON, until Ctrl-C"),
    Command("export", "commands.export", "write the models and the index in one folder"),
    Command("push", "push", "publish the exported models on the Hugging Face hub"),
    Command("plan", "plan", "memory, time and disk on machines that you would rent"),
    Command("show", "show", "a dataset's examples as the model sees them"),
    Command("tasks", "commands.tasks", "the tasks to evaluate on and the datasets to train on"),
    Command("config", "commands.settings", "the settings: list them, show an experiment's, compare two"),
    Command("clean", "commands.clean", "delete outputs that the settings no longer name"),
    Command("doctor", "commands.doctor", "is this machine ready, and what to do where it is not"),
    Command("version", "commands.version", "versions of this package and of what it runs on"),
    Command("completion", "completion", "a script by which a shell completes `radit`"),
)
NAMES = [command.name for command in COMMANDS]


def console() -> None:
    """What the installed script `radit` runs."""
    exit_command(main)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; returns its exit code."""
    # 1) Which command: an option that stands first is one of `radit` itself.
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = words[0] if words else "--help"
    if not name.startswith("-") and name not in NAMES:
        return refuse(name)
    # 2) Its options, and its work. Only now is its module imported.
    options = parser(name).parse_args(words or ["--help"])

    def body() -> int:
        # What ends the work is a line of the log, too.
        with shown_as(options):
            return run_command(lambda: options.run(options))

    return run_command(body)  # a log that cannot be written is an error of its own


def refuse(name: str) -> int:
    """Say that there is no such command, and which one may have been meant."""
    # A wrong command line, as argparse would call it, but with the nearest name.
    close = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"`{spelled('--help')}` lists them."
    print(f"error: radit: expected a command, got {name!r}. {hint}", file=sys.stderr)
    return ExitCode.WRONG_COMMAND_LINE


def parser(name: str) -> argparse.ArgumentParser:
    """The command line of `radit`, in which only the command `name` has its options."""
    return _parser([name])


def whole_parser() -> argparse.ArgumentParser:
    """The command line of `radit` with the options of all commands, which takes a second to import."""
    return _parser(NAMES)


def _parser(with_options: Sequence[str]) -> argparse.ArgumentParser:
    # 1) What `radit --help` says above and below the commands.
    codes = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())
    p = CommandParser(
        "radit",
        description="RA-DIT: retrieval-augmented dual instruction tuning in JAX (arXiv 2310.01352).",
        epilog=f"exit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--version", action="version", version=f"radit_jax {radit_jax.__version__}")
    # 2) The commands. Those that are not asked for have a name and a line only.
    several = p.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        if command.name not in with_options:
            several.add_parser(command.name, help=command.summary, add_help=False)
            continue
        # The options of the module, then those that all commands have.
        own = command.parser()
        name = f"radit {command.name}"
        _rename(own, name)
        parents: Any = [own, output_options()]
        several.add_parser(
            command.name,
            help=command.summary,
            description=(own.description or "").replace(own.prog, name),
            epilog=(own.epilog or "").replace(own.prog, name),
            formatter_class=own.formatter_class,
            parents=parents,
            add_help=False,  # `own` has it
        )
    return p


def _rename(command: argparse.ArgumentParser, name: str) -> None:
    """Let the usage of a command's own commands begin with `radit`, not with `python -m`."""
    for action in command._actions:
        # `config` has list, show and diff.
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                inner.prog = inner.prog.replace(command.prog, name)


if __name__ == "__main__":
    exit_command(main)
