"""`radit status wiki_small`: what is done, what would run and why, and the bytes of each stage's output."""

import argparse
import json
from typing import Any, NamedTuple

from radit_jax import train
from radit_jax.commands.run import add_experiment
from radit_jax.commands.sizes import size_text
from radit_jax.pipeline.runner import Run


class StageStatus(NamedTuple):
    """One stage: whether it is done, where its output lies, its bytes, and why it would run."""

    stage: str
    done: bool
    folder: str
    bytes: int
    why: str  # empty where it is done


def parser() -> argparse.ArgumentParser:
    """The command line of `radit status`."""
    p = argparse.ArgumentParser(
        description="Say what is done, what would run and why, and how much room each stage takes.",
        parents=[train.experiment_options()],
    )
    add_experiment(p)
    p.add_argument("--stage", default="all", metavar="NAME", help="and what it depends on (default: all)")
    p.add_argument("--json", action="store_true", help="for programs")
    p.set_defaults(run=print_status)
    return p


def print_status(options: argparse.Namespace) -> None:
    """Print the status of the workdir, as lines or as JSON."""
    # Nothing is locked or written, so this may be asked while a run goes on.
    experiment, workdir = train.open_workdir(options)
    run = Run(experiment, workdir, plan_only=True)
    statuses = stage_statuses(run, options.stage)
    superseded = sum(folder.size for folder in workdir.superseded(run.folders.values()))
    # For a program everything is in one object.
    if options.json:
        print(json.dumps(status_object(run, statuses, superseded), indent=1))
        return

    # 1) A line a stage.
    for status in statuses:
        mark = "done     " if status.done else "would run"
        size = size_text(status.bytes) if status.bytes else ""
        print(f"{mark}  {status.stage:22} {size:>9}  {status.why or status.folder}")
    for problem in run.absent.values():
        print(f"missing    {problem}")
    # 2) What the workdir takes.
    total = sum(status.bytes for status in statuses)
    print(f"{size_text(total)} of these settings in {workdir.path}")
    if superseded:
        print(f"{size_text(superseded)} of other settings, which `radit clean` deletes after asking")


def stage_statuses(run: Run, kind: str) -> list[StageStatus]:
    """The status of each stage that `kind` depends on; an output of two stages is counted once."""
    # Of stages that share a folder only the first would run.
    missing = {stage.name for stage in run.missing(kind)}
    counted: set[str] = set()
    statuses = []
    for stage in run.needed(kind):
        # The bytes of a shared folder belong to the first, too.
        folder = run.folders[stage.name]
        home = str(folder.home)
        num_bytes = 0 if home in counted else folder.size
        counted.add(home)
        # A stage that is done has no reason to run.
        why = run.why(stage) if stage.name in missing else ""
        statuses.append(StageStatus(stage.name, not why, home, num_bytes, why))
    return statuses


def status_object(run: Run, statuses: list[StageStatus], superseded: int) -> dict[str, Any]:
    """The status for programs; sizes are in bytes."""
    return {
        "experiment": run.experiment.name,
        "workdir": str(run.workdir.path),
        "stages": [status._asdict() for status in statuses],
        "missing": list(run.absent.values()),
        "superseded_bytes": superseded,
    }
