"""`radit status`: what is done, what would run, why, and its bytes."""

import json
import pathlib

import pytest

from radit_jax import cli, config, train
from radit_jax.commands.sizes import size_text
from radit_jax.pipeline.runner import Run
from radit_jax.runtime.storage.workdir import Workdir


@pytest.fixture
def workdir(tmp_path: pathlib.Path) -> pathlib.Path:
    """A run whose corpus is done, whose base LM was begun, and that has an output of other settings."""
    run = Run(config.load_experiment(str(train.TINY)), Workdir(tmp_path))
    run.folders["corpus"].write("chunks", bytes(1000))
    run.folders["corpus"].finish()
    run.folders["base/lm"].write("shard", bytes(500))
    run.workdir.folder("embed", "a" * 12).write("shard", bytes(2_500_000))
    return tmp_path


def test_lines_say_what_is_done_what_would_run_and_why(
    workdir: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(workdir.rglob("*"))
    assert cli.main(["status", "tiny", f"--workdir={workdir}", "--stage=base"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[:3]] == [
        ["done", "corpus", lines[0].split()[2]],
        ["would", "run", "base/lm"],
        ["would", "run", "base/retriever"],
    ]
    assert lines[0].endswith(f"{workdir}/corpus/{workdir_folder(workdir, 'corpus')}")
    assert lines[1].endswith("was interrupted; resumes")
    assert lines[2].endswith("was never run")
    assert "2.5 MB of other settings, which `radit clean` deletes after asking" in lines[-1]
    assert sorted(workdir.rglob("*")) == before


def workdir_folder(workdir: pathlib.Path, stage: str) -> str:
    """The one folder of a stage."""
    (folder,) = (workdir / stage).iterdir()
    return folder.name


def test_json_has_the_same_with_bytes(workdir: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", f"--workdir={workdir}", "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["experiment"], status["workdir"]) == ("tiny", str(workdir))
    stages = {stage["stage"]: stage for stage in status["stages"]}
    assert stages["corpus"]["done"] and not stages["base/lm"]["done"]
    assert stages["corpus"]["bytes"] > 1000 and stages["base/lm"]["bytes"] > 500
    assert stages["export"]["bytes"] == 0
    assert status["superseded_bytes"] >= 2_500_000
    assert status["missing"] == []


def test_sources_that_are_not_there_are_missing_and_no_error(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["status", "wiki_small", "--set=data.folder=nowhere", f"--workdir={tmp_path}", "--json"]
    assert cli.main(words) == 0
    missing = json.loads(capsys.readouterr().out)["missing"]
    assert any("nowhere" in problem for problem in missing)


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (1000, "1.0 kB"), (999_960, "1000.0 kB"), (3.2e15, "3,200.0 TB")]
)
def test_sizes_in_words(num_bytes: float, text: str) -> None:
    assert size_text(num_bytes) == text
