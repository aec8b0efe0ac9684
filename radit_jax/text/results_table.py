"""`results.json` as text: the tables that a run prints at its end, at most 80 columns wide.

Shares are in percent. Where five systems stand next to each other only `results.json` has their intervals.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from radit_jax.command_line import run_stage
from radit_jax.text.statistics import in_percent, percent_with_interval

JsonObject = Mapping[str, Any]  # `results.json`, or a part of it

# The keys are those of `results.json`, in the order in which rows and columns are printed.
LM_TITLES = {
    "base_lm": "base LM",
    "lm_ft_lm": "LM-ft",
}
SYSTEM_TITLES = {
    "closed_book": "base LM, no chunks",
    "base": "base LM, base retriever",
    "lm_ft": "LM-ft, base retriever",
    "r_ft": "base LM, R-ft",
    "radit": "RA-DIT: LM-ft, R-ft",
}
# The same at the head of a narrow column.
SYSTEM_HEADS = {
    "closed_book": "no chunks",
    "base": "base",
    "lm_ft": "LM-ft",
    "r_ft": "R-ft",
    "radit": "RA-DIT",
}
SHOWN_GAINS = ("lm_ft-base", "r_ft-base", "radit-base")  # of tasks; a fourth is in results.json alone
METRIC_TITLES = {
    "gold_recall@1": "gold chunk first",
    "gold_recall@10": "gold chunk in first 10",
    "answer_recall@1": "an answer in the first",
    "answer_recall@10": "an answer in first 10",
    "mrr": "MRR@10",
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
            f"({type(error).__name__}: {first_line}). Run {run_stage('evaluate')}."
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
            empty = ["–"] * len(SYSTEM_HEADS)
            rows.append([title, "predictions only", *empty])
            continue
        # Every system has the same metrics.
        metrics = next(iter(task["systems"].values()))
        for metric in metrics:
            rows.append([title, _spaced(metric), *_systems_row(task, metric)])

    # Only a task's own metric enters the average, KILT's scores do not.
    if average:
        rows.append(["average", "mean over tasks", *_systems_row(average, "mean")])
    head = ["task (questions)", "metric, %", *SYSTEM_HEADS.values()]
    return _table(head, rows)


def _task_gains(tasks: JsonObject, average: JsonObject) -> str:
    """A row for each scored task and one for the average, a column for each pair of systems."""
    # Tasks without gold answers have predictions only, and no gains.
    rows = []
    for name, task in tasks.items():
        if task["systems"]:
            rows.append([name, *_gains_row(task)])
    rows.append(["average", *_gains_row(average)])
    head = ["gain, points", *map(_minus, SHOWN_GAINS)]
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
    return [in_percent(systems[system][metric]["value"]) for system in SYSTEM_HEADS]


def _gains_row(task: JsonObject) -> list[str]:
    return [percent_with_interval(task["gains"][name]) for name in SHOWN_GAINS]


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
    # The title says over how many questions the figures are.
    title = f"answers, {results['num_questions']} questions"
    left_out = results.get("skipped_too_long", 0)
    if left_out:
        title += f", {left_out} too long left out"
    # Lower is better for the likelihood alone.
    rows = []
    for name, system in SYSTEM_TITLES.items():
        figures = results["systems"][name]
        shares = [percent_with_interval(figures[metric]) for metric in ("exact_match", "f1")]
        nll = _nll(figures["answer_nll"], with_ends=True)
        rows.append([system, *shares, nll])
    head = [
        "system",
        "exact match, %",
        "F1, %",
        "NLL per token",
    ]
    return _titled(title, head, rows)


def _gain_figures(gains: JsonObject) -> str:
    """A row for each pair of systems: what exact match gains from one to the other."""
    rows = []
    for name, gain in gains.items():
        rows.append([_minus(name), percent_with_interval(gain)])
    return _table(["gain in exact match", "points"], rows)


def _retrieval_figures(results: JsonObject) -> str:
    """A row for each metric: recall of gold chunks and of chunks that hold an answer, and MRR@10.

    A column for each retriever, and one for what R-ft gains where the results say it: older ones do not.
    """
    gains = results.get("retrieval_gains")
    head = ["retrieval, %", *RETRIEVER_TITLES.values()]
    if gains is not None:
        head.append("R-ft − base")
    rows = []
    for metric, name in METRIC_TITLES.items():
        figures = [results["retrieval"][retriever][metric] for retriever in RETRIEVER_TITLES]
        if gains is not None:
            figures.append(gains[metric])
        rows.append([name, *map(percent_with_interval, figures)])
    num_ranked = results.get("num_ranked", results["num_questions"])
    return _titled(f"retrieval, {num_ranked} questions", head, rows)


def _context_figures(context: JsonObject) -> str:
    """A row for each kind of chunk: what either language model makes of one of it."""
    # Both language models' columns are next to each other, to be compared in one row.
    rows = []
    for kind, title in CONTEXT_TITLES.items():
        row = [title]
        for lm in LM_TITLES:
            figures = context[lm][kind]
            row.append(percent_with_interval(figures["exact_match"]))
            row.append(_nll(figures["answer_nll"]))
        rows.append(row)
    head = [
        "given",
        "base LM, %",
        "NLL",
        "LM-ft, %",
        "NLL",
    ]
    return _titled("answers with one chunk", head, rows)


def _few_shot_figures(few_shot: JsonObject) -> str:
    """A row for each kind of chunk: the base LM after examples, and what LM-ft gains on it without any."""
    rows = []
    for kind, figures in few_shot["systems"].items():
        cells = [percent_with_interval(figures[metric]) for metric in ("exact_match", "f1")]
        gain = percent_with_interval(few_shot["gains"][kind])
        rows.append([CONTEXT_TITLES[kind], *cells, gain])
    title = f"base LM after {len(few_shot['examples'])} examples, {few_shot['num_questions']} questions"
    num_dropped = sum(few_shot.get("shots_dropped", {}).values())
    if num_dropped:
        title += f", {num_dropped} examples that did not fit left out"
    head = [
        "given",
        "exact match, %",
        "F1, %",
        "LM-ft − it",
    ]
    return _titled(title, head, rows)


def _nll(figure: JsonObject, with_ends: bool = False) -> str:
    """Nats, in three digits."""
    value, low, high = figure["value"], figure["low"], figure["high"]
    if value is None:
        return "–"
    if not with_ends or low is None:
        return f"{value:#.3g}"
    return f"{value:#.3g} [{low:#.3g}, {high:#.3g}]"


def _spaced(metric: str) -> str:
    return metric.replace("_", " ")


def _minus(gain: str) -> str:
    """The name of a gain, `after-before`, as a difference.

    >>> _minus("radit-base")
    'RA-DIT − base'
    """
    after, _, before = gain.partition("-")
    return f"{SYSTEM_HEADS[after]} − {SYSTEM_HEADS[before]}"


def _titled(title: str, head: list[str], rows: list[list[str]]) -> str:
    return f"{title}\n{_table(head, rows)}"


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
