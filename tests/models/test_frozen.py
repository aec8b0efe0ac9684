"""Frozen parameters held in bfloat16 give the same bits as those that a network of bfloat16 casts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from radit_jax.config import (
    BertConfig,
    DecoderConfig,
    EvaluateConfig,
    LastTokenConfig,
    LmFtConfig,
    LoraConfig,
    OptimizerConfig,
)
from radit_jax.models.bert import Bert
from radit_jax.models.decoder import DecoderLm
from radit_jax.models.frozen import cast_frozen, frozen_shapes, is_frozen
from radit_jax.models.last_token import LastTokenEncoder
from radit_jax.models.lora import adapted, init_adapters, quantized
from radit_jax.selfcheck.tiny_models import random_params

TOKENS = jnp.asarray(np.random.default_rng(0).integers(1, 40, (2, 9)), jnp.int32)
LLAMA = DecoderConfig(
    vocab_size=40, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_size=8, ffn_size=24
)
TIED = dataclasses.replace(LLAMA, tie_embeddings=True)
BERT = BertConfig(vocab_size=40, hidden_size=16, num_layers=2, num_heads=2, ffn_size=24, max_length=16)
MPNET = dataclasses.replace(BERT, family="mpnet")


def held(params):
    """The parameters in the dtypes of `frozen_shapes`."""
    frozen = cast_frozen(params, "bfloat16")
    shapes = frozen_shapes(jax.eval_shape(lambda: params), "bfloat16")
    assert jax.tree.map(lambda leaf: leaf.dtype, frozen) == jax.tree.map(lambda leaf: leaf.dtype, shapes)
    return frozen


@pytest.mark.parametrize(
    ("network", "config", "inputs"),
    [
        (DecoderLm, LLAMA, (TOKENS,)),
        (DecoderLm, TIED, (TOKENS,)),
        (LastTokenEncoder, LastTokenConfig(LLAMA), (TOKENS, TOKENS > 3)),
        (Bert, BERT, (TOKENS, TOKENS > 3)),
        (Bert, MPNET, (TOKENS, TOKENS > 3)),
    ],
)
def test_a_network_that_holds_bfloat16_gives_the_bits_of_one_that_casts(network, config, inputs):
    module = network(config, dtype=jnp.bfloat16)
    params = random_params(module, *inputs)
    frozen = held(params)
    apply = jax.jit(module.apply)
    wanted = np.asarray(apply({"params": params}, *inputs))
    np.testing.assert_array_equal(np.asarray(apply({"params": frozen}, *inputs)), wanted)
    dtypes = {path: leaf.dtype.name for path, leaf in flatten_dict(frozen).items()}
    assert set(dtypes.values()) == {"bfloat16", "float32"}
    # What is used in float32 may not be rounded: norms, and what is added to attention's scores.
    everything = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params)
    assert (np.asarray(apply({"params": everything}, *inputs)) != wanted).any()


def test_kernels_and_embeddings_alone_are_cast_and_only_to_fewer_bits():
    module = Bert(MPNET, dtype=jnp.bfloat16)
    params = random_params(module, TOKENS, TOKENS > 3)
    by_name = {}
    for path, leaf in flatten_dict(held(params)).items():
        by_name.setdefault((path[-2], path[-1]), leaf.dtype.name)
    assert by_name["word_embeddings", "embedding"] == "bfloat16"
    assert by_name["relative_attention_bias", "embedding"] == "float32"
    assert by_name["dense", "kernel"] == "bfloat16"
    assert by_name["dense", "bias"] == by_name["LayerNorm", "scale"] == "float32"
    shapes = {"kernel": jax.ShapeDtypeStruct((2, 2), jnp.bfloat16)}
    assert frozen_shapes(shapes, "float32") == shapes
    full = {"kernel": jax.ShapeDtypeStruct((2, 2), jnp.float32)}
    assert frozen_shapes(full, "float32") == full


def test_adapters_over_kernels_in_bfloat16_have_the_gradients_of_those_over_kernels_that_are_cast():
    lora = LoraConfig(rank=2)
    module = DecoderLm(LLAMA, dtype=jnp.bfloat16)
    params = random_params(module, TOKENS)
    adapters = init_adapters(params, lora, jax.random.key(0))
    adapters = jax.tree.map(lambda leaf: leaf + 0.1, adapters)

    @jax.jit
    def gradient(base):
        def loss(trained):
            logits = module.apply({"params": adapted(base, trained, lora)}, TOKENS)
            return jax.nn.log_softmax(logits)[..., 3].sum()

        return jax.value_and_grad(loss)(adapters)

    for one, other in zip(
        jax.tree.leaves(gradient(held(params))), jax.tree.leaves(gradient(params)), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_lm_ft_holds_its_network_under_adapters_that_are_validated_in_its_dtype():
    def settings(**lora):
        return LmFtConfig(OptimizerConfig(steps=1, peak_lr=1e-4), dtype="bfloat16", lora=LoraConfig(**lora))

    assert is_frozen(settings(rank=2), None)
    assert is_frozen(settings(rank=2), EvaluateConfig(dtype="bfloat16"))
    assert not is_frozen(settings(rank=2), EvaluateConfig(dtype="float32"))
    assert not is_frozen(settings(rank=2, quantize="int8"), None)
    assert not is_frozen(settings(rank=0), None)


def test_quantised_kernels_stay_as_they_are():
    pytest.importorskip("qwix")
    params = random_params(DecoderLm(dataclasses.replace(LLAMA, hidden_size=64, ffn_size=64)), TOKENS)
    kernels = quantized(params, LoraConfig(rank=2, quantize="int8"))
    frozen = cast_frozen(kernels, "bfloat16")
    before, after = (tree["model"]["layers"]["mlp"]["up_proj"]["kernel"] for tree in (kernels, frozen))
    assert (after.qvalue.dtype, after.scale.dtype) == (before.qvalue.dtype, jnp.float32)
    assert frozen["lm_head"]["kernel"].dtype == jnp.bfloat16
    shapes = jax.eval_shape(lambda: kernels)
    assert jax.tree.structure(frozen_shapes(shapes, "bfloat16")) == jax.tree.structure(frozen)
