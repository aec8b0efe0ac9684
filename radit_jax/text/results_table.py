"""`results.json` as text: the tables that a run prints at its end."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from radit_jax.text.statistics import with_interval

JsonObject = Mapping[str, Any]  # `results.json`, or a part of it

# The keys are those of `results.json`, in the order in which rows and columns are printed.
LM_TITLES = {
    "base_lm": "base LM",
    "lm_ft_lm": "LM-ft",
}
SYSTEM_TITLES = {
    "closed_book": "base LM, no chunks",
    "base": "base LM + base retriever",
    "lm_ft": "LM-ft + base retriever",
    "r_ft": "base LM + R-ft",
    "radit": "RA-DIT: LM-ft + R-ft",
}
RETRIEVER_TITLES = {
    "base": "base retriever",
    "r_ft": "R-ft",
}
# Which one chunk a language model is given, to see how it uses a chunk.
CONTEXT_TITLES = {
    "gold": "a gold chunk",
    "retrieved": "the top chunk",
    "random": "a random chunk",
    "none": "no chunk",
}


def results_table(results: JsonObject) -> str:
    """`results.json` as aligned text, of the corpus' own questions or of tasks."""
    with reading_results():
        return tasks_table(results) if "tasks" in results else ablation_table(results)


@contextlib.contextmanager
def reading_results() -> Iterator[None]:
    """Turn any error in a `results.json` into one line: it has not the form that evaluate writes."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # A message of several lines would hide the remedy.
        first_line = str(error).partition("\n")[0]
        raise ValueError(
            f"results.json: expected the figures that evaluate writes, got another form "
            f"({type(error).__name__}: {first_line}). Run --stage=evaluate again."
        ) from None


def tasks_table(results: JsonObject) -> str:
    """Tasks by systems in each task's metric, with KILT's scores below, then gains, then the questions asked.

    The gains are there where the results have an average, which is where any task has gold answers.
    """
    tasks = results["tasks"]
    average = results["average"]
    # Without any gold answers there are no figures to average, and none to compare.
    tables = [_task_figures(tasks, average)]
    if average:
        tables.append(_task_gains(tasks, average))

    # Which questions the figures are of, a line for each task.
    asked_lines = []
    for name, task in tasks.items():
        asked = asked_of(task)
        if asked:
            asked_lines.append(f"{name}: {asked}")
    return "\n\n".join([*tables, "\n".join(asked_lines)]).rstrip()


def _task_figures(
    tasks: JsonObject,
    average: JsonObject | None,
) -> str:
    """A row for each metric of each task, a column for each system."""
    rows = []
    for name, task in tasks.items():
        title = f"{name} ({task['num_questions']})"
        if not task["systems"]:  # no gold answers: nothing was scored
            empty = ["–"] * len(SYSTEM_TITLES)
            rows.append([title, "predictions only", *empty])
            continue
        # Every system has the same metrics.
        metrics = next(iter(task["systems"].values()))
        for metric in metrics:
            rows.append([title, _spaced(metric), *_systems_row(task, metric)])

    # Only a task's own metric enters the average, KILT's scores do not.
    if average:
        rows.append(["average", "mean over tasks", *_systems_row(average, "mean")])
    head = ["task (questions)", "metric", *SYSTEM_TITLES.values()]
    return _table(head, rows)


def _task_gains(tasks: JsonObject, average: JsonObject) -> str:
    """A row for each scored task and one for the average, a column for each pair of systems."""
    # Tasks without gold answers have predictions only, and no gains.
    rows = []
    for name, task in tasks.items():
        if task["systems"]:
            rows.append([name, *_gains_row(task)])
    rows.append(["average", *_gains_row(average)])
    head = ["gain", *map(_minus, average["gains"])]
    return _table(head, rows)


def asked_of(task: JsonObject) -> str:
    """Which questions a task's figures are of, in words; "" where a file of an older run does not say.

    Questions too long for a row are left out of the figures, and counted here.

    >>> asked_of({"split": "official", "questions": "all of dev.jsonl", "chose_checkpoint": True})
    "split official, all of dev.jsonl; LM-ft's checkpoint was chosen by some of them"
    """
    if "split" not in task:
        return ""

    # A checkpoint that was chosen by these questions makes their figures too good: the reader has to know.
    asked = f"split {task['split']}, {task['questions']}"
    if task.get("chose_checkpoint"):
        asked += "; LM-ft's checkpoint was chosen by some of them"
    left_out = task.get("lines", {}).get("skipped_too_long", 0)
    if left_out:
        asked += f"; {left_out} too long for the row left out"
    return asked


def _systems_row(task: JsonObject, metric: str) -> list[str]:
    systems = task["systems"]
    return [with_interval(systems[system][metric]) for system in SYSTEM_TITLES]


def _gains_row(task: JsonObject) -> list[str]:
    return [with_interval(gain) for gain in task["gains"].values()]


def ablation_table(results: JsonObject) -> str:
    """The results on the corpus' own questions: each figure with the ends of its 95 % interval."""
    if not results["systems"]:  # the retrievers alone were measured
        return _retrieval_figures(results)
    tables = [
        _system_figures(results),
        _gain_figures(results["gains"]),
        _retrieval_figures(results),
        _context_figures(results["context"]),
    ]
    if "few_shot" in results:
        tables.append(_few_shot_figures(results["few_shot"]))
    return "\n\n".join(tables)


