"""What the sections of a report show: charts, tables and sentences, out of a `RunData`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from radit_jax.report import charts
from radit_jax.report.charts import Curve
from radit_jax.report.run_records import RecallCurve, RunData
from radit_jax.text.card import asks_of_licence
from radit_jax.text.results_table import (
    RETRIEVER_TITLES,
    SYSTEM_TITLES,
    reading_results,
)

Figure = Mapping[str, float | int | None]
Cell = tuple[str, Figure | None]  # of a table: a format and what is written in it
# How a figure of a table is written: these are names of `FORMATS`.
SHARE, POINTS, NATS, RATIO, RATIO_GAIN = "share", "points", "nats", "ratio", "ratio_gain"
TUNED = "radit"
BEFORE_AND_AFTER = (("dashed", "base retriever"), ("after", "after R-ft"))


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A chart with its title; `wide` is drawn for wide pages, None where `narrow` serves them too."""

    title: str
    narrow: Markup
    wide: Markup | None = None
    keys: Sequence[tuple[str, str]] = ()  # class of style.css, words


@dataclasses.dataclass(frozen=True)
class FigureTable:
    """A table of figures with their intervals; a row is a title and (format, figure) pairs."""

    caption: str
    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    note: str = ""


# ---- formats ----


def percent(value: float | int) -> str:
    """A share in percent, whose sign stands in the table's head.

    >>> percent(0.7467)
    '74.7'
    """
    return f"{100 * value:.1f}"


def in_points(value: float | int) -> str:
    """A difference of shares in points, with its sign.

    >>> in_points(0.376), in_points(-0.02), in_points(-0.0001)
    ('+37.6', '−2.0', '0.0')
    """
    return _signed(100 * value, 1)


def _signed(value: float | int, digits: int = 3) -> str:
    """A number with its sign; none for what is rounded to 0."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


FORMATS: Mapping[str, Callable[[float | int], str]] = {
    # Both of shares, and a figure in each of the other units.
    SHARE: percent,
    POINTS: in_points,
    NATS: "{:.2f}".format,
    RATIO: "{:.3f}".format,
    RATIO_GAIN: _signed,
}


# ---- retrieval ----


def retrieval_charts(run: RunData) -> list[Drawing]:
    """Recall@k before and after R-ft, a chart for each task and each kind of hit."""
    # Both retrievers are in one chart.
    by_chart: dict[tuple[str, str], dict[str, RecallCurve]] = {}
    for curve in run.recall:
        chart = by_chart.setdefault((curve.task, curve.of), {})
        chart[curve.retriever] = curve
    drawings = []
    for (task, of), curves in by_chart.items():
        hit = "a gold chunk" if of == "gold" else "a chunk that holds an answer"
        title = f"{task}: recall@k of {hit}" if task else f"Recall@k of {hit}"
        drawings.append(_recall_chart(title, curves))
    return drawings


def _recall_chart(title: str, by_retriever: Mapping[str, RecallCurve]) -> Drawing:
    # The base retriever is dashed, so that print in one colour tells them apart.
    curves = []
    depth = 1
    for name in RETRIEVER_TITLES:
        if name not in by_retriever:
            continue
        recall = by_retriever[name].recall
        depth = len(recall)
        is_base = name == "base"
        colour = charts.BEFORE if is_base else charts.AFTER
        curves.append(
            Curve(
                range(1, depth + 1),
                recall,
                colour,
                dashed=is_base,
                dots=True,
            )
        )
    # Every rank is a tick of its own where they are few.
    ranks = range(1, depth + 1)
    ticks = ranks if depth <= 12 else None
    svg = charts.line_chart(
        curves,
        title,
        height=200,
        from_zero=True,
        percent=True,
        ticks=ticks,
    )
    return Drawing(title, Markup(svg), keys=BEFORE_AND_AFTER)


@reading_results()
def retrieval_tables(results: Mapping[str, Any]) -> list[FigureTable]:
    """Recall and MRR of both retrievers with the gain; none for tasks, whose files do not have them."""
    if "retrieval" not in results:
        return []
    # Files of older runs have no gains.
    gains = results.get("retrieval_gains", {})
    rows = []
    for metric in results["retrieval"]["base"]:
        # MRR is no share of questions.
        is_ratio = metric == "mrr"
        kind, gain_kind = (RATIO, RATIO_GAIN) if is_ratio else (SHARE, POINTS)
        cells = [(kind, results["retrieval"][name][metric]) for name in RETRIEVER_TITLES]
        cells.append((gain_kind, gains.get(metric)))
        rows.append((_metric_title(metric), cells))
    num_ranked = results.get("num_ranked", results["num_questions"])
    head = ["%", "Base retriever", "After R-ft", "Gain, points"]
    return [FigureTable(f"{num_ranked:,} questions", head, rows)]


def _metric_title(metric: str) -> str:
    """A metric's key as a person reads it.

    >>> _metric_title("gold_recall@1"), _metric_title("mrr")
    ('Recall@1, gold chunk', 'MRR@10, chunk with an answer')
    """
    if metric == "mrr":
        return "MRR@10, chunk with an answer"
    of, _, cutoff = metric.partition("_recall@")
    return f"Recall@{cutoff}, {'gold chunk' if of == 'gold' else 'chunk with an answer'}"


# ---- answers in probability and length ----


def calibration_charts(run: RunData) -> list[Drawing]:
    """RA-DIT's probabilities against how often they are right, a chart for each task."""
    drawings = []
    for calibration in run.calibration:
        if calibration.system != TUNED or not calibration.bins:
            continue
        # A dot for each range of probabilities that has answers.
        points = [(one.probability, one.score, one.count) for one in calibration.bins]
        title = "Share right, by probability"
        if calibration.task:
            title = f"{calibration.task}: {title[0].lower()}{title[1:]}"
        svg = charts.reliability_chart(points, title)
        drawings.append(Drawing(title, Markup(svg)))
    return drawings


