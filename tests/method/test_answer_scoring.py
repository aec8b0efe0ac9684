"""Scores of given answers, against uncached passes in float64 and against what they must sum to."""

import itertools

import jax
import numpy as np
import pytest
from exact import EXACT, assert_exact
from uncached import ENDS, MODULE, PROMPTS, padded, sharp_params, slow_log_prob

from radit_jax.lm.answer_rows import pack_answers
from radit_jax.method import answer_scoring
from radit_jax.method.answer_scoring import answer_log_probs
from radit_jax.method.generation import prefill

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(scope="module")
def params():
    return sharp_params()


@jax.jit
def scores(params, rows, lengths, packed):
    return answer_log_probs(MODULE, params, prefill(MODULE, params, rows, lengths), packed, stops=ENDS)


def fast_log_probs(params, prompts, answers, max_new_tokens) -> np.ndarray:
    packed = pack_answers(answers, ENDS, max_new_tokens=max_new_tokens, num_answers=max(map(len, answers)))
    return np.asarray(scores(params, *padded(prompts), packed))


def test_answers_as_continuations_of_a_cache_score_as_separate_sequences(params):
    answers = [[(3, 4), (), (5, 5, 3, 0)], [(0,)], [(3,), (4, 3, 5)], [(4,)]]
    got = fast_log_probs(params, PROMPTS, answers, max_new_tokens=4)
    for row, (prompt, group) in enumerate(zip(PROMPTS, answers, strict=True)):
        expected = [slow_log_prob(params, prompt, answer, 4) for answer in group]
        assert_exact(got[row, : len(group)], np.array(expected))
        assert (got[row, len(group) :] == 0).all()


@pytest.mark.parametrize("num_groups", [1, 2, 4])
@pytest.mark.parametrize("part_size", [1, 3, 64])
def test_scores_do_not_depend_on_how_many_slots_pass_the_head_together(
    params, monkeypatch, part_size, num_groups
):
    # Row 1 has no slot in use; the fullest group decides how many parts there are.
    answers = [[(3, 4), (), (5, 5, 3, 0)], [()], [(3,), (4, 3, 5)], [(4,)]]
    packed = pack_answers(answers, ENDS, max_new_tokens=4, num_answers=3)
    monkeypatch.setattr(answer_scoring, "LOGITS_PER_PART", 1)
    monkeypatch.setattr(answer_scoring, "MIN_SLOTS_PER_PART", part_size)

    # A function of its own, so that it is traced with these constants.
    @jax.jit
    def scores_in_parts(rows, lengths, packed):
        prefilled = prefill(MODULE, params, rows, lengths)
        return answer_log_probs(MODULE, params, prefilled, packed, stops=ENDS, num_groups=num_groups)

    got = scores_in_parts(*padded(PROMPTS), packed)
    for row, (prompt, group) in enumerate(zip(PROMPTS, answers, strict=True)):
        expected = [slow_log_prob(params, prompt, answer, 4) for answer in group]
        assert_exact(np.asarray(got)[row, : len(group)], np.array(expected))


@pytest.fixture(scope="module")
def outcomes():
    """Every generation of at most 3 of the 4 tokens that are no stop: 1 + 4 + 16 ended, 64 cut off."""
    return [answer for length in range(4) for answer in itertools.product((0, 3, 4, 5), repeat=length)]


def test_the_probabilities_of_all_answers_sum_to_one(params, outcomes):
    log_probs = fast_log_probs(params, PROMPTS[:2], [outcomes] * 2, max_new_tokens=3)
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1.0, rtol=EXACT)


def test_a_longer_answer_can_beat_its_own_beginning(params, outcomes):
    """Without the terminator `New` would always beat `New York`."""
    log_probs = fast_log_probs(params, PROMPTS[:1], [outcomes], max_new_tokens=3)[0]
    score = dict(zip(outcomes, log_probs.tolist(), strict=True))
    assert any(score[answer] > score[answer[:-1]] for answer in outcomes if answer)
    assert any(score[answer] < score[answer[:-1]] for answer in outcomes if answer)
