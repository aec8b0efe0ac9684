from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from exact import in_float64, torch_in_float64
from uncached import MODULE, PROMPTS, STOPS, next_log_probs, padded, sharp_params, slow_greedy

from radit_jax.method.generation import greedy
from radit_jax.models.decoder import DecoderLm
from radit_jax.runtime.pretrained.hf_weights import load_decoder

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(scope="module")
def params():
    return sharp_params()


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
    config, loaded = load_decoder(tmp_path)
    prompts = [rng.integers(3, 50, length).tolist() for length in (9, 4, 6)]
    module = DecoderLm(config, dtype=jnp.float64)
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
