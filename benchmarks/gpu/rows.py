"""The rows of the benchmark: a line of JSON each, and the table that is made of them."""

import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

HEAD = (
    "part",
    "what",
    "measured",
    "TFLOP/s",
    "of the measured peak",
    "of the vendor's",
    "GiB at the peak",
    "first call",
    "notes",
)


class Recorder:
    """Writes the rows of a part into a folder, each when it is there."""

    def __init__(self, out: pathlib.Path, part: str):
        out.mkdir(parents=True, exist_ok=True)
        self.out = out
        self._part = part

    def write(self, what: str, **values: Any) -> None:
        """Add a row, and make the table again."""
        row = {"part": self._part, "what": what, **values, "time": round(time.time(), 1)}
        line = json.dumps(row)
        with (self.out / "rows.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)
        (self.out / "table.md").write_text(table(read(self.out)))

    def failed(self, error: str) -> None:
        """Add a row for a part, or something in it, that did not end well."""
        self.write("", error=error)

    def left_out(self, reason: str) -> None:
        """Add a row for what was not tried."""
        self.write("", left_out=reason)


def read(out: pathlib.Path) -> list[dict[str, Any]]:
    """All rows of a folder, in the order in which they were written."""
    lines = (out / "rows.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table in Markdown."""
    cells = [HEAD, ("---",) * len(HEAD), *map(_cells, rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["part"],
        row["what"],
        _measured(row),
        _number(row.get("tflops")),
        _percent(row.get("of_measured_peak")),
        _percent(row.get("of_vendor_peak")),
        _number(row.get("peak_gib")),
        _seconds(row.get("first_seconds")),
        _notes(row),
    )


def _measured(row: Mapping[str, Any]) -> str:
    if "error" in row:
        return "failed"
    if "left_out" in row:
        return "left out"
    return f"{_number(row.get('value'))} {row.get('unit', '')}".strip()


def _notes(row: Mapping[str, Any]) -> str:
    """The error or the reason, or what else is known."""
    said = row.get("error") or row.get("left_out")
    if said is not None:
        return str(said).replace("|", "/")
    notes = row.get("notes", {})
    return "; ".join(f"{name} {_number(value)}" for name, value in notes.items())


def _number(value: Any) -> str:
    """Three digits of a number, and anything else as it is.

    >>> _number(1234.5), _number(0.12345), _number("xla"), _number(None)
    ('1,234', '0.123', 'xla', '')
    """
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"
