"""The ablation table that a run ends with."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from radit_jax.text.statistics import with_interval

LM_TITLES = {"base_lm": "base LM", "lm_ft_lm": "LM-ft"}
SYSTEM_TITLES = {
    "closed_book": "base LM, no chunks",
    "base": "base LM + base retriever",
    "lm_ft": "LM-ft + base retriever",
    "r_ft": "base LM + R-ft",
    "radit": "RA-DIT: LM-ft + R-ft",
}
RETRIEVER_TITLES = {"base": "base retriever", "r_ft": "R-ft"}
CONTEXT_TITLES = {
    "gold": "a gold chunk",
    "retrieved": "the top chunk",
    "random": "a random chunk",
    "none": "no chunk",
}


def results_table(results: Mapping[str, Any]) -> str:
    """`results.json` as aligned text: of the corpus' own questions, or of tasks."""
    with reading_results():
        return tasks_table(results) if "tasks" in results else ablation_table(results)


@contextlib.contextmanager
def reading_results() -> Iterator[None]:
    """Say in one line that a `results.json` has not the form that evaluate writes."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise ValueError(
            f"results.json: expected the figures that evaluate writes, got another form "
            f"({type(error).__name__}: {first}). Run --stage=evaluate again."
        ) from None


def tasks_table(results: Mapping[str, Any]) -> str:
    """Tasks by systems in each task's metric, with KILT's scores below, and what RA-DIT gains."""
    rows, gains = [], []
    for name, task in results["tasks"].items():
        if not task["systems"]:
            rows.append(
                [f"{name} ({task['num_questions']})", "predictions only", *["–"] * len(SYSTEM_TITLES)]
            )
            continue
        for metric in next(iter(task["systems"].values())):
            rows.append([f"{name} ({task['num_questions']})", metric.replace("_", " "), *_row(task, metric)])
        gains.append([name, *map(with_interval, task["gains"].values())])
    if average := results["average"]:
        rows.append(["average", "mean over tasks", *_row(average, "mean")])
        gains.append(["average", *map(with_interval, average["gains"].values())])
    heads = [name.replace("-", " − ") for name in average["gains"]] if average else []
    parts = [_table(["task (questions)", "metric", *SYSTEM_TITLES.values()], rows)]
    parts += [_table(["gain", *heads], gains)] if average else []
    asked = [f"{name}: {line}" for name, task in results["tasks"].items() if (line := asked_of(task))]
    return "\n\n".join([*parts, "\n".join(asked)]).rstrip()


def asked_of(task: Mapping[str, Any]) -> str:
    """Which questions a task's figures are of, in words; "" where a file of an older run does not say.

    Those that no row holds are left out of them, and counted.

    >>> asked_of({"split": "official", "questions": "all of dev.jsonl", "chose_checkpoint": True})
    "split official, all of dev.jsonl; LM-ft's checkpoint was chosen by some of them"
    """
    if "split" not in task:
        return ""
    chosen = "; LM-ft's checkpoint was chosen by some of them" if task.get("chose_checkpoint") else ""
    left_out = task.get("lines", {}).get("skipped_too_long", 0)
    without = f"; {left_out} too long for the row left out" if left_out else ""
    return f"split {task['split']}, {task['questions']}{chosen}{without}"


def _row(task: Mapping[str, Any], metric: str) -> list[str]:
    return [with_interval(task["systems"][system][metric]) for system in SYSTEM_TITLES]


def ablation_table(results: Mapping[str, Any]) -> str:
    """`results.json` as aligned text: each figure with the low and high end of its 95 % interval."""
    systems = [
        [
            title,
            *(
                with_interval(results["systems"][name][metric])
                for metric in ("exact_match", "f1", "answer_nll")
            ),
        ]
        for name, title in SYSTEM_TITLES.items()
    ]
    gains = [[name.replace("-", " − "), with_interval(gain)] for name, gain in results["gains"].items()]
    metrics = ("gold_recall@1", "gold_recall@10", "answer_recall@1", "answer_recall@10", "mrr")
    retrieval = [
        [title, *(with_interval(results["retrieval"][name][metric]) for metric in metrics)]
        for name, title in RETRIEVER_TITLES.items()
    ]
    context = [
        [
            title,
            *(
                with_interval(results["context"][lm][name][metric])
                for lm in LM_TITLES
                for metric in ("exact_match", "answer_nll")
            ),
        ]
        for name, title in CONTEXT_TITLES.items()
    ]
    return "\n\n".join(
        [
            _table(
                [_asked(results), "exact match", "F1", "NLL per answer token"],
                systems,
            ),
            _table(["gain in exact match", "points of 1"], gains),
            _table(["retrieval", *(metric.replace("_", " ") for metric in metrics)], retrieval),
            _table(["given", "base LM: EM", "NLL", "LM-ft: EM", "NLL"], context),
        ]
    )


def _asked(results: Mapping[str, Any]) -> str:
    left_out = results.get("skipped_too_long", 0)
    return f"{results['num_questions']} questions" + (f", {left_out} too long left out" if left_out else "")


def _table(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]
    ]
    return "\n".join([lines[0], "  ".join("─" * width for width in widths), *lines[1:]])
