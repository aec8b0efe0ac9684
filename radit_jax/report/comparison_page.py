"""Runs side by side on their common questions, as one HTML page like that of a run."""

from collections.abc import Sequence

from markupsafe import Markup

import radit_jax
from radit_jax.report import charts
from radit_jax.report.charts import NARROW, WIDE, Interval
from radit_jax.report.comparison import Comparison, ComparisonRow
from radit_jax.report.rendering import environment, own_file, policy_for
from radit_jax.report.sections import POINTS, RATIO, RATIO_GAIN, SHARE, Cell, Drawing, FigureTable
from radit_jax.text.results_table import SYSTEM_TITLES
from radit_jax.text.statistics import percent_with_interval

RIGHT = "right answers"  # the metric of `comparison.py` that every system has


def render_comparison(comparison: Comparison) -> str:
    """The page of a comparison."""
    tasks = list(dict.fromkeys(row.task for row in comparison.rows))
    settings = []
    for name, values in comparison.settings.items():
        settings.append([name, *map(str, values)])
    return (
        environment()
        .get_template("compare.html")
        .render(
            comparison=comparison,
            headline=_headline(comparison),
            charts=[_gain_chart(comparison, task) for task in tasks],
            tables=[_table(comparison, task) for task in tasks],
            settings=settings,
            emphasised={SYSTEM_TITLES["radit"]},
            policy=policy_for(""),
            style=Markup(own_file("style.css")),
            version=radit_jax.__version__,
        )
    )


def _headline(comparison: Comparison) -> str:
    """How RA-DIT's answers of the last run compare with those of the first."""
    first, last = comparison.names[0], comparison.names[-1]
    num_common = f"{comparison.num_common:,} common questions"
    radit = [row for row in comparison.rows if _is_radit(row)]
    # Of several tasks, or of retrievers alone, no one figure says it.
    if len(radit) != 1:
        return f"{len(comparison.names)} runs on {num_common}"
    gain = percent_with_interval(radit[0].gains[-1])
    return f"{last} over {first}: {gain} points of right answers on {num_common}"


def _is_radit(row: ComparisonRow) -> bool:
    return row.name == SYSTEM_TITLES["radit"] and row.metric == RIGHT


def _gain_chart(comparison: Comparison, task: str) -> Drawing:
    """What each system gains from the first run to each of the others, in right answers."""
    intervals = []
    for row in _rows(comparison, task):
        if row.metric != RIGHT:
            continue
        # With two runs the system alone says which gain it is.
        for name, gain in zip(comparison.names[1:], row.gains[1:], strict=True):
            title = row.name if len(comparison.names) == 2 else f"{row.name}: {name}"
            ends = (gain["value"], gain["low"], gain["high"])
            intervals.append(Interval(title, *ends, is_tuned=_is_radit(row)))
    title = f"Right answers over {comparison.names[0]}, points"
    if task:
        title = f"{task}: {title}"
    narrow = charts.interval_chart(intervals, title, NARROW, is_gain=True)
    wide = charts.interval_chart(intervals, title, WIDE, is_gain=True)
    return Drawing(title, Markup(narrow), Markup(wide))


def _table(comparison: Comparison, task: str) -> FigureTable:
    """Every figure of each run, and the gain of each run over the first."""
    head = ["", comparison.names[0]]
    for name in comparison.names[1:]:
        head += [name, "gain"]
    rows = []
    for row in _rows(comparison, task):
        title = row.name if row.metric == RIGHT else f"{row.name}, {row.metric}"
        rows.append((title, _cells(row)))
    caption = f"{task}: shares in %, gains in points" if task else "Shares in %, gains in points"
    return FigureTable(caption, head, rows)


def _cells(row: ComparisonRow) -> list[Cell]:
    """The first run's figure, then each other one's with its gain."""
    # MRR is no share of questions.
    kind, gain_kind = (RATIO, RATIO_GAIN) if "MRR" in row.metric else (SHARE, POINTS)
    cells: list[Cell] = [(kind, row.figures[0])]
    for figure, gain in zip(row.figures[1:], row.gains[1:], strict=True):
        cells += [(kind, figure), (gain_kind, gain)]
    return cells


def _rows(comparison: Comparison, task: str) -> Sequence[ComparisonRow]:
    return [row for row in comparison.rows if row.task == task]
