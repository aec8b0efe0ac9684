"""`radit status wiki_small`: what is done, what would run and why, and the bytes of each stage's output.

Without an experiment it is the one of the workdir's last run.
"""

import argparse
import json
from typing import Any, NamedTuple

from radit_jax import train
from radit_jax.command_line import add_experiment_name, spelled
from radit_jax.commands.last_run import find_workdir, settings_words
from radit_jax.commands.sizes import size_text
from radit_jax.config.descriptions import settings_by_path
from radit_jax.pipeline.run_log import read_runs
from radit_jax.pipeline.runner import Run
from radit_jax.runtime.storage import locks
from radit_jax.runtime.storage.entries import bytes_freed, bytes_stored


class StageStatus(NamedTuple):
    """One stage: whether it is done or at work, where its output lies, its bytes, and why it would run."""

    stage: str
    done: bool
    running: bool
    folder: str
    bytes: int  # that no stage before it takes, too
    why: str  # empty where it is done


class WorkdirStatus(NamedTuple):
    """A workdir and its stages; sizes are in bytes."""

    experiment: str  # as a command names it, with its --set
    stages: list[StageStatus]
    holder: str | None  # the process that works in it
    superseded: int  # what `radit clean` frees
    other_export: int  # of an export of other settings, which the next one replaces


def parser() -> argparse.ArgumentParser:
    """The command line of `radit status`."""
    p = argparse.ArgumentParser(
        description="Say what is done, what would run and why, and how much room each stage takes.",
        parents=[train.experiment_options(default=None)],
    )
    add_experiment_name(p)
    p.add_argument("--stage", default="all", metavar="NAME", help="and what it depends on (default: all)")
    p.add_argument("--json", action="store_true", help="for programs")
    p.set_defaults(run=print_status)
    return p


def print_status(options: argparse.Namespace) -> None:
    """Print the status of the workdir, as lines or as JSON."""
    # Nothing is locked or written, so this may be asked while a run goes on.
    experiment, workdir = find_workdir(options)
    run = Run(experiment, workdir, plan_only=True)
    status = workdir_status(run, options.stage, settings_words(options))
    # For a program everything is in one object.
    if options.json:
        print(json.dumps(status_object(run, status), indent=1))
        return

    # 1) Whose settings, then a line a stage.
    print(f"settings   {status.experiment}")
    for stage in status.stages:
        mark = "done" if stage.done else "running" if stage.running else "would run"
        size = size_text(stage.bytes) if stage.bytes else ""
        print(f"{mark:9}  {stage.stage:22} {size:>9}  {stage.why or stage.folder}")
    for problem in run.absent.values():
        print(f"missing    {problem}")
    if status.holder:
        print(f"in use by  {status.holder}")
    # 2) What the workdir takes.
    total = sum(stage.bytes for stage in status.stages)
    print(f"{size_text(total)} of these settings in {workdir.path}")
    if status.other_export:
        print(f"{size_text(status.other_export)} of an export of other settings, which the next one replaces")
    if status.superseded:
        clean = spelled("clean")
        print(f"{size_text(status.superseded)} of other settings, which `{clean}` frees after asking")


def workdir_status(run: Run, kind: str, experiment: str) -> WorkdirStatus:
    """The status of the stages that `kind` depends on, and of what else the workdir holds."""
    # 1) A file with several names, as the weights of an export, counts where it is made.
    folders = [run.folders[stage.name] for stage in run.needed(kind)]
    is_ours = [folder.complete or folder.half_written for folder in folders]
    counted = [folder.home for folder, ours in zip(folders, is_ours, strict=True) if ours]
    sizes = dict(zip(counted, bytes_stored(counted), strict=True))

    # 2) Of stages that share a folder only the first would run, and has the bytes.
    missing = {stage.name for stage in run.missing(kind)}
    holder = locks.holder(run.workdir.path)
    running = stage_at_work(run) if holder else None
    stages = []
    for stage in run.needed(kind):
        folder = run.folders[stage.name].home
        why = run.why(stage) if stage.name in missing else ""
        is_running = stage.name == running
        if is_running:
            why = f"by {holder}"
        stages.append(StageStatus(stage.name, not why, is_running, str(folder), sizes.pop(folder, 0), why))

    # 3) What is of other settings.
    superseded = run.workdir.superseded(run.folders.values())
    freed = sum(bytes_freed(folder.home for folder in superseded))
    export = run.folders["export"]
    is_other = not export.complete and not export.half_written
    (other_export,) = bytes_freed([export.home]) if is_other else (0,)
    return WorkdirStatus(experiment, stages, holder, freed, other_export)


def stage_at_work(run: Run) -> str | None:
    """The stage that the run in the workdir is at; None where it has other settings, or left no record."""
    records = read_runs(run.workdir.path)
    if not records or records[-1]["outcome"] != "running":
        return None
    settings = json.loads(json.dumps(settings_by_path(run.experiment)))
    if records[-1]["settings"] != settings:
        return None
    # It makes its stages in their order.
    for name in records[-1].get("stages", ()):
        if name in run.folders and not run.folders[name].complete:
            return name
    return None


def status_object(run: Run, status: WorkdirStatus) -> dict[str, Any]:
    """The status for programs; sizes are in bytes."""
    return {
        "experiment": run.experiment.name,
        "settings": status.experiment,
        "workdir": str(run.workdir.path),
        "in_use_by": status.holder,
        "stages": [stage._asdict() for stage in status.stages],
        "missing": list(run.absent.values()),
        "other_export_bytes": status.other_export,
        "superseded_bytes": status.superseded,
    }
