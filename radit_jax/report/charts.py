"""Charts of the report as SVG that takes its colours and its font from the page.

Matplotlib draws them when the page is written, so the page ships no JavaScript library. Of the two libraries
that were weighed, matplotlib 3.11 with what it needs besides NumPy is a download of 25 MB, and most of its
users have it; Altair 6.3 with vl-convert, which brings a JavaScript engine to draw without a browser, is one
of 35 MB. A chart of ours takes about 30 ms.

Neither library knows the page's colours, because a dark page has others. So every colour here is a number
that stands for a variable of the style sheet, and `_svg` writes the variable in its place. Text stays text:
it can be selected, read aloud, and has the page's font.

Lengths are CSS pixels. A chart is drawn as wide as a phone (`NARROW`), or twice, for a page's width too.
"""

import dataclasses
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Number = float | int
Numbers = Sequence[Number]
NARROW, WIDE = 328, 660  # a phone of 360 pixels less its margins; the column of a page

# Each stands for a variable of style.css.
INK, MUTED, RULE, BEFORE, AFTER, SOFT = "#000001", "#000002", "#000003", "#000004", "#000005", "#000006"
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    BEFORE: "var(--before)",
    AFTER: "var(--after)",
    SOFT: "var(--soft)",
}
_COLOUR = re.compile("|".join(_VARIABLES))
_GROUP_ID = re.compile(r'<g id="[^"]*"')  # the same in every chart, and a page may have an id only once
_PROLOGUE = re.compile(r"\A.*?(?=<svg)", re.DOTALL)
# The style would hold for the whole page, and the page has its own font.
_LEFT_OUT = re.compile(
    r"\s*<metadata>.*?</metadata>|\s*<defs>\s*<style.*?</style>\s*</defs>| font-family: [^;]*;", re.DOTALL
)
_SIZE = re.compile(r' (?:width|height)="[\d.]+pt"')

_STYLE: Mapping[str, Any] = {
    # Text that stays text, in the size of the page's notes.
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    # No frame: a base line, and thin lines to read values by.
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 11,
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.75,
    # Ticks on the base line alone.
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    # Lines that stand out from those.
    "lines.linewidth": 1.75,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "text.parse_math": False,  # a title may have a dollar sign
}


@dataclasses.dataclass(frozen=True)
class Interval:
    """A row of `interval_chart`: a value with the ends of its 95 % interval, None where there is none."""

    title: str
    value: Number | None
    low: Number | None
    high: Number | None
    is_tuned: bool = False  # drawn in the accent's colour


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line of `line_chart`, through points in the order of `x`."""

    x: Numbers
    y: Numbers
    colour: str = AFTER
    dashed: bool = False
    dots: bool = False
    width: Number = 1.75


@dataclasses.dataclass(frozen=True)
class Bar:
    """A row of `stacked_bars`: its parts from the left, in the colours of `stacked_bars`."""

    title: str
    parts: Numbers


def interval_chart(
    intervals: Sequence[Interval],
    label: str,
    width: int,
    *,
    is_gain: bool = False,
) -> str:
    """A row for each interval, the first on top: a dot for the value, a line for the interval.

    Values are shares, written in percent, or gains, written in points with a line at 0.
    """

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for row, interval in enumerate(intervals):
            _draw_interval(axes, row, interval)
        # The first row is on top. Titles are in the page's ink: they are what a reader looks for.
        axes.set_ylim(len(intervals) - 0.5, -0.5)
        titles = [interval.title for interval in intervals]
        axes.set_yticks(range(len(titles)), titles, color=INK)
        axes.grid(False, axis="y")
        axes.grid(True, axis="x")
        if is_gain:
            axes.axvline(0, color=MUTED, linewidth=1, zorder=0.5)
            axes.xaxis.set_major_formatter(_points)
        else:
            axes.set_xlim(left=0)
            axes.xaxis.set_major_formatter(_percent)

    return _svg(draw, label, width, height=24 * len(intervals) + 28)


def line_chart(
    curves: Sequence[Curve],
    label: str,
    *,
    width: int = NARROW,
    height: int = 168,
    marks: Numbers = (),
    from_zero: bool = False,
    percent: bool = False,
    ticks: Numbers | None = None,
) -> str:
    """Curves over one axis; `marks` are places on it with a dotted line, such as a resumed run's start."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        # Later curves lie on top.
        for curve in curves:
            _draw_curve(axes, curve)
        for mark in marks:
            axes.axvline(mark, color=MUTED, linewidth=1, linestyle=(0, (1, 3)))
        _set_scales(axes, from_zero=from_zero, percent=percent)
        if ticks is not None:
            axes.set_xticks(ticks)

    return _svg(draw, label, width, height)


def reliability_chart(points: Sequence[tuple[Number, Number, int]], label: str) -> str:
    """How often answers are right against the probability that they have; (probability, share, count).

    A point's area grows with the number of its answers. On the diagonal probabilities are what they say.
    """

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        # What probabilities would be if they were what they say.
        axes.plot([0, 1], [0, 1], color=BEFORE, linewidth=1, linestyle=(0, (4, 3)))
        # The dots.
        largest = max(count for _, _, count in points)
        areas = [12 + 110 * count / largest for _, _, count in points]
        probabilities = [probability for probability, _, _ in points]
        shares = [share for _, share, _ in points]
        axes.plot(probabilities, shares, color=AFTER, linewidth=1)
        axes.scatter(probabilities, shares, s=areas, color=AFTER, linewidth=0, zorder=3, clip_on=False)
        # Both axes are probabilities, in the same scale.
        quarters = [0, 0.25, 0.5, 0.75, 1]
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.06)
        axes.set_xticks(quarters)
        axes.set_yticks(quarters)
        axes.xaxis.set_major_formatter(_percent)
        axes.yaxis.set_major_formatter(_percent)

    return _svg(draw, label, NARROW, height=260)


