import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from radit_jax.text import statistics
from radit_jax.text.statistics import (
    average_interval,
    bootstrap_interval,
    paired_gain,
    percent_with_interval,
    with_interval,
)


def test_the_value_is_the_mean_over_questions_not_over_groups():
    values = np.array([1.0, 1.0, 1.0, 0.0])
    assert bootstrap_interval(values, ["a", "a", "a", "b"], seed=0)["value"] == 0.75


def test_the_interval_of_a_coin_is_the_binomials():
    # 400 independent questions, half right: standard error 0.025, so 0.5 ± 1.96 × 0.025.
    values = np.tile([0.0, 1.0], 200)
    figure = bootstrap_interval(values, [str(n) for n in range(400)], samples=4000, seed=0)
    assert figure["value"] == 0.5
    assert figure["low"] == pytest.approx(0.451, abs=0.006)
    assert figure["high"] == pytest.approx(0.549, abs=0.006)


def test_questions_of_a_group_are_drawn_together():
    # The same 400 answers in 100 groups that agree within: the standard error doubles to 0.05.
    values = np.tile(np.repeat([0.0, 1.0], 4), 50)
    figure = bootstrap_interval(values, [str(n // 4) for n in range(400)], samples=4000, seed=0)
    assert figure["low"] == pytest.approx(0.402, abs=0.012)
    assert figure["high"] == pytest.approx(0.598, abs=0.012)


def test_groups_of_unequal_size_weigh_by_their_questions():
    # Of 40 groups 20 have 3 questions, which are right, and 20 have 1, which is wrong. The mean of groups is
    # 1/2, that of questions 3/4: the interval is around the second.
    values = np.repeat([1.0, 0.0], [60, 20])
    groups = [str(n // 3) if n < 60 else str(n) for n in range(80)]
    figure = bootstrap_interval(values, groups, seed=1)
    assert figure["value"] == 0.75 and 0.6 < figure["low"] < 0.75 < figure["high"] < 0.87


# ---- few groups, and values that are all equal ----


def test_a_share_of_few_groups_has_wilsons_interval():
    # One of four is right: scipy's binomtest(1, 4).proportion_ci(method="wilson").
    figure = bootstrap_interval(np.array([1.0, 0.0, 0.0, 0.0]), list("abcd"), seed=0)
    expected = binomtest(1, 4).proportion_ci(method="wilson")
    assert (figure["low"], figure["high"]) == pytest.approx(tuple(expected), abs=1e-6)
    # Questions of one group tell no more than one question does.
    twice = bootstrap_interval(np.repeat([1.0, 0.0, 0.0, 0.0], 2), list("aabbccdd"), seed=0)
    assert twice == figure


def test_four_wrong_answers_do_not_say_that_all_are_wrong():
    # Wilson's upper end of none of n is z² / (n + z²): 3.84 / 7.84.
    figure = bootstrap_interval(np.zeros(4), list("abcd"), seed=0)
    assert figure == pytest.approx({"value": 0.0, "low": 0.0, "high": 0.48990}, abs=1e-5)
    of_many = bootstrap_interval(np.ones(400), [str(n) for n in range(400)], seed=0)
    assert of_many == pytest.approx({"value": 1.0, "low": 400 / 403.84146, "high": 1.0})


def test_no_change_of_few_questions_may_be_a_gain_or_a_loss():
    # Bonett and Price count one gained and one lost draw more: 1/6 of 6 each, so 0 ± 1.96 × √(2/6 / 6).
    figure = paired_gain(np.ones(4), np.ones(4), list("abcd"), seed=0)
    assert figure == pytest.approx({"value": 0.0, "low": -0.46197, "high": 0.46197}, abs=1e-5)
    # Three of eight are gained, none is lost: 4/10 − 1/10 ± 1.96 × √((5/10 − 9/100) / 10).
    gained = paired_gain(np.repeat([1.0, 0.0], [3, 5]), np.zeros(8), list("abcdefgh"), seed=0)
    half_width = 1.959964 * np.sqrt(0.041)
    assert gained["value"] == 0.375
    assert (gained["low"], gained["high"]) == pytest.approx((0.3 - half_width, 0.3 + half_width))


def test_a_skewed_figure_of_few_groups_has_the_bca_interval_over_groups():
    # Each group of two is one draw, as if it were a question with the group's mean.
    means = np.array([0.1, 0.2, 0.2, 0.3, 0.4, 2.5])
    pairs = np.ravel(np.column_stack([means - 0.05, means + 0.05]))
    figure = bootstrap_interval(pairs, list("aabbccddeeff"), samples=4000, seed=0)
    ends = bootstrap((means,), np.mean, n_resamples=4000, method="BCa", rng=0).confidence_interval
    assert (figure["low"], figure["high"]) == pytest.approx((ends.low, ends.high), abs=0.08)
    assert figure["high"] - figure["value"] > figure["value"] - figure["low"]  # the long side


def test_groups_that_do_not_differ_have_no_width_and_give_no_warning():
    figure = bootstrap_interval(np.tile([0.2, 0.6], 4), list("aabbccdd"), seed=0)
    assert figure == pytest.approx({"value": 0.4, "low": 0.4, "high": 0.4})


def test_an_average_of_small_sets_puts_their_intervals_together_by_squares():
    values, groups = np.zeros(4), list("abcd")
    figure = average_interval([values, values], [groups, groups], seed=0)
    assert figure == pytest.approx({"value": 0.0, "low": 0.0, "high": 0.48990 / np.sqrt(2)}, abs=1e-5)


def test_a_figure_in_percent_says_when_it_has_no_interval():
    assert percent_with_interval({"value": 0.5, "low": None, "high": None}) == "50.0 [one group]"
    assert percent_with_interval({"value": None, "low": None, "high": None}) == "–"
    assert percent_with_interval({"value": -0.1, "low": -0.25, "high": 0.0}) == "-10.0 [-25.0, 0.0]"


def test_one_seed_gives_one_interval_whatever_the_order_of_the_questions():
    values, groups = np.array([0.0, 0.5, 1.0, 0.0, 1.0]), ["a", "b", "c", "c", "d"]
    order = np.array([4, 2, 0, 1, 3])
    first = bootstrap_interval(values, groups, seed=7)
    assert first == bootstrap_interval(values, groups, seed=7)
    assert first == pytest.approx(bootstrap_interval(values[order], [groups[n] for n in order], seed=7))
    assert first != bootstrap_interval(np.linspace(0, 1, 5), groups, seed=7)


def test_no_questions_give_no_figure():
    assert bootstrap_interval(np.zeros(0), [], seed=0) == {"value": None, "low": None, "high": None}


def test_a_constant_gain_has_no_width():
    before = np.random.default_rng(0).normal(size=50)
    figure = paired_gain(before + 0.25, before, [str(n) for n in range(50)], seed=0)
    assert figure == pytest.approx({"value": 0.25, "low": 0.25, "high": 0.25})


def test_a_gain_is_after_minus_before():
    figure = paired_gain(np.array([1.0, 1.0, 0.0]), np.array([0.0, 1.0, 0.0]), ["a", "b", "c"], seed=0)
    assert figure["value"] == pytest.approx(1 / 3)


def test_every_value_has_a_group():
    with pytest.raises(ValueError, match="a group for every value, got 2 groups for 3 values"):
        bootstrap_interval(np.zeros(3), ["a", "b"], seed=0)


def test_an_average_weighs_every_set_the_same_and_has_half_the_variance_of_one():
    values = np.tile([0.0, 1.0], 200)
    groups = [str(n) for n in range(400)]
    one = bootstrap_interval(values, groups, samples=4000, seed=0)
    both = average_interval([values, values], [groups, groups], samples=4000, seed=0)
    width = lambda figure: figure["high"] - figure["low"]  # noqa: E731
    assert width(both) == pytest.approx(width(one) / np.sqrt(2), rel=0.1)
    unequal = average_interval([np.ones(3), np.zeros(2)], [["a", "b", "c"], ["d", "e"]], samples=50, seed=0)
    assert unequal["value"] == 0.5 and 0.1 < unequal["low"] < 0.5 < unequal["high"] < 0.9


def test_one_group_of_questions_has_no_interval_and_neither_has_an_average_with_it():
    values, groups = np.array([0.0, 1.0, 1.0, 0.0]), [""] * 4
    alone = {"value": 0.5, "low": None, "high": None}
    assert bootstrap_interval(values, groups, seed=0) == alone
    assert paired_gain(values, np.zeros(4), groups, seed=0) == alone
    both = average_interval([values, np.ones(2)], [groups, ["a", "b"]], samples=50, seed=0)
    assert both == {"value": 0.75, "low": None, "high": None}
    assert with_interval(alone) == "0.500 [one group]"


def test_an_interval_is_the_same_however_many_samples_are_in_memory_together(monkeypatch):
    values, groups = np.tile([0.0, 1.0], 20), [str(n) for n in range(40)]
    whole = bootstrap_interval(values, groups, samples=100, seed=3)
    monkeypatch.setattr(statistics, "_AT_ONCE", 40 * 7)  # of seven samples, and of two in the end
    assert bootstrap_interval(values, groups, samples=100, seed=3) == whole
