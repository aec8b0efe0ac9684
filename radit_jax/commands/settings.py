"""Look settings up and compare them: `radit config list lm_ft`.

radit config list [SECTION]                       # type, default, meaning, the paper's value
radit config show wiki_small --set seed=3
radit config diff experiments/tiny.py paper       # or two experiments or workdirs
"""

import argparse
import dataclasses
import difflib
import json
import os
import shlex
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from radit_jax import config
from radit_jax.command_line import (
    add_experiment_name,
    add_experiment_option,
    add_set_option,
    module_parser,
)
from radit_jax.config.descriptions import Section, Setting, Value, sections, settings_by_path, values
from radit_jax.config.overrides import as_text
from radit_jax.config.paper import PAPER, Paper
from radit_jax.errors import exit_command, parse_and_run

WIDTH = 80  # columns
ABSENT = "not there"

_PAGE = """\
# Settings

Every setting of an experiment: `--set PATH=VALUE` changes it for a run, an experiment's file for good.
The paper's values are of its largest model, LLaMA 65B; where there is none, the paper says nothing.

<!-- Written by `radit config list --markdown` from the comments in config/. Change those. -->
{% for section in sections %}

## {{ section.settings_class.__name__ }}

{{ section.settings_class.__doc__.partition("\n")[0] }}
{% if section.paths[0] %}

At `{{ section.paths | join("`, `") }}`.
{% endif %}

| setting | type | default | meaning | the paper |
|---|---|---|---|---|
{% for setting in section.settings %}
| {{ cells(section, setting) | join(" | ") }} |
{% endfor %}
{% endfor %}
"""


def parser() -> argparse.ArgumentParser:
    """The command line of `settings`."""
    lines = (__doc__ or "").splitlines()
    p = module_parser("commands.settings", __doc__, print_settings)
    p.epilog = "\n".join(lines[2:])
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = p.add_subparsers(dest="command", required=True, metavar="list, show or diff")
    # What there is to set.
    listing = commands.add_parser("list", help="every setting, or those of a section")
    listing.add_argument("section", nargs="?", metavar="SECTION", help="such as lm_ft or lm_ft.optimizer")
    listing.add_argument("--markdown", action="store_true", help="as docs/reference/settings.md has them")
    # What an experiment has set.
    showing = commands.add_parser("show", help="an experiment's values, as --set takes them")
    add_experiment_option(showing)
    add_experiment_name(showing)
    add_set_option(showing)
    comparing = commands.add_parser("diff", help="what is set otherwise")
    for side in ("a", "b"):
        comparing.add_argument(side, metavar=side.upper(), help="an experiment's file, a workdir, or: paper")
    for command in (listing, showing, comparing):
        command.add_argument("--json", action="store_true", help="for programs")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return parse_and_run(parser(), arguments)


def print_settings(options: argparse.Namespace) -> None:
    """Do what the command's own command says."""
    bodies = {"list": print_list, "show": print_values, "diff": print_differences}
    bodies[options.command](options)


# ---- list ----


def print_list(options: argparse.Namespace) -> None:
    """Print what there is to set, in one of three forms."""
    if options.json:
        rows: list[dict[str, Any]] = []
        for path, section in _asked(options.section):
            rows += _rows(path, section)
        _print_json(rows)
    elif options.markdown:
        sys.stdout.write(markdown())
    else:
        for path, section in _asked(options.section):
            _print_section(path, section)


def _asked(name: str | None) -> list[tuple[str, Section]]:
    """The sections that a name means, each with its path; all of them, at their first path, without one."""
    if name is None:
        return [(section.paths[0], section) for section in sections()]
    # The last part of a name may be a section or a setting.
    path, _, field = name.rpartition(".")
    asked = []
    known: list[str] = []
    for section in sections():
        known += filter(None, section.paths)
        if name in section.paths:
            asked.append((name, section._replace(paths=(name,))))
        if path not in section.paths:
            continue
        for setting in section.settings:
            if setting.name == field and not setting.classes:
                alone = section._replace(paths=(path,), settings=(setting,))
                asked.append((path, alone))
    if asked:
        return asked
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"There are {', '.join(_top_level())}."
    raise ValueError(f"list: expected a section of settings, got {name!r}. {hint}")


def _top_level() -> list[str]:
    """The names of the sections of an Experiment."""
    return [setting.name for setting in sections()[0].settings if setting.classes]


def _paper(section: Section, setting: Setting) -> dict[str, Paper]:
    """The paper's values of a setting, by path."""
    paths = [_inner(path, setting.name) for path in section.paths]
    return {path: PAPER[path] for path in paths if path in PAPER}


def _inner(path: str, name: str) -> str:
    return f"{path}.{name}".lstrip(".")


def _words(value: Any) -> str:
    """A value as `--set` takes it, where something is seen of it."""
    return as_text(value) or "''"


def _rows(path: str, section: Section) -> Iterator[dict[str, Any]]:
    """A section's settings for programs."""
    for setting in section.settings:
        row: dict[str, Any] = {
            "path": _inner(path, setting.name),
            "class": section.settings_class.__name__,
            "type": setting.kind,
            "allowed": setting.allowed,
            "meaning": setting.meaning,
        }
        if setting.has_default and not setting.classes:
            row["default"] = setting.default
        papers = {}
        for where, paper in _paper(section, setting).items():
            papers[where] = paper._asdict()
        row["paper"] = papers
        yield row


