"""Masks of attention: which position sees which, from the ids of segments and continuations."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def attention_mask(
    segment_ids: Int[Array, "B T"],
    continuation_ids: Int[Array, "B T"],
) -> Bool[Array, "B T T"]:
    """True where position i sees position j of a row of packed trees (`data/batches/packing.py` draws one).

    It does if j is not after i, both are in the same segment, which is not 0 (padding), and j is in the
    segment's prefix (continuation 0) or in i's own continuation.
    """
    causal = jnp.tri(segment_ids.shape[1], dtype=bool)[None]
    return causal & context_mask(segment_ids, continuation_ids, segment_ids, continuation_ids)


def window_mask(
    positions: Int[Array, "#B T"],
    context_positions: Int[Array, "#B S"],
    window: int,
) -> Bool[Array, "#B T S"]:
    """True where a position is less than `window` after one of S others."""
    distances = positions[:, :, None] - context_positions[:, None]
    return distances < window


def context_mask(
    segment_ids: Int[Array, "B T"],
    continuation_ids: Int[Array, "B T"],
    context_segment_ids: Int[Array, "B S"],
    context_continuation_ids: Int[Array, "B S"],
) -> Bool[Array, "B T S"]:
    """True where a position sees one of S others that all come before it in its row, such as cached ones."""
    # Axes: positions, then those that they may see.
    segment = segment_ids[:, :, None]
    continuation = continuation_ids[:, :, None]
    context_segment = context_segment_ids[:, None]
    context_continuation = context_continuation_ids[:, None]

    is_prefix = context_continuation == 0
    in_continuation = is_prefix | (context_continuation == continuation)
    in_segment = (context_segment == segment) & (segment != 0)
    return in_segment & in_continuation
