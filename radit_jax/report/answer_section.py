"""The section of answers: the systems, what they gain, and what one chunk is worth, in charts and tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from radit_jax.report import charts
from radit_jax.report.charts import NARROW, WIDE, Interval
from radit_jax.report.sections import NATS, POINTS, SHARE, TUNED, Cell, Drawing, Figure, FigureTable
from radit_jax.text.results_table import CONTEXT_TITLES, LM_TITLES, SYSTEM_TITLES, asked_of, reading_results


def has_answers(results: Mapping[str, Any]) -> bool:
    """Whether any system answered: evaluation may have measured the retrievers alone."""
    return bool(results.get("systems") or results.get("tasks"))


@reading_results()
def answer_charts(results: Mapping[str, Any]) -> list[Drawing]:
    """The systems and their gains as intervals: of the corpus' questions, or on average over tasks."""
    # 1) Which figures there are.
    if not has_answers(results):
        return []
    if "tasks" in results:
        average = results["average"]
        if not average:
            return []
        figures = {name: system["mean"] for name, system in average["systems"].items()}
        gains, metric = average["gains"], "Mean over tasks"
    else:
        figures = {name: system["exact_match"] for name, system in results["systems"].items()}
        gains, metric = results["gains"], "Exact match"

    # 2) A row for each system, and one for each gain.
    systems = []
    for name, title in SYSTEM_TITLES.items():
        is_tuned = name == TUNED
        systems.append(_interval(title, figures[name], is_tuned))
    changes = []
    for name, figure in gains.items():
        is_tuned = name.startswith(TUNED)
        changes.append(_interval(gain_title(name), figure, is_tuned))

    # 3) A chart of each kind.
    gain_metric = metric[0].lower() + metric[1:]
    of_systems = _intervals(metric, systems)
    of_gains = _intervals(f"Gain in {gain_metric}, points", changes, is_gain=True)
    return [of_systems, of_gains]


def gain_title(name: str) -> str:
    """The name of a gain in `results.json`, `after-before`, in words.

    >>> gain_title("radit-lm_ft")
    'RA-DIT over LM-ft'
    """
    # The key of a gain names two systems.
    words = {"lm_ft": "LM-ft", "r_ft": "R-ft", "radit": "RA-DIT", "base": "base"}
    after, _, before = name.partition("-")
    return f"{words.get(after, after)} over {words.get(before, before)}"


@reading_results()
def answer_tables(results: Mapping[str, Any]) -> list[FigureTable]:
    """The systems' figures in tables, then what one chunk is worth to each language model."""
    if not has_answers(results):
        return []
    if "tasks" in results:
        return _task_tables(results)
    tables = [
        _systems_table(results),
        _gains_table(results["gains"]),
        _context_table(results["context"]),
    ]
    # The base LM is asked after examples only where the settings say so.
    if "few_shot" in results:
        tables.append(_few_shot_table(results["few_shot"]))
    return tables


def _systems_table(results: Mapping[str, Any]) -> FigureTable:
    rows = []
    for name, title in SYSTEM_TITLES.items():
        system = results["systems"][name]
        cells = [
            (SHARE, system["exact_match"]),
            (SHARE, system["f1"]),
            (NATS, system["answer_nll"]),
        ]
        rows.append((title, cells))
    # Those that are too long for a row count in no figure.
    left_out = results.get("skipped_too_long", 0)
    note = f"{left_out} questions too long for a row are left out." if left_out else ""
    head = ["System", "Exact match, %", "F1, %", "−log p, nats a token"]
    return FigureTable("Answers", head, rows, note)


def _gains_table(gains: Mapping[str, Figure]) -> FigureTable:
    rows = []
    for name, figure in gains.items():
        rows.append((gain_title(name), [(POINTS, figure)]))
    head = ["Change", "Exact match, points"]
    return FigureTable("Gains", head, rows)


def _context_table(context: Mapping[str, Any]) -> FigureTable:
    # Both language models' columns are next to each other, to be compared in one row.
    rows = []
    for kind, title in CONTEXT_TITLES.items():
        cells: list[Cell] = []
        for lm in LM_TITLES:
            figures = context[lm][kind]
            cells += [(SHARE, figures["exact_match"]), (NATS, figures["answer_nll"])]
        rows.append((title, cells))
    head = ["Given", "Base LM, %", "−log p", "LM-ft, %", "−log p"]
    return FigureTable("Exact match with one chunk", head, rows)


def _few_shot_table(few_shot: Mapping[str, Any]) -> FigureTable:
    rows = []
    for kind, figures in few_shot["systems"].items():
        cells = [
            (SHARE, figures["exact_match"]),
            (SHARE, figures["f1"]),
            (POINTS, few_shot["gains"][kind]),
        ]
        rows.append((CONTEXT_TITLES[kind], cells))
    caption = f"The base LM after {len(few_shot['examples'])} examples, {few_shot['num_questions']} questions"
    return FigureTable(caption, ["Given", "Exact match, %", "F1, %", "LM-ft over it, points"], rows)


def _task_tables(results: Mapping[str, Any]) -> list[FigureTable]:
    """A row for each metric of each task: the five systems, and then the gains."""
    system_rows, gain_rows, asked = [], [], []
    for name, task in results["tasks"].items():
        # Which questions the figures are of.
        if asked_of(task):
            asked.append(f"{name}: {asked_of(task)}.")
        if not task["systems"]:
            asked.append(f"{name} has no gold answers here: its predictions are in a file.")
            continue
        for metric in task["systems"][TUNED]:
            title = f"{name}, {metric.replace('_', ' ')}"
            system_rows.append((title, _system_cells(task, metric)))
        gain_rows.append((name, _gain_cells(task)))

    # The average stands last, where there is one.
    average = results["average"]
    if not average:
        return []
    system_rows.append(("Average", _system_cells(average, "mean")))
    gain_rows.append(("Average", _gain_cells(average)))
    system_head = ["Task and metric", *SYSTEM_TITLES.values()]
    gain_head = ["Task", *map(gain_title, average["gains"])]
    note = " ".join(asked)
    return [
        FigureTable("Systems by task, %", system_head, system_rows),
        FigureTable("Gains by task, points", gain_head, gain_rows, note),
    ]


def _system_cells(task: Mapping[str, Any], metric: str) -> list[Cell]:
    """A metric of each system."""
    cells = []
    for system in SYSTEM_TITLES:
        cells.append((SHARE, task["systems"][system][metric]))
    return cells


def _gain_cells(task: Mapping[str, Any]) -> list[Cell]:
    return [(POINTS, gain) for gain in task["gains"].values()]


# ---- drawings ----


def _interval(title: str, figure: Figure, is_tuned: bool) -> Interval:
    return Interval(
        title,
        figure["value"],
        figure["low"],
        figure["high"],
        is_tuned,
    )


def _intervals(title: str, intervals: Sequence[Interval], *, is_gain: bool = False) -> Drawing:
    """The same rows for a phone and for a page."""
    label = f"{title}, with 95 % intervals"
    # Drawn twice: a phone's chart would be too small to read in half its size.
    narrow = charts.interval_chart(intervals, label, NARROW, is_gain=is_gain)
    wide = charts.interval_chart(intervals, label, WIDE, is_gain=is_gain)
    return Drawing(title, Markup(narrow), Markup(wide))
