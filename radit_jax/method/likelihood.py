"""From a language model to log p_LM(y | c∘x): the batch that carries answers, and how it is scored."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, Shaped

from radit_jax.config import DecoderConfig
from radit_jax.models.attention import wide
from radit_jax.models.decoder import DecoderLm
from radit_jax.models.flops import pairs_at

LOGITS_BYTES = 2**27  # of the logits that a device holds at the same time, about
TARGETS_PER_PART = 16  # a part has so many targets of each row, or a multiple


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


def batch_counts(batch: LmBatch, config: DecoderConfig) -> dict[str, Num[Array, ""]]:
    """The work in a batch for a network: counts of its targets, its tokens and its attended pairs.

    `attended` counts pairs of a token and one that it sees, itself included, as the mean over the layers.
    `fill` is the share of positions that hold a token.
    """
    is_real = batch.segment_ids > 0
    is_target = batch.target_weights > 0
    return {
        "answer_tokens": is_target.sum(),
        "tokens": is_real.sum(),
        "attended": jnp.where(is_real, pairs_at(config, batch.positions), 0).sum(),
        "fill": is_real.mean(dtype=jnp.float32),
    }


def token_log_probs(
    module: DecoderLm,
    params: Any,
    batch: LmBatch,
) -> Float[Array, "B A"]:
    """Each target's log-probability in nats, float32, given what its position sees; 0 in unused slots."""
    hidden: Any = module.apply(
        {"params": params},
        batch.tokens,
        batch.positions,
        segment_ids=batch.segment_ids,
        continuation_ids=batch.continuation_ids,
        method="hidden",
    )
    # Only the states that predict a target go through the head.
    slots = batch.target_slots[:, :, None]
    at_slots = jnp.take_along_axis(hidden, slots, axis=1)
    is_used = batch.target_weights > 0
    head: Any = module.apply({"params": params}, method="head_kernel")

    def log_probs(
        hidden: Float[Array, "B c D"],
        targets: Int[Array, "B c"],
    ) -> Float[Array, "B c"]:
        logits: Any = module.apply({"params": params}, hidden, head, method="logits")
        of_targets = entries_of(logits, targets)
        return of_targets - jax.nn.logsumexp(logits, axis=-1)

    num_rows = len(batch.tokens)
    if module.layout is not None:
        num_rows = module.layout.rows_of_device(num_rows)
    part_size = targets_per_part(num_rows, module.config.vocab_size)
    of_targets = _by_parts(log_probs, at_slots, batch.targets, is_used, part_size)
    return jnp.where(is_used, of_targets, 0.0)


def targets_per_part(num_rows: int | float, vocab_size: int) -> int:
    """How many targets of each row, on a device with `num_rows` of them, have logits at the same time.

    The product of many states with the head is what an accelerator is fast at, but memory has to hold it.

    >>> targets_per_part(8, 128256), targets_per_part(4, 32000), targets_per_part(64, 128256)
    (32, 256, 16)
    """
    bytes_per_target = 4 * num_rows * vocab_size
    most = LOGITS_BYTES / bytes_per_target
    num_units = int(most / TARGETS_PER_PART)
    return TARGETS_PER_PART * max(1, num_units)


def entries_of(
    values: Float[Array, "*#rows V"],
    ids: Int[Array, "*#rows"],
) -> Float[Array, "*#rows"]:
    """The entry of each row of V values that `ids` names; an axis of length 1 serves all of the other's."""
    entries = jnp.take_along_axis(values, ids[..., None], axis=-1)
    return entries[..., 0]


def _by_parts(
    log_probs: Callable[..., Float[Array, "B c"]],
    hidden: Float[Array, "B A D"],
    targets: Int[Array, "B A"],
    is_used: Bool[Array, "B A"],
    part_size: int,
) -> Float[Array, "B A"]:
    """`log_probs` for `part_size` target slots at a time, so that no more logits exist than for those.

    A part in which no row has a target costs nothing. The used slots of a row come first, so the last parts
    serve only the rows with the most targets.
    """
    num_targets = targets.shape[1]
    num_parts = -(-num_targets // part_size)
    if num_parts == 1:
        return log_probs(hidden, targets)

    def split(
        array: Shaped[Array, "B A *rest"],
    ) -> Shaped[Array, "parts B c *rest"]:
        """`part_size` slots to each part; the last part is padded with zeros."""
        batch, _, *rest = array.shape
        num_missing = num_parts * part_size - num_targets
        widths = [(0, 0)] * array.ndim
        widths[1] = (0, num_missing)
        padded = jnp.pad(array, widths)
        by_row = padded.reshape(batch, num_parts, part_size, *rest)
        return by_row.swapaxes(0, 1)

    def zeros(
        hidden: Float[Array, "B c D"],
        targets: Int[Array, "B c"],
    ) -> Float[Array, "B c"]:
        return jnp.zeros(targets.shape, wide(hidden.dtype))

    def part_log_probs(
        part: tuple[
            Float[Array, "B c D"],
            Int[Array, "B c"],
            Bool[Array, "B c"],
        ],
    ) -> Float[Array, "B c"]:
        part_hidden, part_targets, part_is_used = part
        # The logits are computed again for the gradient, so that they need not be kept.
        compute = jax.checkpoint(log_probs)
        return jax.lax.cond(
            part_is_used.any(),
            compute,
            zeros,
            part_hidden,
            part_targets,
        )

    # One part after the other, then back to [B, A] without the padding.
    parts = split(hidden), split(targets), split(is_used)
    by_part = jax.lax.map(part_log_probs, parts)
    by_row = by_part.swapaxes(0, 1)
    flat = by_row.reshape(len(targets), -1)
    return flat[:, :num_targets]


@functools.partial(jax.jit, static_argnames=("module", "num_continuations"))
def continuation_log_probs(
    module: DecoderLm,
    params: Any,
    batch: LmBatch,
    num_continuations: int,
) -> Float[Array, "B {num_continuations}"]:
    """Log p_LM of each continuation's targets in nats, summed over its tokens: [B, num_continuations].

    A token counts where its weight is above 0, whatever the weight. Continuations that a row does not have,
    or that have no target, are 0; `num_continuations` is the most that any row may have.
    """
    is_target = batch.target_weights > 0
    is_counted = is_target & (batch.target_items >= 0)
    log_probs = token_log_probs(module, params, batch)
    log_probs = jnp.where(is_counted, log_probs, 0.0)

    # Sum the targets of each continuation, row by row.
    sum_by_item = functools.partial(jax.ops.segment_sum, num_segments=num_continuations)
    items = jnp.maximum(batch.target_items, 0)
    return jax.vmap(sum_by_item)(log_probs, items)