def _print_section(path: str, section: Section) -> None:
    """Print a section's settings in three lines or so each."""
    # 1) Its name, and where else such a section stands.
    name = path or "experiment"
    title = f"{name} ({section.settings_class.__name__})"
    others = [other for other in section.paths if other != path]
    if others:
        title += ", also at " + ", ".join(others)
    print(_wrapped(title))
    underlined = min(len(title), WIDTH)
    print("-" * underlined)

    # 2) Its settings.
    for setting in section.settings:
        inner = _inner(path, setting.name)
        # A section inside has settings of its own.
        if setting.classes:
            print(f"{inner}.*")
            _print_indented(f"{setting.meaning}: list {inner}")
            continue
        default = f"={_words(setting.default)}" if setting.has_default else ""
        print(inner + default)
        _print_indented(setting.meaning)
        _print_indented(_facts(path, section, setting))
    print()


def _facts(path: str, section: Section, setting: Setting) -> str:
    """The type, the range and the paper's values in a line."""
    facts = setting.kind_and_range
    for where, paper in _paper(section, setting).items():
        at = "" if where == _inner(path, setting.name) else f" at {where}"
        facts += f"; the paper{at}: {as_text(paper.value)} ({paper.place})"
    return facts


def _print_indented(text: str) -> None:
    print(_wrapped(text, "    ", "    "))


def _wrapped(text: str, first: str = "", later: str = "    ") -> str:
    """Text in lines of at most 80 columns; an address or a path stays whole."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=later,
        break_on_hyphens=False,
        break_long_words=False,
    )


def markdown() -> str:
    """All settings as a page, docs/reference/settings.md."""
    import jinja2  # which takes a while, and no other command needs it

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    template = environment.from_string(_PAGE)
    return template.render(sections=sections(), cells=_cells)


def _cells(section: Section, setting: Setting) -> list[str]:
    """A setting as the cells of a row of Markdown."""
    default = ""
    # A section's values are in its own table.
    if not setting.classes:
        default = f"`{_words(setting.default)}`" if setting.has_default else "must be given"
    papers = []
    for path, paper in _paper(section, setting).items():
        value = f"`{_words(paper.value)}`"
        if len(section.paths) > 1:
            value += f" at `{path}`"
        papers.append(f"{value} ({paper.place})")
    cells = [f"`{setting.name}`", setting.kind_and_range, default, setting.meaning, "; ".join(papers)]
    return [cell.replace("|", "\\|") for cell in cells]


# ---- show ----


def print_values(options: argparse.Namespace) -> None:
    """Print the values of an experiment, those that are not the default with a mark."""
    experiment = config.load_experiment(options.experiment)
    experiment = config.override_settings(experiment, options.set)
    config.check_experiment(experiment)
    if options.json:
        _print_json(settings_by_path(experiment))
        return
    for value in values(experiment):
        print(_line(experiment, value))


def _line(experiment: config.Experiment, value: Value) -> str:
    """A value as a word of a shell, which `--set` takes; a comment where it takes none."""
    assignment = f"{value.path}={as_text(value.value)}"
    try:
        is_settable = config.override_settings(experiment, [assignment]) == experiment
    except ValueError:
        is_settable = False
    word = shlex.quote(assignment) if is_settable else f"# {assignment}"
    if value.default is dataclasses.MISSING or value.default == value.value:
        return word
    return f"{word}  # default: {_words(value.default)}"


# ---- diff ----


def print_differences(options: argparse.Namespace) -> None:
    """Print the settings in which two sides differ, a line each."""
    a, b = _side(options.a), _side(options.b)
    paths = [*a, *(path for path in b if path not in a)]
    # The paper says nothing of most settings.
    if "paper" in (options.a, options.b):
        paths = [path for path in paths if path in PAPER]
    differing = [path for path in paths if _at(a, path) != _at(b, path)]
    if options.json:
        _print_json({path: _both(a, b, path) for path in differing})
        return
    for path in differing:
        line = f"{path}: {_at(a, path)} → {_at(b, path)}"
        if "paper" in (options.a, options.b):
            line += f" ({PAPER[path].place})"
        print(_wrapped(line))
    if not differing:
        print("no setting differs")


def _side(name: str) -> Mapping[str, Any]:
    """The settings that a side of `diff` names, by path."""
    if name == "paper":
        return json.loads(json.dumps({path: paper.value for path, paper in PAPER.items()}))
    if os.path.isdir(name) or "://" in name:
        return _last_run(name)
    return settings_by_path(config.load_experiment(name))


def _last_run(workdir: str) -> Mapping[str, Any]:
    """The settings of a workdir's last run."""
    from radit_jax.pipeline.run_log import RUNS, read_runs  # which starts slower than this command

    runs = read_runs(workdir)
    if not runs:
        raise ValueError(
            f"{workdir}: expected a workdir with {RUNS}, got none in it. Run the experiment once with this "
            "version, or name its file."
        )
    return runs[-1]["settings"]


def _at(side: Mapping[str, Any], path: str) -> str:
    """A side's value in words."""
    return _words(side[path]) if path in side else ABSENT


def _both(a: Mapping[str, Any], b: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The values of the sides that have one, for programs."""
    sides = {"a": a, "b": b}
    return {name: side[path] for name, side in sides.items() if path in side}


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    exit_command(main)