def calibration_rows(run: RunData) -> list[list[str]]:
    """Each system's calibration error, in points."""
    # Every system that gives probabilities, also those without a chart.
    rows = []
    for calibration in run.calibration:
        title = SYSTEM_TITLES.get(calibration.system, calibration.system)
        name = f"{calibration.task}, {title}" if calibration.task else title
        num_answers = sum(one.count for one in calibration.bins)
        rows.append([name, f"{100 * calibration.error:.1f}", f"{num_answers:,}"])
    return rows


def length_charts(run: RunData) -> list[Drawing]:
    """Words of RA-DIT's answers next to those of the first gold answers, a chart for each task."""
    # Each task's counts by system, `gold` among them.
    by_task: dict[str, dict[str, Mapping[int, int]]] = {}
    for lengths in run.lengths:
        by_task.setdefault(lengths.task, {})[lengths.system] = lengths.counts
    drawings = []
    for task, counts in by_task.items():
        if TUNED in counts:
            drawings.append(_length_chart(task, counts))
    return drawings


def _length_chart(
    task: str,
    counts: Mapping[str, Mapping[int, int]],
) -> Drawing:
    # Words from none to the longest; many lengths share bars.
    shown = [counts[name] for name in ("gold", TUNED) if name in counts]
    longest = max(max(one, default=0) for one in shown)
    size = -(-(longest + 1) // 16)
    num_bars = -(-(longest + 1) // size)
    heights = []
    for one in shown:
        bars = [0] * num_bars
        for words, count in one.items():
            bars[words // size] += count
        heights.append(bars)
    edges = [size * place - 0.5 for place in range(num_bars + 1)]
    title = f"{task}: words in an answer" if task else "Words in an answer"
    svg = charts.histogram(edges, heights, title)
    keys = [("before block", "first gold answer"), ("after block", "RA-DIT")]
    return Drawing(
        title,
        Markup(svg),
        keys=keys[-len(shown) :],
    )


# ---- what the run was made of ----


def licence_rows(run: RunData) -> list[list[str]]:
    """A row for each thing that the models were made of, and what its licence asks."""
    rows = []
    for origin in run.licences:
        # An origin without a licence is no licence to publish.
        licence = origin.licence or "unknown: look it up before you publish"
        if origin.source:
            licence = f"{licence} (by {origin.source})"
        rows.append([origin.role, origin.public_name, licence, asks_of_licence(origin.licence)])
    return rows
