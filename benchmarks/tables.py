"""From the record of a comparison to its section of `docs/performance.md`."""

import re
import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.compare import Benchmark, Spread, rates, ratios


def section(benchmark: Benchmark, record: Mapping[str, Any]) -> str:
    """Title, what was done, a row for each worker, and a row for each target."""
    parts = [
        heading(benchmark, record),
        table(benchmark, record),
        _targets(benchmark, record),
        f"Agreement: {_facts(record['agreement'])}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def heading(benchmark: Benchmark, record: Mapping[str, Any]) -> str:
    """Title, command, machine and versions; and what is known of the inputs."""
    machine = record["machine"]
    versions = [f"{name} {version}" for name, version in record["versions"].items()]
    parts = [
        f"## {benchmark.title}, {record['date']}",
        f"`python -m benchmarks {benchmark.name}` at commit {record['commit']}; {machine['cores']} cores of "
        f"{machine['cpu']}. {', '.join(versions)}.",
        _facts(record["facts"]),
    ]
    return "\n\n".join(part for part in parts if part)


def table(benchmark: Benchmark, record: Mapping[str, Any]) -> str:
    """A row for each worker, medians and, in brackets, ranges."""
    unit = benchmark.unit
    rows = [
        ["", f"{unit} a second", f"{unit} a CPU-second", "first turn takes longer by", "peak memory"],
        ["---", "--:", "--:", "--:", "--:"],
    ]
    for name, measured in record["workers"].items():
        turns = measured["rounds"]
        median_seconds = statistics.median(turn["seconds"] for turn in turns)
        warm_up = max(0.0, measured["first"]["seconds"] - median_seconds)
        peak = turns[-1].get("peak_mib")  # older records have none
        rows.append(
            [
                name,
                _spread(rates(record, name)),
                _spread(rates(record, name, "cpu_seconds")),
                f"{warm_up:.1f} s",
                f"{peak:,.0f} MiB" if peak else "",
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
    begin = f"<!-- benchmark {name} -->"
    end = f"<!-- end {name} -->"
    whole = f"{begin}\n{text.strip()}\n{end}"
    if begin not in document:
        return f"{document.rstrip()}\n\n{whole}\n"
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: whole, document, flags=re.DOTALL)


def _targets(benchmark: Benchmark, record: Mapping[str, Any]) -> str:
    """A row for each target whose two workers were measured; "" where there is none."""
    rows = []
    for target in benchmark.targets:
        if {target.ours, target.rival} <= set(record["workers"]):
            wall = ratios(record, target.ours, target.rival)
            cpu = ratios(record, target.ours, target.rival, "cpu_seconds")
            rows.append(
                f"| {target.ours} against {target.rival} | {target.ratio:g} × | {_spread(wall)} × "
                f"| {_spread(cpu)} × |"
            )
    if not rows:
        return ""
    head = ["| ratio | wanted | a second | a CPU-second |", "|---|--:|--:|--:|"]
    return "\n".join([*head, *rows])


def _spread(spread: Spread) -> str:
    """The median, and in brackets the range."""
    return f"{_number(spread.median)} ({_number(spread.least)} to {_number(spread.most)})"


def _number(value: float) -> str:
    """Three digits, as many as two noisy cores allow."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _facts(facts: Mapping[str, Any]) -> str:
    """What is known by name, as a sentence.

    >>> _facts({"pairs": 1200, "ratio of tokens": 3.12345})
    'pairs 1,200; ratio of tokens 3.12.'
    """
    if not facts:
        return ""
    clauses = [f"{name} {_shown(value)}" for name, value in facts.items()]
    return f"{'; '.join(clauses)}."


def _shown(value: Any) -> str:
    """Numbers with commas or to three digits, anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
