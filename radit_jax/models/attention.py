"""Attention: who sees whom, and the weighted sum over what is seen."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e30  # added to a score; so large that float32 forgets the score, and finite


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S M H"],
    v: Float[Array, "B S M H"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """Scaled dot-product attention of T queries over S keys, its softmax in float32.

    N query heads share M key heads, N / M neighbours each (grouped-query attention). `mask` is True where a
    query sees a key. A query that sees nothing, as padding does, averages all values: finite, and unused.
    """
    batch, length, num_heads, head_size = q.shape
    grouped = q.reshape(batch, length, k.shape[2], num_heads // k.shape[2], head_size)
    scores = jnp.einsum("btmgh,bsmh->bmgts", grouped, k, preferred_element_type=jnp.float32)
    scores = scores * head_size**-0.5 + jnp.where(mask, 0.0, MASKED)[:, None, None]
    # The softmax is divided by its sum behind the second product, where there are H numbers instead of S.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    sums = jnp.einsum("bmgts->btmg", weights)[..., None]
    attended = jnp.einsum("bmgts,bsmh->btmgh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (attended / sums).astype(v.dtype).reshape(q.shape)


def attention_mask(segment_ids: Int[Array, "B T"], branch_ids: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """True where position i sees position j of a row of packed trees (`radit_jax.data.packing` draws one).

    It does where j is not after i, both are in the same segment, which is not 0 (padding), and j is in the
    segment's trunk (branch 0) or in i's own branch.
    """
    causal = jnp.tri(segment_ids.shape[1], dtype=bool)[None]
    return causal & context_mask(segment_ids, branch_ids, segment_ids, branch_ids)


def context_mask(
    segment_ids: Int[Array, "B T"],
    branch_ids: Int[Array, "B T"],
    context_segment_ids: Int[Array, "B S"],
    context_branch_ids: Int[Array, "B S"],
) -> Bool[Array, "B T S"]:
    """True where a position sees one of S others that all come before it in its row, such as cached ones."""
    segment, branch = segment_ids[:, :, None], branch_ids[:, :, None]
    context_segment, context_branch = context_segment_ids[:, None], context_branch_ids[:, None]
    same_branch = (context_branch == 0) | (context_branch == branch)
    return (context_segment == segment) & (segment != 0) & same_branch
