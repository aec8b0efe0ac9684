"""Adapters beside frozen kernels: nothing at first, then x A B; merged, the same in plain parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from radit_jax.config import PROJECTIONS, LlamaConfig, LoraConfig
from radit_jax.models.llama import Llama
from radit_jax.models.lora import adapted, init_adapters, merged
from radit_jax.selfcheck import random_params

MODULE = Llama(
    LlamaConfig(
        vocab_size=40, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_size=8, ffn_size=24
    )
)
LORA = LoraConfig(rank=3, alpha=12.0)
TOKENS = np.random.default_rng(0).integers(1, 40, (2, 9)).astype(np.int32)


@pytest.fixture(scope="module")
def params():
    return random_params(MODULE, jnp.zeros((1, 4), jnp.int32))


@pytest.fixture(scope="module")
def adapters(params):
    """Adapters whose B is no longer 0."""
    drawn = init_adapters(params, LORA, jax.random.key(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32), drawn)


def logits(params, module=MODULE):
    return np.asarray(jax.jit(module.apply)({"params": params}, TOKENS))


@pytest.mark.parametrize("remat", [False, True])
def test_fresh_adapters_change_no_bit_of_the_logits(params, remat):
    module = dataclasses.replace(MODULE, remat=remat)
    fresh = init_adapters(params, LORA, jax.random.key(0))
    np.testing.assert_array_equal(logits(adapted(params, fresh, LORA), module), logits(params, module))


def test_there_is_a_pair_for_each_target_in_each_layer_and_for_nothing_else(params):
    drawn = init_adapters(params, LoraConfig(rank=3, targets=("v_proj", "down_proj")), jax.random.key(0))
    assert jax.tree.map(jnp.shape, drawn) == {
        "model": {
            "layers": {
                "self_attn": {"v_proj": {"lora_a": (2, 16, 3), "lora_b": (2, 3, 8)}},
                "mlp": {"down_proj": {"lora_a": (2, 24, 3), "lora_b": (2, 3, 16)}},
            }
        }
    }
    everywhere = init_adapters(params, LORA, jax.random.key(0))["model"]["layers"]
    assert {*everywhere["self_attn"], *everywhere["mlp"]} == set(PROJECTIONS)


def test_no_two_adapters_start_alike(params):
    drawn = init_adapters(params, LORA, jax.random.key(0))["model"]["layers"]
    q, k = (drawn["self_attn"][name]["lora_a"] for name in ("q_proj", "k_proj"))
    assert not np.allclose(q, k) and not np.allclose(q[0], q[1])
    wide = {"model": {"layers": {"mlp": {"up_proj": {"kernel": jnp.zeros((2, 400, 5))}}}}}
    a = init_adapters(wide, LoraConfig(rank=20), jax.random.key(0))["model"]["layers"]["mlp"]["up_proj"]
    assert a["lora_a"].std() == pytest.approx(1 / 20, rel=0.03)


def test_a_projection_adds_the_low_rank_path_by_hand(params, adapters):
    def down(layer):  # LoRA alone, in float64
        found = adapters["model"]["layers"]["mlp"]["down_proj"]
        a, b = (np.asarray(found[name], np.float64)[layer] for name in ("lora_a", "lora_b"))
        return 12.0 / 3 * a @ b

    only = {"model": {"layers": {"mlp": {"down_proj": adapters["model"]["layers"]["mlp"]["down_proj"]}}}}
    kernel = np.asarray(params["model"]["layers"]["mlp"]["down_proj"]["kernel"], np.float64)
    by_hand = np.stack([kernel[layer] + down(layer) for layer in (0, 1)])
    mlp = params["model"]["layers"]["mlp"] | {"down_proj": {"kernel": jnp.asarray(by_hand, jnp.float32)}}
    model = params["model"] | {"layers": params["model"]["layers"] | {"mlp": mlp}}
    expected = logits(params | {"model": model})
    np.testing.assert_allclose(logits(adapted(params, only, LORA)), expected, atol=1e-5)
    assert np.abs(expected - logits(params)).max() > 0.1


def test_merged_parameters_are_plain_and_the_same_function(params, adapters):
    plain = merged(params, adapters, LORA)
    assert jax.tree.structure(plain) == jax.tree.structure(params)
    np.testing.assert_allclose(logits(plain), logits(adapted(params, adapters, LORA)), atol=2e-5)


def test_what_has_no_adapter_is_not_copied(params, adapters):
    seen = adapted(params, adapters, LORA)["model"]
    assert seen["embed_tokens"]["embedding"] is params["model"]["embed_tokens"]["embedding"]
    kernel = seen["layers"]["mlp"]["up_proj"]["kernel"]
    assert kernel is params["model"]["layers"]["mlp"]["up_proj"]["kernel"]
    plain = merged(params, {"model": {}}, LORA)
    assert plain["lm_head"]["kernel"] is params["lm_head"]["kernel"]


def test_merging_keeps_the_kernels_dtype(params, adapters):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged(half, adapters, LORA))} == {jnp.dtype("bfloat16")}