def _system_figures(results: JsonObject) -> str:
    """A row for each system: exact match, F1 and −log p of the gold answer."""
    # The head says over how many questions the figures are.
    num_questions = f"{results['num_questions']} questions"
    left_out = results.get("skipped_too_long", 0)
    if left_out:
        num_questions += f", {left_out} too long left out"
    # Lower is better for the likelihood alone.
    metrics = ("exact_match", "f1", "answer_nll")
    rows = _metric_rows(results["systems"], SYSTEM_TITLES, metrics)
    return _table([num_questions, "exact match", "F1", "NLL per answer token"], rows)


def _gain_figures(gains: JsonObject) -> str:
    """A row for each pair of systems: what exact match gains from one to the other."""
    rows = [[_minus(name), with_interval(gain)] for name, gain in gains.items()]
    return _table(["gain in exact match", "points of 1"], rows)


def _retrieval_figures(results: JsonObject) -> str:
    """A row for each retriever: recall of gold chunks and of chunks that hold an answer, and MRR@10.

    Then what R-ft gains, where the results say it: those of older runs do not.
    """
    metrics = (
        "gold_recall@1",
        "gold_recall@10",
        "answer_recall@1",
        "answer_recall@10",
        "mrr",
    )
    rows = _metric_rows(results["retrieval"], RETRIEVER_TITLES, metrics)
    gains = results.get("retrieval_gains")
    if gains is not None:
        rows.append(["R-ft − base", *[with_interval(gains[metric]) for metric in metrics]])
    num_ranked = results.get("num_ranked", results["num_questions"])
    return _table([f"retrieval, {num_ranked} questions", *map(_spaced, metrics)], rows)


def _context_figures(context: JsonObject) -> str:
    """A row for each kind of chunk: what either language model makes of one of it."""
    # Both language models' columns are next to each other, to be compared in one row.
    rows = []
    for kind, title in CONTEXT_TITLES.items():
        row = [title]
        for lm in LM_TITLES:
            figures = context[lm][kind]
            row.append(with_interval(figures["exact_match"]))
            row.append(with_interval(figures["answer_nll"]))
        rows.append(row)
    return _table(["given", "base LM: EM", "NLL", "LM-ft: EM", "NLL"], rows)


def _few_shot_figures(few_shot: JsonObject) -> str:
    """A row for each kind of chunk: the base LM after examples, and what LM-ft gains on it without any."""
    rows = []
    for kind, figures in few_shot["systems"].items():
        cells = [with_interval(figures[metric]) for metric in ("exact_match", "f1")]
        rows.append([CONTEXT_TITLES[kind], *cells, with_interval(few_shot["gains"][kind])])
    given = f"given, {few_shot['num_questions']} questions"
    num_dropped = sum(few_shot.get("shots_dropped", {}).values())
    if num_dropped:
        given += f", {num_dropped} examples that did not fit left out"
    examples = f"base LM after {len(few_shot['examples'])} examples: EM"
    return _table([given, examples, "F1", "LM-ft − it, EM"], rows)


def _metric_rows(
    figures: JsonObject,
    titles: Mapping[str, str],
    metrics: Sequence[str],
) -> list[list[str]]:
    """A row for each key of `titles`, with its title and its figures in these metrics."""
    rows = []
    for name, title in titles.items():
        cells = [with_interval(figures[name][metric]) for metric in metrics]
        rows.append([title, *cells])
    return rows


def _spaced(metric: str) -> str:
    return metric.replace("_", " ")


def _minus(gain: str) -> str:
    """The name of a gain, `after-before`, as a difference."""
    return gain.replace("-", " − ")


def _table(head: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as their widest cell, two spaces apart, with a rule below the head."""
    # A font of one width, as in a terminal, is assumed.
    columns = zip(head, *rows, strict=True)
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in [head, *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells))
    rule = "  ".join("─" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:]])
