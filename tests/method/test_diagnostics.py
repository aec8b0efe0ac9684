import dataclasses
import functools
from math import log

import numpy as np
import pytest

from radit_jax.config import OptimizerConfig, RFtConfig
from radit_jax.method.diagnostics import LsrStatistics, diagnose, spearman, warnings

approx = functools.partial(pytest.approx, rel=1e-5)  # of logarithms and exponentials in float32
SETTINGS = RFtConfig(OptimizerConfig(1, 1e-3), lm_score="sum_log_prob", tau=1.0)
TEMPERATURE = 1.0  # of p_R


def signal(retriever, lm, **changes):
    """A signal with the given p_R and p_LSR (under SETTINGS and TEMPERATURE); nothing is useful or cut."""
    retriever, lm = np.array(retriever, np.float32), np.array(lm, np.float32)
    false = np.zeros(lm.shape, bool)
    fields = {
        "chunk_mask": ~false,
        "retrieval_scores": np.log(retriever) + 7,
        "answer_log_probs": np.log(lm),
        "no_chunk_log_probs": np.zeros(len(lm), np.float32),
        "answer_token_counts": np.ones(len(lm), np.int32),
        "truncated": false,
        "token_counts": np.full(false.shape, 20),
        "holds_answer": false,
        "gold": false,
        "judged": np.ones(len(lm), bool),
    }
    return LsrStatistics(**fields | {name: np.array(value) for name, value in changes.items()})


EVEN = [0.25, 0.25, 0.25, 0.25]


def test_the_effective_number_of_chunks_is_the_exponential_of_the_entropy():
    lm = [EVEN, [0.5, 0.5, 1e-30, 1e-30], [1.0, 1e-30, 1e-30, 1e-30]]
    found = diagnose(signal([EVEN] * 3, lm), SETTINGS, TEMPERATURE)
    assert found["effective_chunks"] == approx((4 + 2 + 1) / 3)
    assert found["flat_targets"] == approx(1 / 3)
    assert found["one_hot_targets"] == approx(1 / 3)
    assert found["saturated_queries"] == 0.0


def test_tau_form_and_temperature_are_those_of_the_settings():
    # Geometric means 0.5 and 0.25 over two tokens: with τ = 0.05, p_LSR is a softmax of 10 and 5.
    scores = np.array([[400, 399]], np.float32)
    s = signal([[0.5, 0.5]], [[0.25, 0.0625]], answer_token_counts=[2], retrieval_scores=scores)
    settings = dataclasses.replace(SETTINGS, lm_score="token_geomean", tau=0.05)
    found = diagnose(s, settings, temperature=0.1)
    p = 1 / (1 + np.exp(-5))
    assert found["effective_chunks"] == approx(np.exp(-p * log(p) - (1 - p) * log(1 - p)))
    assert found["saturated_queries"] == 1.0
    assert diagnose(s, SETTINGS, TEMPERATURE)["saturated_queries"] == 0.0


def test_masked_chunks_count_in_nothing():
    lm = [[0.5, 0.5, 0.9, 0.9], [0.1, 0.9, 0.9, 0.9]]
    mask = [[True, True, False, False], [True, False, False, False]]
    cut, useful = np.ones((2, 4), bool), ~np.array(mask)
    masked = signal(lm, lm, chunk_mask=mask, truncated=cut, gold=useful, holds_answer=useful)
    found = diagnose(masked, SETTINGS, TEMPERATURE)
    # Of the first example; the second has nothing to choose from.
    assert found["effective_chunks"] == approx(2.0)
    assert found["flat_targets"] == 1.0
    assert found["truncated_pairs"] == 3
    assert found["gold_among_candidates"] == found["answer_among_candidates"] == 0.0
    assert found["gain_over_no_chunk"] == approx((log(0.5) + log(0.1)) / 2)


def test_the_gain_is_in_nats_per_token_of_the_answer():
    # Chunks give log-probabilities −2 and −4, none gives −7, over two tokens: (5 + 3) / 2 / 2.
    lm, none = np.exp([[-2.0, -4.0]]), np.array([-7], np.float32)
    s = signal([[0.5, 0.5]], lm, no_chunk_log_probs=none, answer_token_counts=[2])
    assert diagnose(s, SETTINGS, TEMPERATURE)["gain_over_no_chunk"] == approx(2.0)


def test_spearman_averages_the_ranks_of_ties():
    mask = np.ones((1, 4), bool)
    a = np.array([[1.0, 2.0, 3.0, 4.0]])
    assert spearman(a, np.array([[10.0, 20.0, 30.0, 99.0]]), mask)[0] == approx(1.0)
    assert spearman(a, -a, mask)[0] == approx(-1.0)
    # Ranks 1.5 1.5 3 4 against 1 2 3 4: centred products 4.5, sums of squares 4.5 and 5.
    assert spearman(a, np.array([[0.0, 0.0, 1.0, 2.0]]), mask)[0] == approx(4.5 / 22.5**0.5)
    assert np.isnan(spearman(a, np.zeros((1, 4)), mask)[0])


def test_spearman_looks_at_unmasked_chunks_only():
    a, b = np.array([[1.0, 2.0, 3.0, 9.0]]), np.array([[3.0, 4.0, 5.0, -9.0]])
    assert spearman(a, b, np.array([[True, True, True, False]]))[0] == approx(1.0)


def test_the_mean_spearman_leaves_out_flat_targets():
    lm = [EVEN, [0.1, 0.2, 0.3, 0.4]]
    retriever = [[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]]
    assert diagnose(signal(retriever, lm), SETTINGS, TEMPERATURE)["spearman"] == approx(-1.0)


