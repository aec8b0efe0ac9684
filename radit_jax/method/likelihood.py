"""From a language model to log p_LM(y | c∘x): the batch that carries answers, and how it is scored."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from radit_jax.models.attention import wide
from radit_jax.models.llama import Llama

SLOTS = 64  # targets of a row whose logits exist at a time


class LmBatch(NamedTuple):
    """Rows of packed trees (see `radit_jax.data.batches.packing`, which makes them and shows one in columns).

    A row holds several *segments*, each a prefix with any number of continuations. A token sees the earlier
    tokens of its own segment that are in the prefix or in its own continuation. The tokens that the model is
    to predict are listed apart, so that the head, most of a small model's work, runs on them alone.

    Where no segment has two continuations, segments alone say who sees whom. `continuation_ids` is then left
    out, which is part of the batch's structure: what is compiled for it may use an attention that knows
    only segments.
    """

    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T"]  # from 0 in each segment; every continuation goes on from its prefix
    segment_ids: Int[Array, "B T"]  # from 1 in each row; 0 is padding
    continuation_ids: Int[Array, "B T"] | None  # from 1 in each segment; 0 is its prefix
    target_slots: Int[Array, "B A"]  # where in the row a target is predicted: at its predecessor
    targets: Int[Array, "B A"]
    target_weights: Float[Array, "B A"]  # 0 marks an unused slot
    target_items: Int[Array, "B A"]  # the target's continuation, counted from 0 along the row; -1 in a prefix


def batch_counts(batch: LmBatch) -> dict[str, Array]:
    """What there is to do in a batch, as numbers.

    `attended` counts the pairs of a token and one that it sees, itself included: a token sees as many as its
    position has before it. `fill` is the share of the rows that are no padding.
    """
    real = batch.segment_ids > 0
    return {
        "answer_tokens": (batch.target_weights > 0).sum(),
        "tokens": real.sum(),
        "attended": jnp.where(real, batch.positions + 1, 0).sum(dtype=jnp.float32),
        "fill": real.mean(dtype=jnp.float32),
    }


def token_log_probs(module: Llama, params: Any, batch: LmBatch) -> Float[Array, "B A"]:
    """Each target's log-probability in nats, float32, given what its position sees; 0 in unused slots."""
    hidden: Any = module.apply(
        {"params": params},
        batch.tokens,
        batch.positions,
        segment_ids=batch.segment_ids,
        continuation_ids=batch.continuation_ids,
        method="hidden",
    )
    at_slots = jnp.take_along_axis(hidden, batch.target_slots[:, :, None], axis=1)
    used = batch.target_weights > 0

    def log_probs(hidden: Float[Array, "B c D"], targets: Int[Array, "B c"]) -> Float[Array, "B c"]:
        logits: Any = module.apply({"params": params}, hidden, method="logits")
        chosen = jnp.take_along_axis(logits, targets[:, :, None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    return jnp.where(used, _in_parts(log_probs, at_slots, batch.targets, used), 0.0)


def _in_parts(
    log_probs: Callable[..., Float[Array, "B c"]],
    hidden: Float[Array, "B A D"],
    targets: Int[Array, "B A"],
    used: Bool[Array, "B A"],
) -> Float[Array, "B A"]:
    """`log_probs` of `SLOTS` slots at a time, which no more logits exist of; parts without a target are free.

    The used slots of a row come first, so the last parts serve its longest rows only.
    """
    if (num_parts := -(-targets.shape[1] // SLOTS)) == 1:
        return log_probs(hidden, targets)

    def parts(x: Array) -> Array:
        padding = [(0, num_parts * SLOTS - x.shape[1]) if axis == 1 else (0, 0) for axis in range(x.ndim)]
        return jnp.pad(x, padding).reshape(len(x), num_parts, SLOTS, *x.shape[2:]).swapaxes(0, 1)

    def part(x: tuple[Array, Array, Array]) -> Array:
        hidden, targets, used = x
        zeros = lambda hidden, targets: jnp.zeros(targets.shape, wide(hidden.dtype))  # noqa: E731
        return jax.lax.cond(used.any(), jax.checkpoint(log_probs), zeros, hidden, targets)

    found = jax.lax.map(part, (parts(hidden), parts(targets), parts(used)))
    return found.swapaxes(0, 1).reshape(len(targets), -1)[:, : targets.shape[1]]


@functools.partial(jax.jit, static_argnames=("module", "num_continuations"))
def continuation_log_probs(
    module: Llama, params: Any, batch: LmBatch, num_continuations: int
) -> Float[Array, "B {num_continuations}"]:
    """Log p_LM of each continuation's targets in nats, summed over its tokens: [B, num_continuations].

    A weight says here only whether a token counts. Branches that a row does not have, or that have no target,
    are 0; `num_continuations` is the most that any row may have.
    """
    counted = (batch.target_weights > 0) & (batch.target_items >= 0)
    log_probs = jnp.where(counted, token_log_probs(module, params, batch), 0.0)
    sums = jax.vmap(lambda values, items: jax.ops.segment_sum(values, items, num_continuations))
    return sums(log_probs, jnp.maximum(batch.target_items, 0))
