"""What stages took in earlier runs of a workdir that did the same work on the same kind of machine."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from radit_jax.runtime.monitoring.time_left import LoopSeconds

# Settings that change what comes out, and not how much there is to compute.
SAME_WORK = {
    "seed",
    "retrieve.temperature",
    "r_ft.tau",
    "r_ft.lm_score",
    "r_ft.direction",
    "evaluate.name",
    "keep_checkpoints",
}
_MACHINE = ("device", "devices", "processes", "cpus")  # of a record's hardware


def past_seconds(runs: Sequence[Mapping[str, Any]]) -> dict[str, LoopSeconds | None]:
    """The seconds of each stage that the last of `runs` makes, as the latest run before it measured them.

    `runs` are the lines of `runs.jsonl`. None of a stage that no comparable run made from its start to its
    end. A training with other steps takes its time in proportion.
    """
    *earlier, present = json.loads(json.dumps(runs))  # as they are read from the file
    seconds: dict[str, LoopSeconds | None] = dict.fromkeys(present["stages"])
    for run in earlier:
        if not _is_comparable(run, present):
            continue
        for stage, loops in run.get("seconds", {}).items():
            if stage in seconds:
                ratio = _steps(present, stage) / _steps(run, stage)
                seconds[stage] = {name: ratio * taken for name, taken in loops.items()}
    return seconds


def _is_comparable(run: Mapping[str, Any], present: Mapping[str, Any]) -> bool:
    """Whether both did the same work, but for the number of steps, on the same kind of machine."""
    machines = [[one.get("hardware", {}).get(name) for name in _MACHINE] for one in (run, present)]
    return machines[0] == machines[1] and _work(run) == _work(present)


def _work(run: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that say how much there is to compute, but for the optimizers'."""
    work = {}
    for path, value in run["settings"].items():
        if path not in SAME_WORK and ".optimizer." not in path:
            work[path] = value
    return work


def _steps(run: Mapping[str, Any], stage: str) -> int:
    """The steps of a stage's training; 1 of a stage that has none."""
    section = stage.replace("/", ".")
    return run["settings"].get(f"{section}.optimizer.steps") or 1
