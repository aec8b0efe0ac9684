import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from exact import assert_exact, in_float64, torch_in_float64, torch_model_in_float64
from hf_decoders import apply

from radit_jax.config import DecoderConfig, RopeScaling
from radit_jax.models.decoder import DecoderLm
from radit_jax.models.rotary import rope_frequencies
from radit_jax.runtime.pretrained.hf_weights import load_decoder

pytestmark = pytest.mark.usefixtures("float64")

SHAPE = DecoderConfig(
    vocab_size=61, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=4, head_size=8, ffn_size=48
)
VARIANTS = {
    "mha": SHAPE,
    "gqa": dataclasses.replace(SHAPE, num_kv_heads=2),
    "wide_heads": dataclasses.replace(SHAPE, head_size=12),
    "tied": dataclasses.replace(SHAPE, tie_embeddings=True, num_kv_heads=1),
    "llama3": dataclasses.replace(
        SHAPE, rope_theta=500.0, rope_scaling=RopeScaling(factor=8.0, original_max_length=64)
    ),
}


def hf_config(config: DecoderConfig) -> transformers.LlamaConfig:
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if (scaling := config.rope_scaling) is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_length,
        }
    return transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_size,
        intermediate_size=config.ffn_size,
        max_position_embeddings=config.max_length,
        rms_norm_eps=config.rms_norm_eps,
        tie_word_embeddings=config.tie_embeddings,
        rope_parameters=rope,
        initializer_range=0.3,  # so that attention and positions matter
        attn_implementation="eager",  # pyright: ignore[reportCallIssue]
    )


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
    """A random torch model, and ours read from the folder that it was saved in, both in float64."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(hf_config(VARIANTS[request.param])).eval()
    theirs.save_pretrained(folder)
    config, params = load_decoder(folder)
    assert config == VARIANTS[request.param]
    return torch_model_in_float64(theirs), DecoderLm(config, dtype=jnp.float64), in_float64(params)


@pytest.fixture(scope="module")
def ours():
    module = DecoderLm(dataclasses.replace(SHAPE, num_kv_heads=2), dtype=jnp.float64)
    return module, in_float64(
        jax.tree.map(lambda x: 10 * x if x.ndim > 1 else x, initial_params(DecoderLm(module.config)))
    )


def initial_params(module: DecoderLm):
    return jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]


def random_tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(1, SHAPE.vocab_size, shape).astype(np.int32)


def test_logits_are_those_of_transformers(pair):
    theirs, *ours = pair
    tokens = random_tokens(2, 150)  # past the original context of the llama3 variant
    with torch_in_float64():
        expected = theirs(torch.tensor(tokens).long()).logits.numpy()
    assert_exact(apply(ours, tokens), expected)


def test_summed_answer_log_probabilities_are_those_of_transformers(pair):
    theirs, *ours = pair
    tokens, answer_tokens = random_tokens(3, 24), 9
    targets = tokens[:, -answer_tokens:, None]
    with torch_in_float64():
        logits = theirs(torch.tensor(tokens).long()).logits[:, -answer_tokens - 1 : -1]
    expected = np.take_along_axis(logits.log_softmax(-1).numpy(), targets, -1).sum((1, 2))
    log_probs = jax.nn.log_softmax(apply(ours, tokens)[:, -answer_tokens - 1 : -1])
    got = np.take_along_axis(np.asarray(log_probs), targets, -1).sum((1, 2))
    assert_exact(got, expected)


def test_the_llama3_frequencies_are_those_of_transformers():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = dataclasses.replace(VARIANTS["llama3"], head_size=64, rope_theta=500_000.0)
    with torch_in_float64():
        expected, _ = ROPE_INIT_FUNCTIONS["llama3"](hf_config(config), "cpu")
    assert_exact(rope_frequencies(config), expected)
    plain = rope_frequencies(dataclasses.replace(config, rope_scaling=None))
    assert rope_frequencies(config)[0] == plain[0]
    assert rope_frequencies(config)[-1] == pytest.approx(plain[-1] / 8)


def test_packed_equals_unpacked(ours):
    first, second = random_tokens(1, 7), random_tokens(1, 5)
    packed = np.concatenate([first, second, np.zeros((1, 4), np.int32)], axis=1)
    positions = np.array([[*range(7), *range(5), 0, 0, 0, 0]], np.int32)
    segments = np.array([[1] * 7 + [2] * 5 + [0] * 4], np.int32)
    logits = apply(ours, packed, positions=positions, segment_ids=segments)
    assert_exact(logits[:, :7], apply(ours, first))
    assert_exact(logits[:, 7:12], apply(ours, second))
    assert jnp.isfinite(logits).all()


def test_continuations_equal_separate_sequences(ours):
    prefix, first, second = random_tokens(1, 6), random_tokens(1, 4), random_tokens(1, 3)
    row = np.concatenate([prefix, first, second], axis=1)
    positions = np.array([[*range(6), *range(6, 10), *range(6, 9)]], np.int32)
    continuations = np.array([[0] * 6 + [1] * 4 + [2] * 3], np.int32)
    logits = apply(ours, row, positions=positions, continuation_ids=continuations)
    alone = [apply(ours, np.concatenate([prefix, continuation], axis=1)) for continuation in (first, second)]
    assert_exact(logits[:, :10], alone[0])
    assert_exact(logits[:, 10:], alone[1][:, 6:])


@pytest.mark.parametrize("left", [0, 3])
def test_padding_changes_no_logit(ours, left):
    tokens = random_tokens(2, 6)
    padded = np.pad(tokens, [(0, 0), (left, 5)], constant_values=9)
    segments = np.pad(np.ones_like(tokens), [(0, 0), (left, 5)])
    positions = np.maximum(np.arange(padded.shape[1], dtype=np.int32) - left, 0)
    positions = np.broadcast_to(positions, padded.shape)
    logits = apply(ours, padded, positions=positions, segment_ids=segments)
    assert_exact(logits[:, left : left + 6], apply(ours, tokens))


def test_an_earlier_token_sees_no_later_one(ours):
    tokens = random_tokens(1, 8)
    changed = tokens.copy()
    changed[0, 5] += 1
    before, after = apply(ours, tokens), apply(ours, changed)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(axis=-1).all()


def test_cached_decoding_equals_one_pass(ours):
    """Two prompts of 5 and 3 tokens, padded to 5, then four tokens each, one at a time."""
    lengths, tokens = np.array([5, 3], np.int32), random_tokens(2, 9)
    prompts, segments = tokens[:, :5], (np.arange(5) < lengths[:, None]).astype(np.int32)
    hidden, prefilled = apply(ours, prompts, "extend", segment_ids=segments)
    cache = prefilled.grow(4)
    states = [hidden[np.arange(2), lengths - 1]]
    for step in range(4):
        new = tokens[:, 5 + step, None]
        hidden, block = apply(ours, new, "extend", positions=lengths[:, None] + np.int32(step), cache=cache)
        cache = cache.write(block, 5 + step)
        states.append(hidden[:, 0])
    for row, length in enumerate(lengths):
        whole = np.concatenate([tokens[row, :length], tokens[row, 5:]])[None]
        expected = apply(ours, whole, "hidden")[0, length - 1 :]
        assert_exact(np.stack([state[row] for state in states]), expected)


def test_a_token_written_in_place_is_read_as_one_that_is_joined_to_the_cache(ours):
    lengths, tokens = np.array([5, 3], np.int32), random_tokens(2, 6)
    segments = (np.arange(5) < lengths[:, None]).astype(np.int32)
    _, prefilled = apply(ours, tokens[:, :5], "extend", segment_ids=segments)
    cache, new = prefilled.grow(2), tokens[:, 5:]
    given = {"positions": lengths[:, None], "cache": cache}
    expected, block = apply(ours, new, "extend", **given)
    hidden, kept = apply(ours, new, "extend_in_place", **given, slot=5)
    assert_exact(hidden, expected)
    joined = cache.write(block, 5)
    assert_exact(kept.keys, joined.keys)
    assert_exact(kept.values, joined.values)
    for ids, expected_ids in zip(kept[2:], joined[2:], strict=True):
        np.testing.assert_array_equal(ids, expected_ids)


def test_a_token_written_in_place_makes_no_longer_copy_of_the_cache(ours):
    module, params = ours
    _, prefilled = apply(ours, random_tokens(2, 30), "extend")
    inputs = random_tokens(2, 1), np.full((2, 1), 30, np.int32), prefilled.grow(7)

    def one_token(method, *inputs, **slot):
        step = functools.partial(module.apply, method=method, **slot)
        return jax.jit(step).lower({"params": params}, *inputs).as_text()

    tokens, positions, cache = inputs
    in_place = one_token("extend_in_place", tokens, positions, cache, slot=30)
    joined = one_token("extend", tokens, positions, None, None, cache)
    assert "x38x" in joined and "x38x" not in in_place


def test_continuations_against_a_cache_equal_separate_sequences(ours):
    lengths, prompts = np.array([5, 3], np.int32), random_tokens(2, 5)
    segments = (np.arange(5) < lengths[:, None]).astype(np.int32)
    _, cache = apply(ours, prompts, "extend", segment_ids=segments)
    answers = random_tokens(2, 6)  # continuations of 4 and 2 tokens
    continuations = np.array([[1, 1, 1, 1, 2, 2]] * 2, np.int32)
    positions = lengths[:, None] + np.array([[0, 1, 2, 3, 0, 1]], np.int32)
    cache = cache.grow(3)  # empty slots, which nobody sees
    hidden, _ = apply(
        ours, answers, "extend", positions=positions, continuation_ids=continuations, cache=cache
    )
    for row, length in enumerate(lengths):
        for continuation in (slice(0, 4), slice(4, 6)):
            whole = np.concatenate([prompts[row, :length], answers[row, continuation]])[None]
            expected = apply(ours, whole, "hidden")[0, length:]
            assert_exact(hidden[row, continuation], expected)


@pytest.mark.parametrize("policy", ["dots", "full"])
def test_rematerialisation_changes_no_gradient(ours, policy):
    module, params = ours
    tokens = jnp.asarray(random_tokens(1, 6))

    def loss(params, remat):
        return module.clone(remat=remat).apply({"params": params}, tokens).std()

    plain, remat = (jax.jit(jax.grad(loss), static_argnums=1)(params, remat) for remat in ("none", policy))
    assert_exact(remat, plain)


def test_in_bfloat16_the_logits_are_float32_and_as_close_as_rounded_parameters_give(ours):
    module, params = ours
    tokens = random_tokens(1, 6)
    exact, in_bfloat16 = apply(ours, tokens), apply((module.clone(dtype=jnp.bfloat16), params), tokens)
    assert in_bfloat16.dtype == jnp.float32
    rounded = in_float64(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params))
    unavoidable = jnp.linalg.norm(exact - apply((module, rounded), tokens))
    assert jnp.linalg.norm(exact - in_bfloat16) < 4 * unavoidable < 0.2 * jnp.linalg.norm(exact)
