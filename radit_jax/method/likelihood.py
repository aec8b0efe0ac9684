"""From a language model to log p_LM(y | c∘x): the batch that carries answers, and how it is scored."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from radit_jax.models.attention import wide
from radit_jax.models.llama import Llama

TARGETS_PER_PART = 64  # targets of a row whose logits exist at the same time


class LmBatch(NamedTuple):
    """Rows of packed trees (see `radit_jax.data.batches.packing`, which makes them and shows one in columns).

    A row holds several *segments*, each a prefix with any number of continuations. A token sees the earlier
    tokens of its own segment that are in the prefix or in its own continuation. The tokens that the model is
    to predict are listed separately, so that the head, most of a small model's work, runs only for them.

    Where no segment has two continuations, the segments alone determine which tokens see each other.
    `continuation_ids` is then None, so that a program compiled for such a batch may use an attention kernel
    that knows only segments.
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
    """The work in a batch: counts of its targets, its tokens and its attended pairs.

    `attended` counts pairs of a token and one that it sees, itself included: at position p it sees p + 1.
    `fill` is the share of positions that hold a token.
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

    return jnp.where(used, _by_parts(log_probs, at_slots, batch.targets, used), 0.0)


def _by_parts(
    log_probs: Callable[..., Float[Array, "B c"]],
    hidden: Float[Array, "B A D"],
    targets: Int[Array, "B A"],
    used: Bool[Array, "B A"],
) -> Float[Array, "B A"]:
    """`log_probs` for `TARGETS_PER_PART` target slots at a time, so that no more logits exist than for those.

    A part in which no row has a target costs nothing. The used slots of a row come first, so the last parts
    serve only the rows with the most targets.
    """
    num_parts = -(-targets.shape[1] // TARGETS_PER_PART)
    if num_parts == 1:
        return log_probs(hidden, targets)

    def split(x: Array) -> Array:
        """[B, A, ...] to [parts, B, TARGETS_PER_PART, ...], padded with zeros."""
        missing = num_parts * TARGETS_PER_PART - x.shape[1]
        padding = [(0, missing if axis == 1 else 0) for axis in range(x.ndim)]
        parts = jnp.pad(x, padding).reshape(len(x), num_parts, TARGETS_PER_PART, *x.shape[2:])
        return parts.swapaxes(0, 1)

    def zeros(hidden: Array, targets: Array) -> Array:
        return jnp.zeros(targets.shape, wide(hidden.dtype))

    def part_log_probs(part: tuple[Array, Array, Array]) -> Array:
        hidden, targets, used = part
        # The logits are computed again for the gradient, so that they need not be kept.
        return jax.lax.cond(used.any(), jax.checkpoint(log_probs), zeros, hidden, targets)

    by_part = jax.lax.map(part_log_probs, (split(hidden), split(targets), split(used)))
    return by_part.swapaxes(0, 1).reshape(len(targets), -1)[:, : targets.shape[1]]


@functools.partial(jax.jit, static_argnames=("module", "num_continuations"))
def continuation_log_probs(
    module: Llama, params: Any, batch: LmBatch, num_continuations: int
) -> Float[Array, "B {num_continuations}"]:
    """Log p_LM of each continuation's targets in nats, summed over its tokens: [B, num_continuations].

    A token counts where its weight is above 0, whatever the weight. Continuations that a row does not have,
    or that have no target, are 0; `num_continuations` is the most that any row may have.
    """
    counted = (batch.target_weights > 0) & (batch.target_items >= 0)
    log_probs = jnp.where(counted, token_log_probs(module, params, batch), 0.0)
    sums = jax.vmap(lambda values, items: jax.ops.segment_sum(values, items, num_continuations))
    return sums(log_probs, jnp.maximum(batch.target_items, 0))
