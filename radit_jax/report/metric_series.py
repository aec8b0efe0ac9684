"""A stage's `metrics.jsonl` as series of numbers, and where its time went.

A run that was resumed goes on in the same file: the loop removes the lines that it writes again, and each
call leaves a line of time at its end.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from radit_jax.report.run_records import Series, TimeUse
from radit_jax.runtime.storage.entries import bytes_or_none
from radit_jax.runtime.storage.manifests import parse_jsonl
from radit_jax.runtime.storage.stage_folder import StageFolder

Line = dict[str, Any]
MAX_POINTS = 400  # of a series: more would not be seen
_KEYS = ("step", "name", "time")
_FILE = "metrics.jsonl"


def metric_lines(folder: StageFolder) -> list[Line]:
    """The lines of a stage's metrics, without one that a kill cut short; none where it has no metrics."""
    file = folder.home / _FILE
    data = bytes_or_none(file) or b""
    end = data.rfind(b"\n") + 1
    return parse_jsonl(data[:end], str(file), _KEYS, "Delete the file.")


def series_of(
    stage: str,
    lines: Sequence[Line],
) -> list[Series]:
    """A series for each name, but for the lines of time."""
    by_name: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        name = line["name"]
        if not name.endswith("/time"):
            by_name[name].append(line)
    series = []
    for name, named in by_name.items():
        series.append(_series(stage, name, named))
    return series


def _series(
    stage: str,
    name: str,
    lines: Sequence[Line],
) -> Series:
    """The numbers of one name; neighbours are averaged where there are more than `MAX_POINTS`."""
    metrics = [key for key in _all_keys(lines) if key not in _KEYS]
    # Each point is of as many lines as the others, the last of fewer.
    size = -(-len(lines) // MAX_POINTS)
    starts = range(0, len(lines), size)
    points = [lines[start : start + size] for start in starts]
    values = {}
    for metric in metrics:
        values[metric] = [_mean(point, metric) for point in points]
    steps = [point[-1]["step"] for point in points]
    times = [point[-1]["time"] for point in points]
    return Series(stage, name, steps, times, values)


def _all_keys(lines: Sequence[Line]) -> list[str]:
    keys: dict[str, None] = {}
    for line in lines:
        keys |= dict.fromkeys(line)
    return list(keys)


def _mean(
    lines: Sequence[Line],
    metric: str,
) -> float | None:
    """The mean of a metric over the lines that have it."""
    values = [line[metric] for line in lines if metric in line]
    return sum(values) / len(values) if values else None


def time_use(
    stage: str,
    lines: Sequence[Line],
) -> TimeUse | None:
    """Where the time of a stage's calls went; None where none has ended."""
    calls = [line for line in lines if line["name"].endswith("/time")]
    if not calls:
        return None
    seconds: dict[str, float] = defaultdict(float)
    for call in calls:
        for key, value in call.items():
            if key not in _KEYS:
                seconds[key.removesuffix("_seconds")] += value
    # What no purpose was named for is the steps' own time.
    named = sum(value for purpose, value in seconds.items() if purpose != "all")
    seconds["steps"] = max(0.0, seconds["all"] - named)
    ends = [call["step"] for call in calls]
    return TimeUse(stage, len(calls), ends, dict(seconds))
