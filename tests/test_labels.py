"""Whole runs whose labels come from elsewhere: a file of scores, or a checkpoint (slow)."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from radit_jax.runtime.pretrained.model_io import load_model

pytestmark = pytest.mark.slow

SETTINGS = [
    "data.train_entities=40",
    "data.dev_entities=10",
    "data.test_entities=10",
    "data.pretraining_entities=300",
    "data.documents=600",
    "base.lm.optimizer.steps=30",
    "base.retriever.optimizer.steps=20",
    "lm_ft.optimizer.steps=20",
    "lm_ft.validate_every=10",
    "r_ft.optimizer.steps=20",
    "r_ft.validate_every=20",
    "export.lsr_scores=true",
    "export.measured=false",
    "export.run_depth=0",
]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


def run(workdir: pathlib.Path, *settings: str) -> pathlib.Path:
    """Make the export of tiny with these settings, and return its folder."""
    options = [f"--set={setting}" for setting in (*SETTINGS, *settings)]
    command = [sys.executable, "-m", "radit_jax.train", "--stage=export", f"--workdir={workdir}", *options]
    subprocess.run(command, check=True, env=ENVIRONMENT)
    return workdir / "export"


def query_encoder(export: pathlib.Path) -> list[bytes]:
    params = load_model(export / "query_encoder").params
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)]


def scores(export: pathlib.Path) -> dict[str, dict]:
    """What each line says of its chunks, without the names of the models that scored."""
    lines = [json.loads(line) for line in (export / "lsr_scores.jsonl").read_text().splitlines()]
    return {line["id"]: {name: value for name, value in line.items() if name != "scorer"} for line in lines}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The export of a run that labels with its tuned language model."""
    return run(tmp_path_factory.mktemp("first"), "score.language_model=lm_ft")


def test_exported_scores_give_another_run_the_same_retriever(exported: pathlib.Path) -> None:
    other = exported.parent.parent / "imported"
    again = run(other, f"score.language_model={exported / 'lsr_scores.jsonl'}")
    assert query_encoder(again) == query_encoder(exported)
    assert scores(again) == scores(exported)
    assert "| labels | lm_ft | unknown" in (again / "README.md").read_text()


@pytest.mark.parametrize("form", ["lm", "hf/lm"])
def test_an_exported_model_labels_another_run_as_its_own(exported: pathlib.Path, form: str) -> None:
    other = exported.parent.parent / f"labelled-{form.replace('/', '-')}"
    again = run(other, f"score.language_model={exported / form}")
    assert scores(again) == scores(exported)
    assert query_encoder(again) == query_encoder(exported)
    assert f"| labels | {exported / form} |" in (again / "README.md").read_text()
