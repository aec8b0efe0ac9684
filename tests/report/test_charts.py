"""Charts are SVG in the page's colours and font, and safe to put next to each other."""

import re

import pytest

from radit_jax.report import charts
from radit_jax.report.charts import Bar, Curve, Interval

ROWS = [
    Interval("base", 0.0, 0.0, 0.1),
    Interval("RA-DIT", 0.6, 0.5, 0.7, True),
    Interval("–", None, None, None),
]
CHARTS = {
    "intervals": lambda: charts.interval_chart(ROWS, "answers", charts.NARROW),
    "gains": lambda: charts.interval_chart(ROWS, "gains", charts.WIDE, is_gain=True),
    "lines": lambda: charts.line_chart([Curve([1, 2, 3], [3, 2, 1], dots=True)], "loss", marks=[2]),
    "reliability": lambda: charts.reliability_chart([(0.25, 0.5, 3), (0.75, 1, 9)], "calibration"),
    "histogram": lambda: charts.histogram([0, 1, 2], [[1, 2], [3, 4]], "lengths"),
    "bars": lambda: charts.stacked_bars(
        [Bar("LM-ft", [1, 2])], [charts.AFTER, charts.INK], "time", charts.WIDE
    ),
}


@pytest.mark.parametrize("name", CHARTS)
def test_colours_are_the_pages_variables(name):
    svg = CHARTS[name]()
    assert svg.startswith("<svg") and svg.rstrip().endswith("</svg>")
    colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg))
    assert all(colour == "none" or colour.startswith("var(--") for colour in colours), colours
    # No font of its own, no style for the whole page, and no address but those of XML's names.
    assert "font-family" not in svg and "<style" not in svg
    assert set(re.findall(r"https?://[^\"]+", svg)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_two_charts_share_no_id():
    first, second = CHARTS["lines"](), charts.line_chart([Curve([1, 2], [1, 2], dots=True)], "rate")
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert not ids[0] & ids[1]


def test_equal_values_are_equal_charts():
    assert CHARTS["bars"]() == CHARTS["bars"]()


def test_titles_stay_text_whatever_they_hold():
    svg = charts.interval_chart([Interval("a $x$ <b> & “c”", 0.5, 0.4, 0.6)], '<label> "&"', charts.NARROW)
    assert "a $x$ &lt;b&gt; &amp; “c”" in svg
    assert 'aria-label="&lt;label&gt; &#34;&amp;&#34;"' in svg


def test_a_chart_is_as_wide_as_it_was_asked_to_be():
    for width in (charts.NARROW, charts.WIDE):
        svg = charts.interval_chart(ROWS, "answers", width)
        assert f'viewBox="0 0 {width} 100"' in svg and f'width="{width}" height="100"' in svg


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.00001, "1.0e−5"), (12_000, "12k"), (3_000_000, "3M"), (-2.5, "−2.5")]
)
def test_ticks_are_short(value, text):
    assert charts._short(value) == text
