"""From the record of a comparison to its section of `docs/performance.md`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.compare import Benchmark, Spread, rates, ratios


def section(benchmark: Benchmark, record: Mapping[str, Any]) -> str:
    """Title, what was done, a row for each contestant, and what was to be reached."""
    parts = [
        heading(benchmark, record),
        table(benchmark, record),
        *_targets(benchmark, record),
        f"Agreement: {_facts(record['agreement'])}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def heading(benchmark: Benchmark, record: Mapping[str, Any]) -> str:
    """Title, command, machine and versions; and what is known of the inputs."""
    machine = record["machine"]
    parts = [
        f"## {benchmark.title}, {record['date']}",
        f"`python -m benchmarks {benchmark.name}` at commit {record['commit']}; {machine['cores']} cores of "
        f"{machine['cpu']}. {_listed(record['versions'])}.",
        _facts(record["facts"]),
    ]
    return "\n\n".join(part for part in parts if part)


def table(benchmark: Benchmark, record: Mapping[str, Any]) -> str:
    """A row for each contestant, medians and, in brackets, ranges."""
    unit = benchmark.unit
    rows = [
        ["", f"{unit} a second", f"{unit} a CPU-second", "first turn takes longer by", "peak memory"],
        ["---", "--:", "--:", "--:", "--:"],
    ]
    for name, told in record["contestants"].items():
        usual = Spread.of([turn["seconds"] for turn in told["rounds"]]).median
        rows.append(
            [
                name,
                _spread(rates(record, name)),
                _spread(rates(record, name, "cpu_seconds")),
                f"{max(0.0, told['first']['seconds'] - usual):.1f} s",
                f"{peak:,.0f} MiB" if (peak := told["rounds"][-1].get("peak_mib")) else "",
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def replaced(document: str, name: str, text: str) -> str:
    """The document with `text` as its section `name`, put at the end where it had none.

    >>> replaced("a", "x", "b")
    'a\\n\\n<!-- benchmark x -->\\nb\\n<!-- end x -->\\n'
    >>> replaced(replaced("a", "x", "b"), "x", "c") == replaced("a", "x", "c")
    True
    """
    begin, end = f"<!-- benchmark {name} -->", f"<!-- end {name} -->"
    whole = f"{begin}\n{text.strip()}\n{end}"
    if begin not in document:
        return f"{document.rstrip()}\n\n{whole}\n"
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: whole, document, flags=re.DOTALL)


def _targets(benchmark: Benchmark, record: Mapping[str, Any]) -> Sequence[str]:
    rows = []
    for target in benchmark.targets:
        if {target.ours, target.rival} <= set(record["contestants"]):
            wall = ratios(record, target.ours, target.rival)
            cpu = ratios(record, target.ours, target.rival, "cpu_seconds")
            rows.append(
                f"| {target.ours} against {target.rival} | {target.ratio:g} × | {_spread(wall)} × "
                f"| {_spread(cpu)} × |"
            )
    head = ["| ratio | wanted | a second | a CPU-second |", "|---|--:|--:|--:|"]
    return ["\n".join([*head, *rows])] if rows else []


def _spread(spread: Spread) -> str:
    return f"{_number(spread.median)} ({_number(spread.least)} to {_number(spread.most)})"


def _number(value: float) -> str:
    """Three digits, as many as two noisy cores allow."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _facts(facts: Mapping[str, Any]) -> str:
    """What is known by name, as a sentence.

    >>> _facts({"pairs": 1200, "ratio of tokens": 3.12345})
    'pairs 1,200; ratio of tokens 3.12.'
    """
    told = [f"{name} {_told(value)}" for name, value in facts.items()]
    return f"{'; '.join(told)}." if told else ""


def _told(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
