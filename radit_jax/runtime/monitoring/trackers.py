"""Where a run's numbers go besides its own files: Weights & Biases and MLflow, if a variable asks for them.

A stage is a run there, in the group of its workdir, with all settings of the experiment.
"""

import contextlib
import importlib
import importlib.util
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from radit_jax.config.overrides import as_text

_MLFLOW_BATCH = 100  # what one request may have of parameters; of metrics it may be 1,000
_NOT_IN_NAMES = re.compile(r"[^\w./ :-]")  # characters that MLflow refuses


class StageContext(NamedTuple):
    """The stage that runs, as trackers show it."""

    group: str = ""  # the workdir's name
    stage: str = ""  # as the table of stages has it: base/lm
    settings: Mapping[str, Any] = {}  # of the experiment, by path


@runtime_checkable
class Tracker(Protocol):
    """A stage's run in a tracker."""

    def log(self, lines: Sequence[tuple[int, float, Mapping[str, float]]]) -> None:
        """Send lines: a step, the time in seconds since 1970, numbers by name."""
        ...

    def finish(self, has_failed: bool) -> None:
        """Close the run."""
        ...


_context = StageContext()
_open: list["Trackers"] = []


def stage_context() -> StageContext:
    """The stage that runs; an empty one where nobody said."""
    return _context


@contextlib.contextmanager
def tracking(context: StageContext) -> Iterator[None]:
    """Inside, trackers know which stage runs; at the end its runs are closed."""
    global _context
    _context = context
    has_failed = True
    try:
        yield
        has_failed = False
    finally:
        _context = StageContext()
        for trackers in _open:
            trackers.finish(has_failed)
        _open.clear()


def check_trackers() -> None:
    """Raise ValueError where a tracker is asked for and not installed."""
    for variable, package in (("WANDB_PROJECT", "wandb"), ("MLFLOW_TRACKING_URI", "mlflow")):
        value = os.environ.get(variable)
        if value and importlib.util.find_spec(package) is None:
            raise ValueError(
                f"{variable}: expected the package {package}, to log to {value}, got none. "
                f"pip install 'radit_jax[{package}]', or unset {variable}."
            )


class Trackers:
    """The runs of a stage in all trackers that are asked for."""

    def __init__(self, folder: pathlib.Path):
        check_trackers()
        # In two workdirs a stage may have the same fingerprint.
        self.id = "-".join(filter(None, (_context.group, folder.parent.name, folder.name)))
        name = "/".join(filter(None, (_context.group, _context.stage))) or self.id
        self.runs: list[Tracker] = []
        if os.environ.get("WANDB_PROJECT"):
            with _naming("WANDB_PROJECT"):
                self.runs.append(_WandbRun(self.id, name, folder))
        if os.environ.get("MLFLOW_TRACKING_URI"):
            with _naming("MLFLOW_TRACKING_URI"):
                self.runs.append(_MlflowRun(self.id, name))
        _open.append(self)

    def log(self, lines: Sequence[tuple[int, float, Mapping[str, float]]]) -> None:
        """Send lines to all; a tracker that fails is left alone from then on, for training goes on."""
        for run in list(self.runs):
            try:
                run.log(lines)
            except Exception as error:  # a server's, of whatever kind
                self._give_up(run, error)

    def finish(self, has_failed: bool) -> None:
        """Close all runs."""
        for run in self.runs:
            try:
                run.finish(has_failed)
            except Exception as error:
                self._give_up(run, error)
        self.runs = []

    def _give_up(self, run: Tracker, error: Exception) -> None:
        self.runs = [other for other in self.runs if other is not run]
        first_line = str(error).partition("\n")[0]
        print(f"warning: {run}: nothing more is sent of {self.id}: {first_line}", file=sys.stderr)


@contextlib.contextmanager
def _naming(variable: str) -> Iterator[None]:
    """Turn what a tracker raises when its run begins into one line."""
    try:
        yield
    except Exception as error:
        first_line = str(error).partition("\n")[0]
        raise ValueError(
            f"{variable}: expected a tracker that takes a run, got {first_line.rstrip('.')}. "
            f"Start it, or unset {variable}."
        ) from error


class _WandbRun:
    """A run in a project of Weights & Biases. What a resumed stage writes again stands there twice."""

    def __init__(self, run_id: str, name: str, folder: pathlib.Path):
        wandb: Any = importlib.import_module("wandb")
        # The id has the stage's fingerprint, so a resumed stage goes on with its run.
        self.run = wandb.init(
            id=re.sub(r"[^\w.-]", "-", run_id),
            name=name,
            group=_context.group or None,
            job_type=_context.stage or None,
            config=dict(_context.settings),
            dir=folder,
            resume="allow",
            reinit="finish_previous",
        )
        self.run.define_metric("*", step_metric="step")

    def __str__(self) -> str:
        return "Weights & Biases"

    def log(self, lines: Sequence[tuple[int, float, Mapping[str, float]]]) -> None:
        for step, _, numbers in lines:
            self.run.log({"step": step, **numbers})

    def finish(self, has_failed: bool) -> None:
        self.run.finish(exit_code=int(has_failed))


class _MlflowRun:
    """A run on an MLflow server, or in its local store."""

    def __init__(self, run_id: str, name: str):
        mlflow: Any = importlib.import_module("mlflow")
        self.entities: Any = importlib.import_module("mlflow.entities")
        self.client = mlflow.MlflowClient()
        # A resumed stage goes on with its run, which its tag finds.
        experiment = _mlflow_experiment(self.client)
        found = self.client.search_runs([experiment], filter_string=f"tags.radit_id = '{run_id}'")
        if found:
            self.run_id = found[0].info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
            return
        tags = {"radit_id": run_id, "group": _context.group, "stage": _context.stage}
        self.run_id = self.client.create_run(experiment, run_name=name, tags=tags).info.run_id
        # Parameters can be written once only.
        params = []
        for path, value in _context.settings.items():
            params.append(self.entities.Param(path, as_text(value) or "''"))
        for start in range(0, len(params), _MLFLOW_BATCH):
            self.client.log_batch(self.run_id, params=params[start : start + _MLFLOW_BATCH])

    def __str__(self) -> str:
        return "MLflow"

    def log(self, lines: Sequence[tuple[int, float, Mapping[str, float]]]) -> None:
        metrics = []
        for step, seconds, numbers in lines:
            for name, value in numbers.items():
                key = _NOT_IN_NAMES.sub("_at_", name)  # mrr@10
                metrics.append(self.entities.Metric(key, value, int(seconds * 1000), step))
        for start in range(0, len(metrics), _MLFLOW_BATCH):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + _MLFLOW_BATCH])

    def finish(self, has_failed: bool) -> None:
        self.client.set_terminated(self.run_id, status="FAILED" if has_failed else "FINISHED")


def _mlflow_experiment(client: Any) -> str:
    """The id of the experiment that MLFLOW_EXPERIMENT_NAME names, which is made where it is not there."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "radit_jax"
    experiment = client.get_experiment_by_name(name)
    return experiment.experiment_id if experiment else client.create_experiment(name)
