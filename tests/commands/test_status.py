"""`radit status`: what is done, what would run, why, and its bytes."""

import argparse
import json
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator

import pytest
from etils import epath

from radit_jax import cli, config, train
from radit_jax.commands.sizes import size_text
from radit_jax.pipeline.run_log import recorded
from radit_jax.pipeline.runner import Run
from radit_jax.runtime.storage.fingerprints import canonical
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.runtime.storage.workdir import Workdir


@pytest.fixture
def workdir(tmp_path: pathlib.Path) -> pathlib.Path:
    """A run whose corpus is done, whose base LM was begun, and that has an output of other settings."""
    run = Run(config.load_experiment(str(train.TINY)), Workdir(tmp_path))
    run.workdir.claim("tiny")
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
    settings, *lines = capsys.readouterr().out.splitlines()
    assert settings == "settings   tiny"
    assert [line.split()[:3] for line in lines[:3]] == [
        ["done", "corpus", lines[0].split()[2]],
        ["would", "run", "base/lm"],
        ["would", "run", "base/retriever"],
    ]
    assert lines[0].endswith(f"{workdir}/corpus/{workdir_folder(workdir, 'corpus')}")
    assert lines[1].endswith("was interrupted; resumes")
    assert lines[2].endswith("was never run")
    assert "2.5 MB of other settings, which `radit clean` frees after asking" in lines[-1]
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


def link(folder: StageFolder, other: StageFolder) -> None:
    """Give the file `shard` of a folder a second name in another folder."""
    other.path.mkdir(parents=True)
    os.link(folder.path / "shard", other.path / "shard")
    (other.path / "shard.sha256").touch()


