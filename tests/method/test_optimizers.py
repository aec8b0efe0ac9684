"""The schedule, Muon, clipping and weight decay, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from exact import EXACT, STORED, drawn_in_float64

from radit_jax.config import DecoderConfig, OptimizerConfig
from radit_jax.method.optimizers import learning_rate, learning_rates, make_optimizer
from radit_jax.models.decoder import DecoderLm

LLAMA = DecoderLm(
    DecoderConfig(
        vocab_size=40, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=2, head_size=8, ffn_size=24
    ),
    dtype=jnp.float64,
)
pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(scope="module")
def llama_params():
    return drawn_in_float64(LLAMA, jnp.zeros((1, 4), jnp.int32))


def by_name(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # Warm-up in two steps, then down a straight line to 0.2 at step 6.
        (
            {"steps": 6, "peak_lr": 1.0, "end_lr": 0.2, "warmup_steps": 2},
            [0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2],
        ),
        # Held until step 4 of 8; then a half cosine.
        (
            {"steps": 8, "peak_lr": 1.0, "decay": "cosine", "decay_from": 0.5},
            [1, 1, 1, 1, 1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0.0],
        ),
        ({"steps": 2, "peak_lr": 0.5}, [0.5, 0.25, 0.0]),
    ],
)
def test_the_learning_rate_by_hand(config, expected):
    schedule = learning_rate(OptimizerConfig(**config), config["peak_lr"])
    assert learning_rates(OptimizerConfig(**config)) == pytest.approx(
        list(map(float, map(schedule, range(config["steps"]))))
    )
    np.testing.assert_allclose([schedule(step) for step in range(len(expected))], expected, atol=EXACT)


def test_another_peak_scales_the_whole_schedule():
    config = OptimizerConfig(steps=6, peak_lr=1.0, end_lr=0.2, warmup_steps=2)
    scaled, plain = learning_rate(config, 0.1), learning_rate(config, 1.0)
    np.testing.assert_allclose([scaled(s) for s in range(7)], [plain(s) / 10 for s in range(7)], rtol=EXACT)


def test_muon_orthogonalises_each_layers_matrices_and_adam_has_the_rest(llama_params):
    config = OptimizerConfig(steps=10**6, peak_lr=1.0, adam_lr=0.01, name="muon", clip_norm=np.inf)
    tx = make_optimizer(config)
    rng = np.random.default_rng(0)
    # The second layer's gradient is a hundred times the first's: a view across layers would lose the first.
    scales = {1: 1.0, 2: 1.0, 3: np.array([1.0, 100.0]).reshape(2, 1, 1)}
    grads = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * scales[leaf.ndim]),
        llama_params,
    )
    updates = by_name(jax.jit(tx.update)(grads, tx.init(llama_params), llama_params)[0])
    for name, update in updates.items():
        if update.ndim == 3:
            scale = np.sqrt(max(1.0, update.shape[2] / update.shape[1]))
            singular = np.linalg.svd(update, compute_uv=False) / scale
            # Newton and Schulz leave the few smallest of a square matrix behind.
            assert (singular < 1.25).all() and ((singular > 0.6).mean(axis=1) > 0.8).all(), name
        else:
            # Adam's first step is the sign of the gradient; Nesterov's look ahead adds 0.9 · 0.1 / 0.19.
            np.testing.assert_allclose(np.abs(update), 0.0147368, rtol=1e-3, err_msg=name)


def test_muon_without_a_rate_for_adam_is_an_error():
    with pytest.raises(ValueError, match="expected adam_lr > 0 with name='muon', got 0.*Set adam_lr"):
        make_optimizer(OptimizerConfig(steps=1, peak_lr=1.0, name="muon"))


def test_large_gradients_are_clipped_by_their_global_norm(llama_params):
    config = OptimizerConfig(steps=10, peak_lr=1.0, clip_norm=0.5)
    clip = make_optimizer(config)
    # Adam divides by the size of the gradient; its first moment (1 - b1 of it) shows what came in.
    grads = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 3.0), llama_params)
    _, state = jax.jit(clip.update)(grads, clip.init(llama_params), llama_params)
    assert optax.tree.norm(optax.tree.get(state, "mu")) == pytest.approx(0.1 * 0.5, rel=EXACT)


def test_weight_decay_shrinks_matrices_only(llama_params):
    config = OptimizerConfig(steps=10, peak_lr=0.1, weight_decay=0.5)
    tx = make_optimizer(config)
    still = jax.tree.map(jnp.zeros_like, llama_params)
    updates = by_name(jax.jit(tx.update)(still, tx.init(llama_params), llama_params)[0])
    for name, before in by_name(llama_params).items():
        factor = -0.05 if name.endswith("kernel") else 0.0
        np.testing.assert_allclose(updates[name], factor * before, rtol=STORED, err_msg=name)
