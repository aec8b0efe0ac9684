"""The planned batch has the form of the one that is trained and scored on."""

import jax
import jax.numpy as jnp
import pytest

from radit_jax.config import MeshConfig
from radit_jax.data.batches.packing import to_batch
from radit_jax.planning.estimates import batch_of
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
