"""The head: its products, its gradients, and what they are rounded to."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from exact import assert_exact

from radit_jax.config import DecoderConfig
from radit_jax.data.batches.packing import PrefixTree, concatenate_spans, span, to_batch
from radit_jax.method import likelihood, steps
from radit_jax.models.decoder import DecoderLm
from radit_jax.models.head import head_kernel, head_logits

VOCAB = 96  # of no other axis


@pytest.mark.parametrize("tied", [False, True])
def test_values_and_gradients_are_those_of_the_plain_product(float64, tied):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, 3, 8)))
    matrix = jnp.asarray(rng.normal(size=(VOCAB, 8) if tied else (8, VOCAB)))
    weights = jnp.asarray(rng.normal(size=(2, 3, VOCAB)))

    def by_head(hidden, matrix):
        kernel = head_kernel(matrix, jnp.float64)
        return (weights * head_logits(hidden, kernel, tied=tied)).sum()

    def plainly(hidden, matrix):
        return (weights * (hidden @ (matrix.T if tied else matrix))).sum()

    found, expected = (jax.value_and_grad(f, argnums=(0, 1))(hidden, matrix) for f in (by_head, plainly))
    assert_exact(found, expected)


def test_a_matrix_that_several_calls_share_has_the_sum_of_their_gradients_unrounded():
    """Of 300 products of 1 · 1, each to be added: bfloat16 has no number between 256 and 258."""
    matrix = jnp.ones((1, 2), jnp.float32)

    def total(matrix):
        kernel = head_kernel(matrix, jnp.bfloat16)
        logits = lambda row: head_logits(row, kernel, tied=False, rounds_gradient=True).sum()  # noqa: E731
        return jax.lax.map(logits, jnp.ones((300, 1, 1), jnp.bfloat16)).sum()

    np.testing.assert_array_equal(jax.grad(total)(matrix), [[300.0, 300.0]])


def module(tied=False, rounds=False):
    config = DecoderConfig(VOCAB, 32, 1, 2, 2, 16, 64, tie_embeddings=tied)
    return DecoderLm(config, dtype=jnp.bfloat16, rounds_head_gradient=rounds)


def batch(seed=0):
    """Rows in which a token tells the next one."""
    rng = np.random.default_rng(seed)
    trees = []
    for start in rng.integers(3, VOCAB, 8):
        tokens = 3 + (start + 7 * np.arange(24)) % (VOCAB - 3)
        trees.append(PrefixTree(span([]), (concatenate_spans(span(tokens[:4]), span(tokens[4:], 1.0)),)))
    return to_batch(trees, [(0, 1), (2, 3), (4, 5), (6, 7)], row_length=48, targets_per_row=40)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_rounded_gradient_makes_no_float32_product_with_the_head(monkeypatch, tied, platform):
    monkeypatch.setattr(likelihood, "LOGITS_BYTES", 1)  # several parts, as a large model has

    def products(rounds):
        """The operands' types of the products on the axis of the vocabulary."""
        network = module(tied, rounds)
        params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
        loss = lambda params, batch: likelihood.token_log_probs(network, params, batch).sum()  # noqa: E731
        lowered = jax.jit(jax.grad(loss)).trace(params, batch()).lower(lowering_platforms=(platform,))
        operands = re.findall(r"dot_general .*: \((.*)\) ->", lowered.as_text())
        return [pair for pair in operands if re.search(rf"[<x]{VOCAB}x", pair)]

    wide, rounded = products(False), products(True)
    assert len(wide) == len(rounded) >= 3  # forwards, and backwards to the states and the matrix
    assert any("xf32" in pair for pair in wide)
    assert not [pair for pair in rounded if "xf32" in pair]


@pytest.mark.slow
def test_a_model_learns_as_well_with_a_rounded_gradient():
    curves = []
    for rounds in (False, True):
        network, tx = module(rounds=rounds), optax.adam(2e-2)
        params = network.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
        state, step = steps.init_state(params, tx), steps.make_lm_step(network, tx)
        losses = []
        for number in range(24):
            state, metrics = step(state, batch(number % 4))
            losses.append(float(metrics["loss"]))
        curves.append(losses)
    wide, rounded = curves
    assert wide[-1] < wide[0] / 2
    np.testing.assert_allclose(rounded, wide, rtol=0.02, atol=0.02)
