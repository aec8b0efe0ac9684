"""A workdir's runs.jsonl: a line for each run, however it ended."""

import json
import pathlib
import signal
import sys

import pytest
from etils import epath

from radit_jax import config
from radit_jax.commands import settings
from radit_jax.errors import Stopped
from radit_jax.pipeline.run_log import RUNS, read_runs, recorded
from radit_jax.runtime.distributed import processes

TINY = config.load_experiment(str(pathlib.Path(__file__).parents[2] / "experiments" / "tiny.py"))
STAGES = ["corpus", "base/lm"]


def outcomes(workdir: pathlib.Path) -> list[str]:
    return [run["outcome"] for run in read_runs(workdir)]


def test_a_run_is_on_record_from_its_start_with_all_that_made_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["/opt/radit_jax/train.py", "--stage=all", "--set", "data.folder=my docs"]
    )
    with recorded(TINY, epath.Path(tmp_path), STAGES):
        (run,) = read_runs(tmp_path)
        assert (run["ended"], run["outcome"]) == (None, "running")
    (ended,) = read_runs(tmp_path)
    assert ended == {**run, "ended": ended["ended"], "outcome": "done"}
    assert ended["started"] <= ended["ended"] and ended["started"].endswith("+00:00")
    assert ended["command"] == "train.py --stage=all --set 'data.folder=my docs'"
    assert ended["experiment"] == "tiny" and ended["stages"] == STAGES
    assert ended["settings"]["r_ft.tau"] == 0.02 and ended["settings"]["data"] == "GeneratedWorld"
    assert {"python", "jax"} <= set(ended["versions"])
    assert ended["hardware"]["device"] == "cpu" and ended["hardware"]["processes"] == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ValueError("lm_ft: expected more.\nsecond line"), "failed: ValueError: lm_ft: expected more."),
        (Stopped("in lm_ft", signal.SIGTERM), "stopped in lm_ft"),
        (KeyboardInterrupt(), "stopped"),
    ],
)
def test_a_run_that_ends_badly_says_how(tmp_path: pathlib.Path, error: BaseException, outcome: str) -> None:
    with pytest.raises(type(error)), recorded(TINY, epath.Path(tmp_path), STAGES):
        raise error
    (run,) = read_runs(tmp_path)
    assert run["outcome"] == outcome and run["ended"]


def test_the_next_run_says_of_a_killed_one_that_it_was_killed(tmp_path: pathlib.Path) -> None:
    with recorded(TINY, epath.Path(tmp_path), STAGES):
        as_killed = (tmp_path / RUNS).read_bytes()
    (tmp_path / RUNS).write_bytes(as_killed)
    with recorded(TINY, epath.Path(tmp_path), STAGES):
        assert outcomes(tmp_path) == ["killed", "running"]
    assert outcomes(tmp_path) == ["killed", "done"]


def test_a_file_that_no_run_wrote_moves_aside(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / RUNS).write_text("my notes")
    with pytest.raises(ValueError, match=r"runs\.jsonl line 1: .* Delete the file"):
        read_runs(tmp_path)
    with recorded(TINY, epath.Path(tmp_path), STAGES):
        pass
    assert outcomes(tmp_path) == ["done"]
    assert (tmp_path / f"{RUNS}.1").read_text() == "my notes"
    assert "kept as runs.jsonl.1" in capsys.readouterr().err


def test_a_run_whose_end_cannot_be_written_ends_with_its_own_error(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: object, data: object) -> None:
        raise OSError("disk full")

    with pytest.raises(ValueError, match="the first"), recorded(TINY, epath.Path(tmp_path), STAGES):
        monkeypatch.setattr("radit_jax.pipeline.run_log.write_whole", full)
        raise ValueError("the first")
    assert outcomes(tmp_path) == ["running"]
    assert "disk full" in capsys.readouterr().err


def test_only_process_zero_writes(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "on_process_zero", lambda where, function: None)
    with recorded(TINY, epath.Path(tmp_path), STAGES):
        pass
    assert read_runs(tmp_path) == []


def test_diff_compares_with_a_workdirs_last_run(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_file = str(pathlib.Path(__file__).parents[2] / "experiments" / "tiny.py")
    changed = config.override_settings(TINY, ["seed=3", "evaluate.tasks=a.jsonl,b.jsonl"])
    for experiment in (TINY, changed):
        with recorded(experiment, epath.Path(tmp_path), STAGES):
            pass
    assert settings.main(["diff", tiny_file, str(tmp_path), "--json"]) == 0
    differences = json.loads(capsys.readouterr().out)
    assert differences == {
        "evaluate.tasks": {"a": [], "b": ["a.jsonl", "b.jsonl"]},
        "seed": {"a": 0, "b": 3},
    }
    assert settings.main(["diff", tiny_file, str(tmp_path.parent)]) == 1
    assert "expected a workdir with runs.jsonl, got none in it" in capsys.readouterr().err
