"""Adapters beside frozen kernels: nothing at first, then x A B; merged, the same in plain parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import assert_exact, drawn_in_float64, in_float64
from flax.traverse_util import flatten_dict

from radit_jax.config import PROJECTIONS, DecoderConfig, LoraConfig
from radit_jax.models.decoder import DecoderLm
from radit_jax.models.lora import adapted, dequantized, init_adapters, merge_adapters, quantized
from radit_jax.selfcheck.tiny_models import random_params

MODULE = DecoderLm(
    DecoderConfig(
        vocab_size=40, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_size=8, ffn_size=24
    ),
    dtype=jnp.float64,
)
pytestmark = pytest.mark.usefixtures("float64")
LORA = LoraConfig(rank=3, alpha=12.0)
TOKENS = np.random.default_rng(0).integers(1, 40, (2, 9)).astype(np.int32)


@pytest.fixture(scope="module")
def params():
    return drawn_in_float64(MODULE, jnp.zeros((1, 4), jnp.int32))


@pytest.fixture(scope="module")
def adapters(params):
    """Adapters whose B is no longer 0."""
    drawn = init_adapters(params, LORA, jax.random.key(0))
    rng = np.random.default_rng(1)
    return in_float64(jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape), drawn))


def logits(params, module=MODULE):
    return np.asarray(jax.jit(module.apply)({"params": params}, TOKENS))


@pytest.mark.parametrize("remat", ["none", "full"])
def test_fresh_adapters_change_no_logit(params, remat):
    module = dataclasses.replace(MODULE, remat=remat)
    fresh = init_adapters(params, LORA, jax.random.key(0))
    assert_exact(logits(adapted(params, fresh, LORA), module), logits(params, module))


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
    def down(layer):  # LoRA alone
        found = adapters["model"]["layers"]["mlp"]["down_proj"]
        a, b = (np.asarray(found[name])[layer] for name in ("lora_a", "lora_b"))
        return 12.0 / 3 * a @ b

    only = {"model": {"layers": {"mlp": {"down_proj": adapters["model"]["layers"]["mlp"]["down_proj"]}}}}
    kernel = np.asarray(params["model"]["layers"]["mlp"]["down_proj"]["kernel"])
    by_hand = np.stack([kernel[layer] + down(layer) for layer in (0, 1)])
    mlp = params["model"]["layers"]["mlp"] | {"down_proj": {"kernel": jnp.asarray(by_hand)}}
    model = params["model"] | {"layers": params["model"]["layers"] | {"mlp": mlp}}
    expected = logits(params | {"model": model})
    assert_exact(logits(adapted(params, only, LORA)), expected)
    assert np.abs(expected - logits(params)).max() > 0.1


def test_merged_parameters_are_plain_and_the_same_function(params, adapters):
    plain = merge_adapters(params, adapters, LORA)
    assert jax.tree.structure(plain) == jax.tree.structure(params)
    assert_exact(logits(plain), logits(adapted(params, adapters, LORA)))


def test_what_has_no_adapter_is_not_copied(params, adapters):
    seen = adapted(params, adapters, LORA)["model"]
    assert seen["embed_tokens"]["embedding"] is params["model"]["embed_tokens"]["embedding"]
    kernel = seen["layers"]["mlp"]["up_proj"]["kernel"]
    assert kernel is params["model"]["layers"]["mlp"]["up_proj"]["kernel"]
    plain = merge_adapters(params, {"model": {}}, LORA)
    assert plain["lm_head"]["kernel"] is params["lm_head"]["kernel"]


def test_merging_keeps_the_kernels_dtype(params, adapters):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(merge_adapters(half, adapters, LORA))} == {
        jnp.dtype("bfloat16")
    }


# ---- QLoRA ----


@pytest.fixture(scope="module", params=["int8", "int4"])
def quantised(request, params):
    pytest.importorskip("qwix")
    lora = dataclasses.replace(LORA, quantize=request.param)
    with jax.enable_x64(True):
        return lora, quantized(params, lora)


def test_only_projections_are_quantised_and_nothing_is_off_by_more_than_half_a_step(quantised, params):
    lora, found = quantised
    most = {"int8": 127.5, "int4": 7.5}[lora.quantize]  # the levels above 0 that the largest weight spans
    for path, leaf in flatten_dict(params).items():
        other = flatten_dict(found)[path]
        if path[-2] not in PROJECTIONS:
            assert other is leaf
            continue
        assert other.qvalue.dtype == lora.quantize and other.qvalue.shape == leaf.shape
        assert other.scale.shape == (2, 1, leaf.shape[2])
        step = np.abs(leaf).max(axis=1, keepdims=True) / most
        assert (np.abs(dequantized(other) - leaf) <= step / 2 * 1.001).all()


def test_in_four_bits_64_inputs_share_a_scale():
    pytest.importorskip("qwix")
    wide = {"mlp": {"up_proj": {"kernel": jnp.ones((2, 128, 5))}}}
    found = quantized(wide, LoraConfig(rank=1, quantize="int4"))["mlp"]["up_proj"]["kernel"]
    assert found.scale.shape == (2, 2, 5)


def test_the_network_multiplies_by_what_quantised_kernels_stand_for(quantised, adapters):
    lora, found = quantised
    stands_for = jax.tree.map(
        lambda leaf: dequantized(leaf) if hasattr(leaf, "qvalue") else leaf,
        found,
        is_leaf=lambda leaf: hasattr(leaf, "qvalue"),
    )
    expected = logits(adapted(stands_for, adapters, lora))
    assert_exact(logits(adapted(found, adapters, lora)), expected)


def test_a_gradient_over_quantised_kernels_never_holds_them_whole_in_all_layers():
    pytest.importorskip("qwix")
    with jax.enable_x64(False):
        _assert_kernels_are_never_whole()


def _assert_kernels_are_never_whole():
    shape = dataclasses.replace(MODULE.config, num_layers=16, hidden_size=64, ffn_size=512)
    module, lora = DecoderLm(shape), LoraConfig(rank=1, quantize="int8")
    params = quantized(random_params(module, jnp.zeros((1, 4), jnp.int32)), lora)
    adapters = init_adapters(params, lora, jax.random.key(0))

    def loss(adapters, params):
        return module.apply({"params": adapted(params, adapters, lora)}, jnp.asarray(TOKENS[:, :2])).sum()

    compiled = jax.jit(jax.grad(loss)).lower(adapters, params).compile()
    kernels = 4 * 16 * 3 * 64 * 512  # bytes of the feed-forward kernels in float32
    assert compiled.memory_analysis().temp_size_in_bytes < kernels / 4
