"""The commands of `radit` as a page: `python tools/commands_page.py > docs/reference/commands.md`.

Made from the parsers, as `--help` is, but in tables that read well on GitHub and alike in every Python.
"""

import argparse
import sys
from collections.abc import Iterator

from radit_jax import cli

_HEAD = """\
# Commands

`radit COMMAND`, or `python -m radit_jax COMMAND`. `python -m radit_jax.MODULE` runs a command's module, as in
`python -m radit_jax.train`, which is `radit run`. Every command has these options:

| option | meaning |
|---|---|
| `-h`, `--help` | print what is below, and stop |
| `--quiet` | print errors only |
| `--log-file FILE` | append all that a command says, with the times, whatever the terminal shows |

An option that there is not is refused with exit code 2 and the nearest one ([exit codes](exit-codes.md)).

<!-- Written by `python tools/commands_page.py` from the parsers. Change those. -->
"""
_OF_ALL = ("help", "quiet", "log_file")  # names of what every command has


def page() -> str:
    """The whole page."""
    parts = [_HEAD]
    # The parser of each command is one of `radit`, with the name that people type.
    for command in cli.COMMANDS:
        parsers = choices(cli.parser(command.name))
        summary = f"{command.summary[0].upper()}{command.summary[1:]}."
        parts += [f"## {command.name}\n", f"{summary}\n", *section(parsers[command.name])]
    return "\n".join(parts)


def choices(p: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of a parser's own commands, by name."""
    for action in p._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def section(p: argparse.ArgumentParser) -> Iterator[str]:
    """How a command is called, its options in a table, and its own commands after it."""
    inner = choices(p)
    if inner:
        for own in inner.values():
            yield from section(own)
        return
    actions = [action for action in p._actions if action.dest not in _OF_ALL]
    actions.sort(key=lambda action: bool(action.option_strings))
    words = [word_of(action) for action in actions if is_in_usage(action)]
    yield f"```text\n{' '.join([p.prog, *words])}\n```\n"
    rows = [f"| {names_of(action)} | {help_of(action)} |" for action in actions]
    if rows:
        yield "\n".join(["| | |", "|---|---|", *rows, ""])


def is_in_usage(action: argparse.Action) -> bool:
    """Whether a command's first line shows it: what must be given, and what stands without a name."""
    return action.required or not action.option_strings


def word_of(action: argparse.Action) -> str:
    """An argument as the first line has it."""
    value = value_of(action)
    if action.option_strings:
        return f"{action.option_strings[0]} {value}"
    return f"[{value}]" if action.nargs == "?" else value


def names_of(action: argparse.Action) -> str:
    """An argument's names with its value, as in `--set SECTION.FIELD=VALUE`."""
    if not action.option_strings:
        return f"`{value_of(action)}`"
    takes_value = action.nargs != 0
    value = f" {value_of(action)}" if takes_value else ""
    return ", ".join(f"`{name}{value}`" for name in action.option_strings)


def value_of(action: argparse.Action) -> str:
    """The word that stands for an argument's value."""
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    name = action.metavar or action.dest.upper()
    return f"{name} …" if action.nargs == "+" else str(name)


def help_of(action: argparse.Action) -> str:
    """An argument's meaning as a cell."""
    return (action.help or "").replace("|", "\\|").replace("%%", "%").replace("<", "&lt;")


if __name__ == "__main__":
    sys.stdout.write(page())
