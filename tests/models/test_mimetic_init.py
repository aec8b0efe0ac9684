"""Mimetic initialisation: what the drawn matrices are, and what an untrained model does with them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import assert_exact

from radit_jax.config import DecoderConfig
from radit_jax.models.decoder import DecoderLm
from radit_jax.models.mimetic_init import mimetic_init

pytestmark = pytest.mark.usefixtures("float64")

CONFIG = DecoderConfig(
    vocab_size=300, hidden_size=64, num_layers=4, num_heads=2, num_kv_heads=2, head_size=32, ffn_size=64
)


@pytest.fixture(scope="module")
def mimetic():
    module = DecoderLm(CONFIG)
    with jax.enable_x64(True):
        plain = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
        params = jax.jit(mimetic_init, static_argnums=1)(plain, CONFIG, jax.random.key(1))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, plain)
    return module, params


def test_mimetic_attention_gathers_then_matches_and_copies(mimetic):
    params = jax.tree.map(np.asarray, mimetic[1])  # drawn in float64
    kernels = {name: entry["kernel"] for name, entry in params["model"]["layers"]["self_attn"].items()}
    copied = kernels["v_proj"] @ kernels["o_proj"]
    embedding = params["model"]["embed_tokens"]["embedding"]
    assert embedding.std() == pytest.approx(0.08, rel=0.1)
    for layer in (0, 1):
        assert_exact(copied[layer], np.eye(64))
    for layer in (2, 3):
        match = kernels["q_proj"][layer]
        np.testing.assert_array_equal(match, kernels["k_proj"][layer])
        assert_exact(match @ match.T, np.eye(64))
        # What the upper layers write, the head reads as half of the embedding that was copied.
        read = copied[layer] @ params["lm_head"]["kernel"]
        assert_exact(read, 0.5 * embedding.T)


def test_an_untrained_mimetic_model_expects_the_words_of_its_context(mimetic):
    tokens = np.random.default_rng(0).permutation(300)[:20][None].astype(np.int32)
    module, params = mimetic
    logits = jax.jit(module.apply)({"params": params}, tokens)[0, -1]
    in_context = np.isin(np.arange(300), tokens)
    assert logits[in_context].mean() > logits[~in_context].mean() + logits[~in_context].std()


@pytest.mark.parametrize(
    "change",
    [{"num_kv_heads": 1}, {"head_size": 16}, {"tie_embeddings": True}],
    ids=lambda change: [*change][0],
)
def test_mimetic_initialisation_refuses_other_shapes(change):
    config = dataclasses.replace(CONFIG, **change)
    (setting,) = [f"{name}={value!r}" for name, value in change.items()]
    with pytest.raises(
        ValueError, match=rf"mimetic_init: expected family llama, num_kv_heads = .*, got .*{setting}.*Change"
    ):
        mimetic_init({}, config, jax.random.key(0))