def histogram(edges: Numbers, counts: Sequence[Sequence[int]], label: str) -> str:
    """Bars next to each other for one or two sets of counts: the first in grey, the last in the accent."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        # One set alone is in the accent's colour.
        colours = [BEFORE, AFTER][-len(counts) :]
        share = 0.84 / len(counts)
        # The bars of a range lie side by side, with a little room at both its ends.
        for number, (set_counts, colour) in enumerate(zip(counts, colours, strict=True)):
            lefts = []
            widths = []
            for left, right in zip(edges[:-1], edges[1:], strict=True):
                widths.append(share * (right - left))
                lefts.append(left + (0.08 + share * number) * (right - left))
            axes.bar(lefts, set_counts, widths, align="edge", color=colour, linewidth=0)
        _set_scales(axes, from_zero=True, percent=False)

    return _svg(draw, label, NARROW, height=168)


def stacked_bars(bars: Sequence[Bar], colours: Sequence[str], label: str, width: int) -> str:
    """A row for each bar, the first on top, its parts side by side."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for row, bar in enumerate(bars):
            # A part begins where the one before it ends.
            start = 0.0
            for part, colour in zip(bar.parts, colours, strict=True):
                axes.barh(row, part, 0.56, left=start, color=colour, linewidth=0)
                start += part
        axes.set_ylim(len(bars) - 0.5, -0.5)
        titles = [bar.title for bar in bars]
        axes.set_yticks(range(len(titles)), titles, color=INK)
        axes.grid(False, axis="y")
        axes.grid(True, axis="x")
        axes.locator_params(axis="x", nbins=5)

    return _svg(draw, label, width, height=24 * len(bars) + 28)


# ---- parts of charts ----


def _draw_interval(axes: Any, row: int, interval: Interval) -> None:
    if interval.value is None:
        return
    colour = AFTER if interval.is_tuned else BEFORE
    if interval.low is not None:
        ends = [interval.low, interval.high]
        axes.plot(ends, [row, row], color=colour, linewidth=2.5, alpha=0.55)
    # A dot at the axis' end is shown whole.
    axes.plot([interval.value], [row], "o", color=colour, markersize=7, markeredgewidth=0, clip_on=False)


def _draw_curve(axes: Any, curve: Curve) -> None:
    axes.plot(
        curve.x,
        curve.y,
        color=curve.colour,
        linewidth=curve.width,
        linestyle=(0, (4, 2.5)) if curve.dashed else "-",
        marker="o" if curve.dots else None,
        markersize=4.5,
        markeredgewidth=0,
    )


def _set_scales(axes: Any, *, from_zero: bool, percent: bool) -> None:
    """Few ticks, with names that do not run into each other at a phone's width."""
    # Steps, ranks and words are counted.
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.locator_params(axis="y", nbins=5)
    # Curves end close to the edges.
    axes.margins(x=0.02)
    if from_zero:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(_short)
    axes.yaxis.set_major_formatter(_percent if percent else _short)


# Matplotlib gives the numbers of ticks as NumPy's, and their places.


def _percent(value: Any, place: object = None) -> str:
    return f"{100 * value:.3g} %".replace("-", "−")


def _points(value: Any, place: object = None) -> str:
    return f"{100 * value:+.3g}".replace("-", "−") if value else "0"


def _short(value: Any, place: object = None) -> str:
    """A tick's number in few characters.

    >>> [_short(value) for value in (0, 0.0005, 12_000, 2.5)]
    ['0', '0.0005', '12k', '2.5']
    """
    # Thousands and millions by their letters.
    if abs(value) >= 1e6:
        text = f"{value / 1e6:.4g}M"
    elif abs(value) >= 1e4:
        text = f"{value / 1e3:.4g}k"
    elif 0 < abs(value) < 1e-4:
        text = f"{value:.1e}".replace("e-0", "e-")
    else:
        text = f"{value:.4g}"
    return text.replace("-", "−")


def _svg(draw: Callable[[Any], None], label: str, width: int, height: int) -> str:
    """The drawing as one `<svg>` element that fits its place; `label` is read to who cannot see it."""
    import matplotlib
    from markupsafe import escape
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # 1) Draw, at one point of the drawing a pixel of the page. Ids differ from chart to chart.
    style: dict[Any, Any] = {**_STYLE, "svg.hashsalt": f"{label} {width}"}
    buffer = io.StringIO()
    with matplotlib.rc_context(style):
        layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02)
        figure = Figure(figsize=(width / 72, height / 72), layout=layout)
        draw(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})

    # 2) Take off what only a file needs, and put the page's colours in.
    text = _PROLOGUE.sub("", buffer.getvalue(), count=1)
    text = _LEFT_OUT.sub("", text)
    text = _GROUP_ID.sub("<g", text)
    text = _COLOUR.sub(lambda match: _VARIABLES[match[0]], text)
    head, rest = text.split(">", 1)
    head = _SIZE.sub("", head)
    size = f'width="{width}" height="{height}"'
    return f'{head} {size} role="img" aria-label="{escape(label)}">{rest}'
