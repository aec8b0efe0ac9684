"""The planned batch has the form of the one that is trained and scored on."""

import jax
import jax.numpy as jnp
import pytest

from radit_jax.config import DecoderConfig, MeshConfig
from radit_jax.data.batches.packing import to_batch
from radit_jax.models.decoder import DecoderLm
from radit_jax.planning.deployment import PlannedModel
from radit_jax.planning.estimates import activations_of, batch_of
from radit_jax.runtime.distributed.mesh import make_mesh, put_batch


@pytest.mark.parametrize("continuations", [True, False])
def test_a_planned_batch_is_one_of_the_run_in_shape_dtype_and_place(continuations):
    mesh = make_mesh(MeshConfig())
    empty = to_batch([], [], row_length=32, targets_per_row=12, num_rows=16, continuation_ids=continuations)
    ran, planned = put_batch(empty, mesh), batch_of(mesh, 16, 32, 12, continuations=continuations)
    assert jax.tree.structure(ran) == jax.tree.structure(planned)
    for actual, expected in zip(jax.tree.leaves(planned), jax.tree.leaves(ran), strict=True):
        assert (actual.shape, actual.dtype, actual.sharding) == (
            expected.shape,
            expected.dtype,
            expected.sharding,
        )
    assert planned.tokens.dtype == jnp.int32


@pytest.mark.parametrize(("remat", "layers"), [("none", 3), ("dots", 1), ("full", 1)])
def test_cudnn_keeps_a_number_for_each_position_and_place_of_a_segment(remat, layers):
    config = DecoderConfig(
        vocab_size=64, hidden_size=32, num_layers=3, num_heads=4, num_kv_heads=4, head_size=8, ffn_size=64
    )
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))

    def activations(kernel, *, training):
        module = DecoderLm(config, dtype=jnp.dtype("bfloat16"), attention=kernel, remat=remat)
        return activations_of(PlannedModel(module, {}, mesh), rows=8, length=64, training=training)

    # Two rows and two heads a chip; a row of 64 positions has 4 places.
    kept = activations("cudnn", training=True) - activations("splash", training=True)
    assert kept == layers * 2 * 2 * 64 * 4 * 4
    assert activations("cudnn", training=False) == activations("splash", training=False)
