"""Trackers, by stand-ins for their packages that refuse what the real ones refuse."""

import importlib.util
import pathlib
import re
import sys
import types
from typing import Any, NamedTuple

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from radit_jax.runtime.monitoring.metrics import Metrics
from radit_jax.runtime.monitoring.trackers import StageContext, check_trackers, tracking

CONTEXT = StageContext(
    "tiny-3", "base/lm", {"seed": 3, "evaluate.tasks": ["nq", "fever"], "data.test_file": ""}
)
FOLDER = pathlib.PurePath("base") / "0123456789ab"


class Param(NamedTuple):
    key: str
    value: str


class Metric(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


class MlflowRun(NamedTuple):
    info: types.SimpleNamespace
    tags: dict[str, str]
    params: dict[str, str]
    metrics: list[Metric]


class MlflowServer:
    """A stand-in for an MLflow server: the methods of `MlflowClient` that we call, as documented."""

    def __init__(self) -> None:
        self.experiments: list[str] = []
        self.runs: list[MlflowRun] = []
        self.is_down = False

    def get_experiment_by_name(self, name: str) -> types.SimpleNamespace | None:
        if self.is_down:
            raise RuntimeError("API request failed: connection refused.\nTraceback")
        number = self.experiments.index(name) if name in self.experiments else None
        return None if number is None else types.SimpleNamespace(experiment_id=str(number))

    def create_experiment(self, name: str) -> str:
        self.experiments.append(name)
        return str(len(self.experiments) - 1)

    def search_runs(self, experiment_ids: list[str], filter_string: str) -> list[MlflowRun]:
        (tag, value) = re.fullmatch(r"tags\.(\w+) = '([^']*)'", filter_string).groups()  # type: ignore
        return [run for run in self.runs if run.tags[tag] == value]

    def create_run(self, experiment_id: str, run_name: str, tags: dict[str, str]) -> MlflowRun:
        info = types.SimpleNamespace(run_id=str(len(self.runs)), run_name=run_name, status="RUNNING")
        self.runs.append(MlflowRun(info, tags, {}, []))
        return self.runs[-1]

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[int(run_id)].info.status = status

    def set_terminated(self, run_id: str, status: str) -> None:
        self.update_run(run_id, status)

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        run = self.runs[int(run_id)]
        assert not self.is_down and len(metrics) <= 1000 and len(params) <= 100
        assert all(re.fullmatch(r"[\w. /:-]+", entry.key) for entry in [*metrics, *params])
        assert not {param.key for param in params} & run.params.keys()
        run.params.update(params)
        run.metrics.extend(metrics)


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> MlflowServer:
    """Stands for MLflow, with a server asked for."""
    server = MlflowServer()
    package: Any = types.ModuleType("mlflow")
    package.MlflowClient = lambda: server
    package.__spec__ = types.SimpleNamespace()
    entities: Any = types.ModuleType("mlflow.entities")
    entities.Metric, entities.Param = Metric, Param
    monkeypatch.setitem(sys.modules, "mlflow", package)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    return server


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands for the package of Weights & Biases, with a project asked for; what was called."""
    calls: list[Any] = []
    run = types.SimpleNamespace(
        log=lambda values: calls.append(values),
        define_metric=lambda name, **how: calls.append((name, how)),
        finish=lambda exit_code: calls.append(f"finish {exit_code}"),
    )
    module: Any = types.ModuleType("wandb")
    module.init = lambda **options: calls.append(options) or run
    module.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("WANDB_PROJECT", "radit")
    return calls


def write(folder: pathlib.Path, step: int, **values: float) -> None:
    """What a stage does in one call of its loop."""
    with tracking(CONTEXT):
        metrics = Metrics(folder / "metrics.jsonl")
        metrics.write(step, "lm", values)
        metrics.flush()


def test_weights_and_biases_have_a_named_run_in_a_group_with_its_settings(
    wandb: list[Any], tmp_path: pathlib.Path
) -> None:
    write(tmp_path / FOLDER, 3, loss=0.5, lr=0.1)
    options = wandb[0]
    assert options["id"] == "tiny-3-base-0123456789ab" and options["resume"] == "allow"
    assert (options["name"], options["group"], options["job_type"]) == ("tiny-3/base/lm", "tiny-3", "base/lm")
    assert options["config"] == CONTEXT.settings
    assert wandb[1:] == [
        ("*", {"step_metric": "step"}),
        {"step": 3, "lm/loss": 0.5, "lm/lr": 0.1},
        "finish 0",
    ]


def test_each_line_is_sent_once(wandb: list[Any], tmp_path: pathlib.Path) -> None:
    metrics = Metrics(tmp_path / "lm_ft" / "0123456789ab" / "metrics.jsonl")
    metrics.write(3, "lm", {"loss": 0.5})
    metrics.flush()
    metrics.flush()
    assert wandb[0]["id"] == wandb[0]["name"] == "lm_ft-0123456789ab"
    assert wandb[2:] == [{"step": 3, "lm/loss": 0.5}]


def test_a_stage_that_fails_is_a_failed_run(
    wandb: list[Any], mlflow: MlflowServer, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(FloatingPointError), tracking(CONTEXT):
        Metrics(tmp_path / FOLDER / "metrics.jsonl")
        raise FloatingPointError
    assert wandb[-1] == "finish 1"
    assert [run.info.status for run in mlflow.runs] == ["FAILED"]


def test_mlflow_has_a_named_run_with_its_settings_and_a_resumed_stage_goes_on_with_it(
    mlflow: MlflowServer, tmp_path: pathlib.Path
) -> None:
    write(tmp_path / FOLDER, 1, loss=0.5)
    write(tmp_path / FOLDER, 2, **{"mrr@10": 0.25})
    assert mlflow.experiments == ["radit_jax"]
    (run,) = mlflow.runs
    assert (run.info.run_name, run.info.status) == ("tiny-3/base/lm", "FINISHED")
    assert run.tags == {"radit_id": "tiny-3-base-0123456789ab", "group": "tiny-3", "stage": "base/lm"}
    assert run.params == {"seed": "3", "evaluate.tasks": "nq,fever", "data.test_file": "''"}
    assert [(key, value, step) for key, value, _, step in run.metrics] == [
        ("lm/loss", 0.5, 1),
        ("lm/mrr_at_10", 0.25, 2),
    ]
    assert run.metrics[0].timestamp > 1.7e12  # milliseconds


def test_many_numbers_go_in_several_requests(mlflow: MlflowServer, tmp_path: pathlib.Path) -> None:
    settings = {f"setting.{number}": number for number in range(250)}
    with tracking(CONTEXT._replace(settings=settings)):
        metrics = Metrics(tmp_path / FOLDER / "metrics.jsonl")
        metrics.write(1, "lm", {f"value{number}": number for number in range(250)})
        metrics.flush()
    assert len(mlflow.runs[0].params) == len(mlflow.runs[0].metrics) == 250


def test_an_experiment_of_another_name(
    mlflow: MlflowServer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    mlflow.create_experiment("mine")
    write(tmp_path / FOLDER, 1, loss=0.5)
    assert mlflow.experiments == ["mine"]


def test_a_tracker_that_is_down_at_the_start_is_an_error(
    mlflow: MlflowServer, tmp_path: pathlib.Path
) -> None:
    mlflow.is_down = True
    with pytest.raises(ValueError, match=r"^MLFLOW_TRACKING_URI: .*connection refused\. Start it, or unset"):
        Metrics(tmp_path / FOLDER / "metrics.jsonl")


def test_a_tracker_that_goes_down_later_is_left_alone_and_training_goes_on(
    mlflow: MlflowServer, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tracking(CONTEXT):
        metrics = Metrics(tmp_path / FOLDER / "metrics.jsonl")
        mlflow.is_down = True
        for step in (1, 2):
            metrics.write(step, "lm", {"loss": 0.5})
            metrics.flush()
    assert len(metrics.path.read_text().splitlines()) == 2
    assert capsys.readouterr().err.count("MLflow: nothing more is sent of tiny-3-base-0123456789ab") == 1


def test_trackers_are_left_alone_where_none_is_asked_for(
    wandb: list[Any], mlflow: MlflowServer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_PROJECT")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    write(tmp_path / FOLDER, 1, loss=0.5)
    check_trackers()
    assert not wandb and not mlflow.experiments


@pytest.mark.parametrize(
    ("variable", "package"), [("WANDB_PROJECT", "wandb"), ("MLFLOW_TRACKING_URI", "mlflow")]
)
def test_a_tracker_without_its_package_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, package: str
) -> None:
    monkeypatch.setenv(variable, "radit")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    remedy = (
        rf"expected the package {package}, to log to radit, got none\. pip install 'radit_jax\[{package}\]'"
    )
    with pytest.raises(ValueError, match=f"^{variable}: {remedy}"):
        check_trackers()


def test_tensorboard_shows_the_settings_as_text(tmp_path: pathlib.Path) -> None:
    with tracking(CONTEXT):
        metrics = Metrics(tmp_path / FOLDER / "metrics.jsonl")
    events = list(EventFileLoader(str(metrics.tensorboard)).Load())
    (value,) = events[1].summary.value
    assert (value.tag, value.metadata.plugin_data.plugin_name) == ("settings", "text")
    (text,) = value.tensor.string_val
    assert "| seed | 3 |\n| evaluate.tasks | nq,fever |" in text.decode()
