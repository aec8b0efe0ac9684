import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import assert_exact, assert_rounded
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from radit_jax.config import DecoderConfig
from radit_jax.models.attention import (
    PLAIN,
    Layout,
    ScoreForm,
    attend,
    why_unsupported,
)
from radit_jax.models.cudnn import max_segments, segment_bounds
from radit_jax.models.decoder import DecoderLm
from radit_jax.models.masks import attention_mask, context_mask

pytestmark = pytest.mark.usefixtures("float64")


SHAPE = DecoderConfig(
    vocab_size=8, hidden_size=64, num_layers=1, num_heads=4, num_kv_heads=2, head_size=16, ffn_size=8
)


def ids(*values: int) -> jnp.ndarray:
    return jnp.array([values], jnp.int32)


def test_a_packed_row_of_trees_has_this_mask():
    """A prefix with two continuations, a plain sequence, and padding: the row that packing.py draws."""
    segments = ids(1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 0, 0)
    continuations = ids(0, 0, 1, 1, 2, 2, 2, 1, 1, 1, 0, 0)
    expected = [
        [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(attention_mask(segments, continuations)[0].astype(int), expected)


def test_one_sequence_has_the_causal_mask():
    expected = [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    np.testing.assert_array_equal(attention_mask(ids(1, 1, 1), ids(0, 0, 0))[0].astype(int), expected)


def test_what_comes_before_is_seen_by_segment_and_continuation():
    """The cache holds two prompt tokens, one of continuation 1, padding, and one of another segment."""
    seen = context_mask(ids(1, 1, 1, 0), ids(0, 1, 2, 0), ids(1, 1, 1, 0, 2), ids(0, 0, 1, 0, 0))
    expected = [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(seen[0].astype(int), expected)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_attention_is_the_softmax_weighted_mean_of_the_values_that_are_seen(num_kv_heads):
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, 3, 4, 6))
    k, v = rng.normal(size=(2, 2, 5, num_kv_heads, 6))
    mask = rng.random((2, 3, 5)) < 0.7
    mask[:, :, 0] = True
    out = attend(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), jnp.asarray(mask))
    for b, t, n in np.ndindex(2, 3, 4):
        seen, head = mask[b, t], n // (4 // num_kv_heads)
        weights = np.exp(k[b, seen, head] @ q[b, t, n] / np.sqrt(6))
        expected = weights @ v[b, seen, head] / weights.sum()
        assert_exact(out[b, t, n], expected)


@pytest.mark.parametrize(("length", "before"), [(300, 0), (300, 40), (128, 7), (1100, 0)])
def test_a_causal_mask_is_worked_through_in_blocks_to_the_same_values_and_gradients(length, before):
    rng = np.random.default_rng(0)
    arrays = (rng.normal(size=(1, n, heads, 4)) for n, heads in ((length, 2), *[(before + length, 1)] * 2))
    inputs = tuple(jnp.asarray(array) for array in arrays)
    segments = jnp.repeat(jnp.arange(1, 5), -(-length // 4))[None, :length]
    own = attention_mask(segments, jnp.zeros_like(segments))
    mask = jnp.concatenate([jnp.ones((1, length, before), bool), own], axis=2)

    def results(causal):
        def total(q, k, v):
            attended = attend(q, k, v, mask, causal=causal)
            return (attended * jnp.sin(jnp.arange(attended.size).reshape(attended.shape))).sum(), attended

        (_, attended), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(
            *inputs
        )
        return attended, *gradients

    assert_exact(results(True), results(False))


def test_what_no_causal_query_sees_is_not_computed():
    q = jnp.ones((1, 512, 1, 8))
    mask = jnp.tri(512, dtype=bool)[None]

    def flops(causal):
        compiled = jax.jit(lambda q: attend(q, q, q, mask, causal=causal)).lower(q).compile()
        costs = compiled.cost_analysis()
        assert costs is not None
        return costs["flops"]

    assert flops(True) < 0.65 * flops(False)  # 10 of 16 blocks


def test_a_query_that_sees_nothing_gives_finite_numbers():
    x = jnp.ones((1, 2, 1, 4))
    assert jnp.isfinite(attend(x, x, x, jnp.zeros((1, 2, 2), bool))).all()


def packed_rows(dtype=jnp.float32, length=384, num_kv_heads=2, rows=2):
    """Queries, keys, values and segment ids: rows of several segments of odd lengths, then padding."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(rows, length, heads, 16)) for heads in (4, num_kv_heads, num_kv_heads))
    ends = rng.integers(1, length - 20, (rows, 4, 1))
    segments = 1 + (np.arange(length) >= ends).sum(axis=1)
    segments[:, length - 20 :] = 0
    return *(jnp.asarray(x, dtype) for x in (q, k, v)), jnp.asarray(segments, jnp.int32)


def assert_same_attention(rows, *how, form=PLAIN):
    """A kernel's values and gradients at the positions that are no padding, against float64."""
    q, k, v, segments = rows
    weights = np.random.default_rng(1).normal(size=q.shape) * np.asarray(segments > 0)[:, :, None, None]

    @functools.partial(jax.jit, static_argnums=(3, 4))
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def attended(q, k, v, *how):
        out = attend(q, k, v, segments, *how, form=form)
        used = jnp.where((segments > 0)[:, :, None, None], out, 0)
        return (used * jnp.asarray(weights, used.dtype)).sum(), used

    def exact(inputs):
        (_, out), grads = attended(*inputs, "xla")
        return out, *grads

    with jax.enable_x64(False):  # which the kernel cannot be traced with
        (_, out), grads = attended(q, k, v, *how)
    assert {leaf.dtype for leaf in (out, *grads)} == {q.dtype}
    assert_rounded((out, *grads), exact, (q, k, v), q.dtype)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_splash_attends_as_the_reference_does(num_kv_heads):
    rows = packed_rows(num_kv_heads=num_kv_heads, length=256)
    assert_same_attention(rows, "splash")


@pytest.mark.parametrize("form", [ScoreForm(window=100), ScoreForm(scale=0.4, cap=2.0)], ids=str)
def test_splash_has_a_window_and_caps_scores_as_the_reference_does(form):
    rows = packed_rows()
    assert_same_attention(rows, "splash", form=form)
    segments = rows[3]
    plain, other = (attend(*rows[:3], segments, form=each) for each in (PLAIN, form))
    assert jnp.abs(plain - other)[segments > 0].max() > 0.01


def test_over_a_mesh_each_device_has_its_rows_and_heads():
    mesh = jax.make_mesh((2, 2, 2), ("a", "b", "c"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    layout = Layout(mesh, ("a", "b"), "c")
    assert_same_attention(packed_rows(rows=4, length=128), "splash", layout)


def test_cudnn_attends_as_the_reference_does():
    problem = why_unsupported("cudnn", SHAPE, dtype=jnp.bfloat16, row_length=384)
    if jax.default_backend() != "gpu" or problem:
        pytest.skip(f"needs a GPU of Hopper or later, run with JAX_PLATFORMS=cuda: {problem}")
    assert_same_attention(packed_rows(jnp.bfloat16), "cudnn")


def test_cudnn_is_called_with_packed_segments_forwards_and_backwards(monkeypatch):
    """What a CPU can show: the program for CUDA calls both kernels, causal within each of its segments."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    *heads, segments = packed_rows(jnp.bfloat16)
    grad = jax.grad(lambda q, k, v: attend(q, k, v, segments, "cudnn").sum(), argnums=(0, 1, 2))
    disabled = [
        jax.export.DisabledSafetyCheck.custom_call(f"__cudnn$fmhaSoftmax{name}") for name in ("", "Backward")
    ]
    text = jax.export.export(jax.jit(grad), platforms=["cuda"], disabled_checks=disabled)(
        *heads
    ).mlir_module()
    assert "__cudnn$fmhaSoftmax(" in text and "__cudnn$fmhaSoftmaxBackward(" in text
    assert text.count("PADDING_CAUSAL") == 2
    # Two rows with room for 24 segments each: lengths, and offsets of which one more is taken.
    assert "tensor<2x24xi32>" in text and "tensor<2x25xi32>" in text


def test_segments_are_handed_over_by_their_starts_and_lengths():
    offsets, lengths, fits = segment_bounds(jnp.array([[1, 1, 2, 0, 0], [3, 3, 3, 3, 3]], jnp.int32), 4)
    np.testing.assert_array_equal(offsets, [[0, 2, 3, -1, -1], [0, -1, -1, -1, -1]])
    np.testing.assert_array_equal(lengths, [[2, 1, 2, -1], [5, -1, -1, -1]])
    assert fits.all()
    np.testing.assert_array_equal(segment_bounds(ids(1, 2, 3), 2)[2], [False])
    np.testing.assert_array_equal(segment_bounds(ids(1, 2, 2), 2)[2], [True])


@pytest.mark.parametrize(
    ("kernel", "changes", "why"),
    [
        ("xla", {"row_length": 7}, None),
        ("splash", {}, None),
        ("splash", {"row_length": 200}, "rows of 200 are not a multiple of 128"),
        ("splash", {"tensor": 4}, "2 key heads do not divide over 4 devices"),
        ("cudnn", {"dtype": jnp.float32}, "it computes in bfloat16, not in float32"),
        ("cudnn", {"head_size": 20}, "heads of 20 are not a multiple of 8"),
        ("splash", {"window": 100, "score_cap": 50.0}, None),
        ("cudnn", {"window": 100}, "it packs segments without a window, here of 100"),
        ("cudnn", {"score_cap": 50.0}, "it does not cap scores"),
    ],
)
def test_a_kernel_says_what_keeps_it_from_serving(kernel, changes, why):
    of_rows = {"dtype": jnp.bfloat16, "row_length": 256, "tensor": 1}
    of_network = {name: value for name, value in changes.items() if name not in of_rows}
    config = dataclasses.replace(SHAPE, **of_network)
    of_rows = {name: changes.get(name, value) for name, value in of_rows.items()}
    problem = why_unsupported(kernel, config, **of_rows)
    if why is None:
        assert problem is None
    else:
        assert problem is not None and problem.startswith(why)


def _private_form(monkeypatch, form):
    monkeypatch.setattr(cudnn, "dot_product_attention", form)
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91_000)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: m.setitem(sys.modules, "jax._src.cudnn", None), "this jax does not have it"),
        (lambda m: _private_form(m, lambda query, key, value: query), "does not take kv_offsets, kv_seqlen"),
        (lambda m: m.setattr(cudnn, "cuda_versions", None), "cuDNN is not detected"),
    ],
)
def test_another_form_of_jaxs_private_module_is_said_and_not_called(monkeypatch, change, why):
    change(monkeypatch)
    assert why in why_unsupported("cudnn", SHAPE, dtype=jnp.bfloat16, row_length=256)


def test_a_window_that_holds_the_whole_row_needs_no_kernel_that_knows_it(monkeypatch):
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    config = dataclasses.replace(SHAPE, window=256)
    assert why_unsupported("cudnn", config, dtype=jnp.bfloat16, row_length=256) is None


# Gemma 3's kind, with more layers than are unrolled: a scanned block that chooses its kernel.
WINDOWED = DecoderConfig(
    vocab_size=64,
    hidden_size=64,
    num_layers=12,
    num_heads=2,
    num_kv_heads=1,
    head_size=128,
    ffn_size=64,
    family="gemma3",
    window=128,
    global_every=6,
    local_rope_theta=1e4,
    query_divisor=128,
)


@jax.enable_x64(False)  # with which kernels cannot be traced
def program_of_a_gradient(config, kernel, row_length, platform, disabled=()):
    """The program for a platform, of the gradient of a packed row's logits in bfloat16."""
    module = DecoderLm(config, dtype=jnp.bfloat16, remat="full", attention=kernel)
    tokens = jax.ShapeDtypeStruct((2, row_length), jnp.int32)
    params = jax.eval_shape(module.init, jax.random.key(0), tokens)["params"]

    def total(params, tokens, positions, segment_ids):
        return module.apply({"params": params}, tokens, positions, segment_ids).sum()

    gradient = jax.jit(jax.grad(total))
    exported = jax.export.export(gradient, platforms=[platform], disabled_checks=disabled)
    return exported(params, tokens, tokens, tokens).mlir_module()


@pytest.mark.parametrize("family", ["gemma3", "mistral"])
def test_a_windowed_network_has_splash_forwards_and_backwards_for_a_tpu(monkeypatch, family):
    """Mistral's layers are all local. Gemma's choose between two kernels of each kind, in one block."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")  # or the kernel is interpreted
    config = WINDOWED
    if family == "mistral":
        config = dataclasses.replace(
            config, family="mistral", global_every=0, local_rope_theta=None, query_divisor=None
        )
    program = program_of_a_gradient(config, "splash", 256, "tpu")
    # Forwards, forwards again, and backwards; no layer has a copy of its own.
    num_kinds = 2
    for name in ("splash_mha_fwd", "splash_mha_dq", "splash_mha_dkv"):
        assert program.count(f'kernel_name = "{name}') >= num_kinds, name
    assert "stablehlo.case" in program and "stablehlo.while" in program


def test_rows_up_to_the_window_have_cudnn_and_longer_ones_the_reference(monkeypatch):
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    kernels = ("", "Backward")
    disabled = [jax.export.DisabledSafetyCheck.custom_call(f"__cudnn$fmhaSoftmax{name}") for name in kernels]
    program = program_of_a_gradient(WINDOWED, "cudnn", 128, "cuda", disabled)
    assert "__cudnn$fmhaSoftmax(" in program and "__cudnn$fmhaSoftmaxBackward(" in program
    of_rows = {"dtype": jnp.bfloat16, "row_length": 256}
    problem = why_unsupported("cudnn", WINDOWED, **of_rows)
    assert problem is not None and "without a window, here of 128" in problem
    assert "fmhaSoftmax" not in program_of_a_gradient(WINDOWED, "xla", 256, "cuda")


def test_the_room_for_segments_grows_with_the_row():
    assert [max_segments(length) for length in (16, 384, 2048)] == [2, 24, 128]
