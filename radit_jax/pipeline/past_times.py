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
# The loops of each stage of the tiny experiment and their seconds on two busy CPU cores, for a first run.
TINY_SECONDS = {
    "corpus": {"corpus": 1},
    "base/lm": {"base": 132},
    "base/retriever": {"base": 155},
    "embed/retriever": {"embed": 12},
    "index/retriever": {"index": 9},
    "retrieve/lm_ft": {"retrieve": 7},
    "retrieve/r_ft": {"retrieve": 6},
    "lm_ft": {"lm_ft": 128},
    "score": {"score": 59},
    "r_ft": {"r_ft": 74},
    "evaluate": {
        "evaluate closed_book": 45,
        "evaluate base_lm": 62,
        "evaluate base": 60,
        "evaluate lm_ft": 57,
        "evaluate lm_ft_lm": 49,
        "evaluate r_ft": 47,
        "evaluate radit": 46,
        "evaluate base_lm-gold": 56,
        "evaluate base_lm-retrieved": 6,
        "evaluate base_lm-random": 8,
        "evaluate lm_ft_lm-gold": 5,
        "evaluate lm_ft_lm-retrieved": 5,
        "evaluate lm_ft_lm-random": 4,
        "evaluate lm_ft_lm-none": 1,
    },
    "export": {"export": 29},
}
_MACHINE = ("device", "devices", "processes", "cpus")  # of a record's hardware


def past_seconds(runs: Sequence[Mapping[str, Any]]) -> dict[str, LoopSeconds | None]:
    """The seconds of each stage that the last of `runs` makes, as the latest run before it measured them.

    `runs` are the lines of `runs.jsonl`. None of a stage that no comparable run made from its start to its
    end, but the tiny experiment's are known. A training with other steps takes its time in proportion.
    """
    *earlier, present = json.loads(json.dumps(runs))  # as they are read from the file
    usual = TINY_SECONDS if present["experiment"] == "tiny" else {}
    seconds: dict[str, LoopSeconds | None] = {name: usual.get(name) for name in present["stages"]}
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
