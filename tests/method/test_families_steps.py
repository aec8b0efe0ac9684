"""LM-ft's step of every kind of decoder: biases, norms of queries and keys, and rows beyond a window."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
import torch
from exact import assert_exact, in_float64, torch_in_float64
from hf_decoders import SIZES, decoder_pair

from radit_jax.config import LoraConfig
from radit_jax.data.batches.packing import PrefixTree, pack, span, to_batch
from radit_jax.method import steps
from radit_jax.models.lora import dequantized, init_adapters, merge_adapters, quantized

pytestmark = pytest.mark.usefixtures("float64")
READS_GRADIENT = optax.sgd(0.1, momentum=0.9)  # after one step its trace is the gradient
LORA = LoraConfig(rank=3, alpha=6.0)
RNG = np.random.default_rng(0)
# Prompts and answers; two are three windows long together, and two share a row.
LENGTHS = ((11, 9), (4, 3), (9, 12))
TEXTS = [[RNG.integers(1, SIZES["vocab_size"], length) for length in lengths] for lengths in LENGTHS]


@pytest.fixture(scope="module", params=["qwen2_windowed", "gemma3", "olmo2"])
def pair(request, tmp_path_factory):
    return decoder_pair(request.param, tmp_path_factory.mktemp(request.param))


def batch():
    trees = [PrefixTree(span(prompt), (span(answer, 1.0),)) for prompt, answer in TEXTS]
    packed = pack(trees, row_length=32, targets_per_row=16)
    assert len(packed) == 2
    return to_batch(trees, packed, num_rows=2, row_length=32, targets_per_row=16, continuation_ids=False)


def step(module, params, lora=None, base=()):
    """The loss, and the gradient of what is trained."""
    state = steps.init_state(params, READS_GRADIENT)
    state, metrics = steps.make_lm_step(module, READS_GRADIENT, lora=lora)(state, batch(), *base)
    return metrics["loss"], optax.tree.get(state.opt_state, "trace")


def assert_learns(gradient):
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and np.asarray(leaf).any(), path


def test_the_loss_of_packed_rows_is_the_mean_of_transformers_own(pair):
    theirs, module, params = pair
    total, num_targets = 0.0, 0
    for prompt, answer in TEXTS:
        tokens = torch.tensor(np.concatenate([prompt, answer]))[None]
        labels = tokens.clone()
        labels[:, : len(prompt)] = -100
        with torch_in_float64():
            total += theirs(tokens, labels=labels).loss.item() * len(answer)
        num_targets += len(answer)
    loss, gradient = step(module, params)
    assert_exact(loss, np.float64(total / num_targets))
    assert_learns(gradient)


def test_a_step_on_adapters_is_one_on_what_they_merge_to(pair):
    _, module, params = pair
    drawn = init_adapters(params, LORA, jax.random.key(0))
    rng = np.random.default_rng(1)
    adapters = in_float64(jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape), drawn))
    loss, gradient = step(module, adapters, LORA, [params])
    assert_learns(gradient)
    merged, _ = step(module, merge_adapters(params, adapters, LORA))
    plain, _ = step(module, params)
    assert_exact(loss, merged)
    assert abs(loss - plain) > 0.01


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_step_over_quantised_kernels_is_one_over_what_they_stand_for(pair, dtype):
    pytest.importorskip("qwix")
    _, module, params = pair
    lora = dataclasses.replace(LORA, quantize=dtype)
    found = quantized(params, lora)
    is_quantised = lambda leaf: hasattr(leaf, "qvalue")  # noqa: E731
    stands_for = jax.tree.map(
        lambda leaf: dequantized(leaf) if is_quantised(leaf) else leaf, found, is_leaf=is_quantised
    )
    adapters = in_float64(init_adapters(params, lora, jax.random.key(0)))
    loss, gradient = step(module, adapters, lora, [found])
    expected, _ = step(module, adapters, lora, [stands_for])
    assert_exact(loss, expected)
    # B is 0 at first, so that A learns nothing yet.
    learning = {
        path[-1].key: np.asarray(leaf).any() for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
    }
    assert learning == {"lora_a": False, "lora_b": True}