def test_first_choices_are_compared_where_there_is_something_to_rank():
    first, second = [0.6, 0.4], [0.4, 0.6]
    s = signal(
        [first, first, first, first],
        [second, second, first, first],
        holds_answer=[[False, True], [True, True], [False, False], [False, False]],
        gold=[[False, False], [False, False], [False, False], [True, False]],
        judged=[True, True, True, False],
    )
    found = diagnose(s, SETTINGS, TEMPERATURE)
    assert found["judged_examples"] == 3
    assert found["answer_among_candidates"] == approx(2 / 3)
    assert found["gold_among_candidates"] == 0.0  # the fourth is not judged
    assert found["useful_lm_first"] == approx(2 / 3)
    assert found["useful_retriever_first"] == approx(1 / 3)
    assert found["mixed_examples"] == 1
    assert (found["mixed_lm_first"], found["mixed_retriever_first"]) == (1.0, 0.0)


def test_a_flat_target_does_not_take_credit_for_the_retrievers_order():
    s = signal([[0.4, 0.3, 0.2, 0.1]], [EVEN], gold=[[True, False, False, False]])
    found = diagnose(s, SETTINGS, TEMPERATURE)
    assert found["mixed_retriever_first"] == 1.0
    assert found["mixed_lm_first"] == 0.25


def test_cut_chunks_and_supervised_tokens_are_counted():
    cut = [[True, True], [False, False], [True, False]]
    read = [[20, 30], [10, 10], [25, 999]]
    there = [[True, True], [True, True], [True, False]]
    even = [[0.5, 0.5]] * 3
    s = signal(even, even, chunk_mask=there, truncated=cut, answer_token_counts=[1, 2, 3], token_counts=read)
    found = diagnose(s, SETTINGS, TEMPERATURE)
    assert (found["truncated_pairs"], found["truncated_examples"]) == (3, 2)
    assert found["supervised_tokens"] == approx((1 + 1 + 2 + 2 + 3) / (20 + 30 + 10 + 10 + 25))


def test_without_judged_examples_there_is_no_figure_for_them():
    found = diagnose(signal([EVEN], [EVEN], judged=[False]), SETTINGS, TEMPERATURE)
    assert found["judged_examples"] == 0
    assert found["useful_lm_first"] is found["gold_among_candidates"] is found["mixed_lm_first"] is None


def test_an_example_without_any_chunk_harms_nothing():
    s = signal([EVEN, EVEN], [EVEN, EVEN], chunk_mask=[[True] * 4, [False] * 4])
    found = diagnose(s, SETTINGS, TEMPERATURE)
    assert found["effective_chunks"] == approx(4.0)
    assert found["judged_examples"] == 1


SATURATED = [0.9997, 0.0001, 0.0001, 0.0001]
NEARLY = [0.997, 0.001, 0.001, 0.001]
CLEAR = [0.7, 0.1, 0.1, 0.1]


def test_flat_targets_are_warned_of_with_the_setting_to_change():
    found = diagnose(signal([CLEAR] * 3, [EVEN, EVEN, CLEAR]), SETTINGS, TEMPERATURE)
    (message,) = warnings(found, SETTINGS, TEMPERATURE)
    assert message.startswith(
        "score: expected targets p_LSR that prefer some chunks, got 67% flat ones (3.5 eff"
    )
    assert "Lower r_ft.tau, now 1" in message
    assert "mean_log_prob" not in message
    (message,) = warnings(found, dataclasses.replace(SETTINGS, lm_score="token_geomean"), TEMPERATURE)
    assert "or set r_ft.lm_score=mean_log_prob" in message


def test_saturated_queries_are_warned_of_with_the_setting_to_change():
    found = diagnose(signal([SATURATED, SATURATED, CLEAR], [CLEAR] * 3), SETTINGS, TEMPERATURE)
    (message,) = warnings(found, SETTINGS, TEMPERATURE)
    assert "got one above 0.999 on one chunk for 67% of the queries" in message
    assert "Raise the score temperature retrieve.temperature, now 1" in message


def test_an_almost_uniform_retriever_is_warned_of_with_the_setting_to_change():
    """Cosines of a few hundredths at temperature 1, of four chunks and, for the third example, of two."""
    cosines = np.array([[0.62, 0.6, 0.58, 0.55], [0.4, 0.38, 0.37, 0.33], [0.5, 0.48, 0, 0]], np.float32)
    mask = [[True] * 4, [True] * 4, [True, True, False, False]]
    s = signal([CLEAR] * 3, [CLEAR] * 3, retrieval_scores=cosines, chunk_mask=mask)
    found = diagnose(s, SETTINGS, TEMPERATURE)
    p = [np.exp(row[:k]) / np.exp(row[:k]).sum() for row, k in zip(cosines, (4, 4, 2), strict=True)]
    assert found["highest_p_R"] == pytest.approx(np.mean([own.max() for own in p]), rel=1e-5)
    lead = [(own.max() - 1 / len(own)) / (1 - 1 / len(own)) for own in p]
    assert found["lead_of_highest"] == pytest.approx(np.mean(lead), rel=1e-4)
    (message,) = warnings(found, SETTINGS, TEMPERATURE)
    assert "almost uniform one: its highest is 0.34" in message
    assert "Lower the score temperature retrieve.temperature, now 1; cosines need about 0.05" in message
    usual = 0.02
    assert warnings(diagnose(s, SETTINGS, usual), SETTINGS, usual) == []


def test_a_good_signal_has_no_warning():
    for good in (signal([NEARLY, NEARLY], [EVEN, CLEAR]), signal(np.zeros((0, 4)), np.zeros((0, 4)))):
        assert warnings(diagnose(good, SETTINGS, TEMPERATURE), SETTINGS, TEMPERATURE) == []
