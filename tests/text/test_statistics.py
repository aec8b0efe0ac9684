import numpy as np
import pytest

from radit_jax.text import statistics
from radit_jax.text.statistics import average_interval, bootstrap_interval, paired_gain, with_interval


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
    # Two groups, of 3 and 1 questions: the samples' means are 1, 3/4 and 0, each likely enough to be an end.
    figure = bootstrap_interval(np.array([1.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b"], seed=1)
    assert (figure["low"], figure["high"]) == (0.0, 1.0)


def test_one_seed_gives_one_interval_whatever_the_order_of_the_questions():
    values, groups = np.array([0.0, 1.0, 1.0, 0.0, 1.0]), ["a", "b", "c", "c", "d"]
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
    assert unequal == {"value": 0.5, "low": 0.5, "high": 0.5}


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
