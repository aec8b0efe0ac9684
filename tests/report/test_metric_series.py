"""Series of metrics: what is averaged where a run has many steps."""

from radit_jax.report.metric_series import MAX_POINTS, series_of, time_use


def lines(count):
    return [{"step": step, "name": "r_ft", "time": step / 2, "loss": float(step)} for step in range(count)]


def test_a_long_series_is_averaged_over_neighbours():
    # 801 lines make 267 points of three lines each.
    [series] = series_of("r_ft", lines(2 * MAX_POINTS + 1))
    assert len(series.steps) == 267
    assert series.steps[:2] == [2, 5] and series.times[0] == 1.0
    assert series.values["loss"][:2] == [1.0, 4.0]


def test_a_short_series_is_kept_whole():
    [series] = series_of("r_ft", lines(MAX_POINTS))
    assert series.values["loss"] == [float(step) for step in range(MAX_POINTS)]


def test_a_call_that_has_not_ended_has_no_time():
    assert time_use("r_ft", lines(3)) is None
