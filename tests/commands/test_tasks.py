"""`radit tasks` lists what can be evaluated and trained on."""

import json

import pytest

from radit_jax import cli
from radit_jax.data.eval_tasks.registry import EVAL_TASKS
from radit_jax.data.finetuning.datasets import DATASETS


def test_a_person_sees_every_task_and_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tasks"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["fever", "accuracy", "sum", "16", "tokens", "kilt/fever-dev-kilt.jsonl"] in lines
    assert ["mmlu", "accuracy", "sum", "a", "choice", "mmlu/test"] in lines
    names = {line[0] for line in lines if line}
    assert {*EVAL_TASKS, *DATASETS} <= names


def test_a_program_gets_every_split_with_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tasks", "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)
    tasks = {task["name"]: task for task in tables["tasks"]}
    assert list(tasks) == list(EVAL_TASKS)
    assert tasks["fever"]["files"]["train"] == ["kilt/fever-train-kilt.jsonl", "fever/train.jsonl"]
    assert tasks["fever"]["shares"]["dev"] == "one half"
    assert [dataset["name"] for dataset in tables["datasets"]] == list(DATASETS)
