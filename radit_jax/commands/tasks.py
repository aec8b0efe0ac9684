"""`radit tasks`: the tasks to evaluate on and the datasets to train on."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from radit_jax.data.eval_tasks.registry import EVAL_TASKS
from radit_jax.data.eval_tasks.task import EvalTask
from radit_jax.data.finetuning.datasets import DATASETS, Dataset


def parser() -> argparse.ArgumentParser:
    """The command line of `radit tasks`."""
    p = argparse.ArgumentParser(description="List the tasks to evaluate on and the datasets to train on.")
    p.add_argument("--json", action="store_true", help="with the files of every split, for programs")
    p.set_defaults(run=print_tasks)
    return p


def print_tasks(options: argparse.Namespace) -> None:
    """Print both tables."""
    # 1) For a program, all there is.
    tasks = [_task_object(task) for task in EVAL_TASKS.values()]
    datasets = [_dataset_object(dataset) for dataset in DATASETS.values()]
    if options.json:
        print(json.dumps({"tasks": tasks, "datasets": datasets}, indent=1))
        return

    # 2) For a person, the test file alone; other splits are in docs/tasks.md.
    print("tasks, for evaluate.tasks; the files are in evaluate.tasks_folder")
    rows = [("name", "metric", "rule", "answer", "test file")]
    for task in tasks:
        tokens = task["max_new_tokens"]
        answer = f"{tokens} tokens" if tokens else "a choice"
        rows.append((task["name"], task["metric"], task["scoring_rule"], answer, task["files"]["test"][0]))
    print_columns(rows)

    # 3) The datasets, in the order of the paper's table.
    print("\ndatasets, for data.lm_ft_datasets and data.r_ft_datasets; the files are in data.datasets/NAME")
    rows = [("name", "category", "trains", "questions", "from")]
    for dataset in datasets:
        size = f"{dataset['train_size']:,}"
        trains = " ".join(dataset["mixtures"])
        rows.append((dataset["name"], dataset["category"], trains, size, dataset["url"]))
    print_columns(rows)


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of one length, each column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # No spaces at the ends of lines.
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())


def _task_object(task: EvalTask) -> dict[str, Any]:
    """A task for programs: `files` has each split's alternatives, of which the first that exists is read."""
    # The first of a split's files that is there is read.
    files: dict[str, list[str]] = {}
    for split, part in task.splits.items():
        files[split] = [source.path for source in task.sources[part.file]]
    return {
        "name": task.name,
        "metric": task.metric,
        "scoring_rule": task.scoring_rule,
        "max_new_tokens": task.max_new_tokens,
        "files": files,
        "shares": {split: part.share for split, part in task.splits.items()},
    }


def _dataset_object(dataset: Dataset) -> dict[str, Any]:
    """A dataset for programs."""
    return {
        "name": dataset.name,
        "category": dataset.category,
        "mixtures": list(dataset.mixtures),
        "train_size": dataset.train_size,
        "metric": dataset.metric,
        "url": dataset.raw.url,
        "hub": dataset.hub.id,
    }
