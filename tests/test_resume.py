"""Kills and seeds: whole runs in processes of their own (slow)."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from radit_jax import config, train
from radit_jax.pipeline import graph, runner
from radit_jax.runtime.storage.workdir import Workdir

pytestmark = pytest.mark.slow

# Small enough for one core, long enough that every training stage has checkpoints to be killed between.
SETTINGS = [
    "data.train_entities=60",
    "data.dev_entities=10",
    "data.test_entities=20",
    "data.pretraining_entities=600",
    "data.documents=1500",
    "base.lm.optimizer.steps=40",
    "base.retriever.optimizer.steps=30",
    "lm_ft.optimizer.steps=40",
    "lm_ft.checkpoint_every=10",
    "lm_ft.validate_every=20",
    "score.shard_size=500",
    "r_ft.optimizer.steps=40",
    "r_ft.refresh_every=20",
    "r_ft.checkpoint_every=10",
    "r_ft.validate_every=20",
    "score.language_model=lm_ft",
]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


def command(workdir: pathlib.Path) -> list[str]:
    settings = [f"--set={assignment}" for assignment in SETTINGS]
    return [sys.executable, "-m", "radit_jax.train", "--stage=all", f"--workdir={workdir}", *settings]


def run(workdir: pathlib.Path) -> None:
    subprocess.run(command(workdir), check=True, env=ENVIRONMENT, capture_output=True)


def kill_inside(stage: str, workdir: pathlib.Path) -> bool:
    """Start the command and kill it once `stage` has begun; whether the stage was not over by then."""
    experiment = config.override_settings(config.load_experiment(str(train.TINY)), SETTINGS)
    with subprocess.Popen(command(workdir), env=ENVIRONMENT, stdout=-3, stderr=-3) as process:
        while process.poll() is None:
            # Settings alone name the folders, so they are known before anything has run.
            folder = runner.Run(experiment, Workdir(workdir)).folders[stage]
            if folder.half_written:
                time.sleep(0.5)
            if folder.half_written or folder.complete:
                process.send_signal(signal.SIGKILL)
                process.wait()
                return not runner.Run(experiment, Workdir(workdir)).folders[stage].complete
            time.sleep(0.02)
    return False


def test_a_run_killed_in_every_stage_equals_one_that_was_not(tmp_path: pathlib.Path) -> None:
    run(tmp_path / "whole")
    killed = []
    names = graph.stages(config.load_experiment(str(train.TINY)))
    for stage in names:
        done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("killed/*/*/manifest.json")}
        if kill_inside(stage, tmp_path / "killed"):
            killed.append(stage)
        for path, time_ns in done.items():
            assert path.stat().st_mtime_ns == time_ns, f"{path} was made again"
    run(tmp_path / "killed")
    whole, resumed = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "killed")
    )
    assert whole == resumed
    # Stages that take less than the half second may be over before they can be killed.
    assert {"base/lm", "base/retriever", "lm_ft", "score", "r_ft", "evaluate"} <= set(killed)


def test_two_runs_with_one_seed_are_identical(tmp_path: pathlib.Path) -> None:
    for name in ("first", "second"):
        run(tmp_path / name)
    first, second = ((tmp_path / name / "results.json").read_bytes() for name in ("first", "second"))
    assert first == second