def test_a_file_with_two_names_counts_once_and_is_freed_with_its_last_name(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(config.load_experiment(str(train.TINY)), Workdir(tmp_path))
    run.workdir.claim("tiny")
    stale, older = (run.workdir.folder("lm_ft", letter * 12) for letter in "ab")
    for folder in (stale, run.folders["lm_ft"]):
        folder.write("shard", bytes(1_000_000))
    # 1) One of the outputs that no setting names shares its file with a current one: nothing goes.
    (stale.path / "shard").unlink()
    os.link(run.folders["lm_ft"].path / "shard", stale.path / "shard")
    assert cli.main(["status", "tiny", f"--workdir={tmp_path}", "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    sidecar = os.stat(stale.path / "shard.sha256").st_size
    (bytes_of_lm_ft,) = [stage["bytes"] for stage in status["stages"] if stage["stage"] == "lm_ft"]
    assert (bytes_of_lm_ft, status["superseded_bytes"]) == (1_000_000 + sidecar, sidecar)
    # 2) With the current output gone, and a third name that goes too, the file counts once.
    run.folders["lm_ft"].clear()
    link(stale, older)
    assert cli.main(["clean", "tiny", f"--workdir={tmp_path}", "--yes"]) == 0
    shown = capsys.readouterr().out
    assert f"   1.0 MB  {stale.home}\n      0 B  {older.home}\n" in shown
    assert shown.endswith("freed 1.0 MB\n")


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (1000, "1.0 kB"), (999_960, "1000.0 kB"), (3.2e15, "3,200.0 TB")]
)
def test_sizes_in_words(num_bytes: float, text: str) -> None:
    assert size_text(num_bytes) == text


@pytest.fixture
def seed_3(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A run with seed 3 that is at work on the base LM."""
    experiment = config.override_settings(config.load_experiment(str(train.TINY)), ["seed=3"])
    run = Run(experiment, Workdir(tmp_path))
    command = ["/opt/bin/radit", "run", "tiny", "--set", "seed=3", f"--workdir={tmp_path}", "--quiet"]
    monkeypatch.setattr(sys, "argv", command)
    with run.workdir.lock(), recorded(experiment, epath.Path(tmp_path), ["corpus", "base/lm"]):
        run.workdir.claim("tiny")
        run.folders["corpus"].finish()
        run.folders["base/lm"].write("shard", bytes(500))
        yield run


def status_of(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    """The status in JSON."""
    assert cli.main(["status", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_workdir_alone_means_the_experiment_and_the_settings_of_its_last_run(
    seed_3: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    path = seed_3.workdir.path
    status = status_of(capsys, f"--workdir={path}", "--set=r_ft.tau=0.5")
    assert status["settings"] == "tiny --set=seed=3 --set=r_ft.tau=0.5"
    assert status["stages"][0]["done"] and status["superseded_bytes"] == 0
    # Named, it is what is named: here the settings of seed 0.
    status = status_of(capsys, "tiny", f"--workdir={path}")
    assert not status["stages"][0]["done"] and status["superseded_bytes"] > 500


def test_an_export_that_names_no_experiment_is_of_the_run_before_it(
    seed_3: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = seed_3.workdir.path
    exported: list[argparse.Namespace] = []
    monkeypatch.setattr(train, "run_stages", exported.append)
    words = ["export", f"--workdir={path}", "--set=export.hf=false"]
    assert cli.main(words) == 0
    assert exported[0].set == ["seed=3", "export.hf=false"]
    assert capsys.readouterr().out == "settings: tiny --set=seed=3 --set=export.hf=false\n"
    # What follows speaks of both commands' settings.
    monkeypatch.setattr(sys, "argv", ["/opt/bin/radit", *words])
    with recorded(seed_3.experiment, epath.Path(path), ["export"]):
        pass
    assert status_of(capsys, f"--workdir={path}")["settings"] == "tiny --set=seed=3 --set=export.hf=false"


def test_the_stage_at_work_is_running_while_the_lock_is_held(
    seed_3: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    path = seed_3.workdir.path
    status = status_of(capsys, f"--workdir={path}")
    assert [stage["stage"] for stage in status["stages"] if stage["running"]] == ["base/lm"]
    assert f"process {os.getpid()} on " in status["in_use_by"]
    assert cli.main(["status", f"--workdir={path}"]) == 0
    assert re.search(rf"^running    base/lm .* by process {os.getpid()} on ", capsys.readouterr().out, re.M)
    # Of other settings nothing is running, but the workdir is in use.
    status = status_of(capsys, "tiny", f"--workdir={path}")
    assert status["in_use_by"] and not any(stage["running"] for stage in status["stages"])


def test_a_run_that_was_killed_is_interrupted(seed_3: Run, capsys: pytest.CaptureFixture[str]) -> None:
    path = seed_3.workdir.path
    # Only the lock tells: the record and the lock's file are as the killed process left them.
    other = path.parent / "killed"
    shutil.copytree(path, other)
    status = status_of(capsys, f"--workdir={other}")
    assert status["in_use_by"] is None
    assert status["stages"][1]["why"] == "was interrupted; resumes"


def test_an_experiment_that_cannot_be_known_is_refused(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("status", "clean"):
        assert cli.main([command, f"--workdir={tmp_path}"]) == 1
        assert "a workdir that says which experiment it is of, got no run's." in capsys.readouterr().err
    Workdir(tmp_path).claim("huts")
    for command in ("status", "clean"):
        assert cli.main([command, f"--workdir={tmp_path}"]) == 1
        assert "got one of 'huts', whose file is not known. Name" in capsys.readouterr().err
        assert cli.main([command, "tiny", f"--workdir={tmp_path}"]) == 1
        assert "expected a workdir of the experiment 'tiny', got one of 'huts'" in capsys.readouterr().err


def test_an_export_of_other_settings_is_told_from_none(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = Workdir(tmp_path)
    workdir.claim("tiny")
    experiment = config.load_experiment(str(train.TINY))
    other = Run(config.override_settings(experiment, ["export.hf=false"]), workdir)
    export = other.folders["export"]
    export.write("answering.json", bytes(2000))
    export.finish(settings=canonical(other.stages["export"].settings))
    status = status_of(capsys, f"--workdir={tmp_path}")
    stage = status["stages"][-1]
    assert (stage["stage"], stage["done"], stage["bytes"]) == ("export", False, 0)
    assert stage["why"] == "changed: export.hf False → True"
    assert status["other_export_bytes"] > 2000
    assert cli.main(["status", f"--workdir={tmp_path}"]) == 0
    assert " of an export of other settings, which the next one replaces\n" in capsys.readouterr().out
