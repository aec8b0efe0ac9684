import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import EXACT, assert_exact, in_float64, torch_in_float64
from uncached import ENDS, MODULE, PROMPTS, STOPS, next_log_probs, sharp_params, slow_greedy, slow_log_prob

from radit_jax.lm.ensemble import pack_answers
from radit_jax.method.answer_scoring import answer_log_probs
from radit_jax.method.generation import greedy, prefill
from radit_jax.models.llama import Llama
from radit_jax.runtime.pretrained.hf_weights import load_llama

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(scope="module")
def params():
    return sharp_params()


def padded(prompts):
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    rows = np.zeros((len(prompts), lengths.max() + 2), np.int32)
    for row, prompt in zip(rows, prompts, strict=True):
        row[: len(prompt)] = prompt
    return jnp.asarray(rows), jnp.asarray(lengths)


@jax.jit
def scores(params, rows, lengths, packed):
    return answer_log_probs(MODULE, params, prefill(MODULE, params, rows, lengths), packed, stops=ENDS)


def fast_log_probs(params, prompts, answers, max_new_tokens) -> np.ndarray:
    packed = pack_answers(answers, ENDS, max_new_tokens=max_new_tokens, num_answers=max(map(len, answers)))
    return np.asarray(scores(params, *padded(prompts), packed))


def test_generation_is_the_argmax_of_uncached_passes_and_ends_at_a_stop(params):
    rows, lengths = padded(PROMPTS)
    generated = np.asarray(greedy(MODULE, params, rows, lengths, max_new_tokens=6, stop_ids=STOPS))
    answers = [slow_greedy(params, prompt, 6) for prompt in PROMPTS]
    assert len({len(answer) for answer in answers}) > 1  # the rows stop at different times
    for row, answer in zip(generated.tolist(), answers, strict=True):
        assert tuple(row[: len(answer)]) == answer
        assert set(row[len(answer) : len(answer) + 1]) <= set(STOPS)
        assert set(row[len(answer) + 1 :]) <= {STOPS[0]}


def test_generation_is_transformers_own_on_the_same_checkpoint(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig as HfConfig
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    shape = HfConfig(
        vocab_size=50,
        intermediate_size=48,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    hf: Any = LlamaForCausalLM(shape).eval()
    hf.save_pretrained(tmp_path)
    config, loaded = load_llama(tmp_path)
    prompts = [rng.integers(3, 50, length).tolist() for length in (9, 4, 6)]
    module = Llama(config, dtype=jnp.float64)
    generated = greedy(module, in_float64(loaded), *padded(prompts), max_new_tokens=12, stop_ids=())
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for prompt, row in zip(prompts, generated.tolist(), strict=True):
        ids = torch.tensor([prompt])
        with torch_in_float64():
            expected = hf.double().generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert row == expected[0, len(prompt) :].tolist()


def test_generation_of_one_token_reads_only_the_prompt(params):
    rows, lengths = padded(PROMPTS)
    generated = greedy(MODULE, params, rows, lengths, max_new_tokens=1, stop_ids=STOPS)
    expected = [[next_log_probs(params, prompt).argmax()] for prompt in PROMPTS]
    np.testing.assert_array_equal(generated, expected)


def test_without_stop_ids_a_generation_has_its_full_length(params):
    rows, lengths = padded(PROMPTS[:2])
    generated = np.asarray(greedy(MODULE, params, rows, lengths, max_new_tokens=4, stop_ids=()))
    for prompt, row in zip(PROMPTS, generated.tolist(), strict=False):
        for step, token in enumerate(row):
            assert token == next_log_probs(params, prompt + row[:step]).argmax()


def test_answers_as_continuations_of_a_cache_score_as_separate_sequences(params):
    answers = [[(3, 4), (), (5, 5, 3, 0)], [(0,)], [(3,), (4, 3, 5)], [(4,)]]
    got = fast_log_probs(params, PROMPTS, answers, max_new_tokens=4)
    for row, (prompt, group) in enumerate(zip(PROMPTS, answers, strict=True)):
        expected = [slow_log_prob(params, prompt, answer, 4) for answer in group]
        assert_exact(got[row, : len(group)], np.array(expected))
        assert (got[row, len(group) :] == 0).all()


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
