"""cuDNN's attention over rows of packed segments, forward and backward, on Hopper GPUs or later."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

SEGMENT_TOKENS = 16  # a row of T positions has room for T / SEGMENT_TOKENS segments


def max_segments(row_length: int) -> int:
    """The number of segments in a row, padding counted as one, that every kernel has room for."""
    return max(2, row_length // SEGMENT_TOKENS)


def attend_cudnn(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T M H"],
    v: Float[Array, "B T M H"],
    segment_ids: Int[Array, "B T"],
    *,
    scale: float | None = None,
) -> Float[Array, "B T N H"]:
    """Causal attention within segments by cuDNN, which is told where each starts and how long it is."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    room = max_segments(segment_ids.shape[1])
    offsets, lengths, fits = segment_bounds(segment_ids, room)
    attended: Any = cudnn.dot_product_attention(
        q,
        k,
        v,
        q_seqlen=lengths,  # of each segment
        kv_seqlen=lengths,
        q_offsets=offsets,  # where each segment starts
        kv_offsets=offsets,
        scale=scale or q.shape[-1] ** -0.5,
        mask_type=cudnn.MaskType.PADDING_CAUSAL,
    )
    # A row that was packed for another kernel must not go unnoticed: its loss is not finite.
    return jnp.where(fits[:, None, None, None], attended, jnp.nan)


def segment_bounds(
    segment_ids: Int[Array, "B T"],
    room: int,
) -> tuple[
    Int[Array, "B {room}+1"],
    Int[Array, "B {room}"],
    Bool[Array, " B"],
]:
    """Where the runs of equal ids start in each row, how long they are, and whether `room` runs suffice.

    Padding is a run as well, so that what is computed for it is finite. −1 fills the places without a run.
    """
    length = segment_ids.shape[1]
    before_first = segment_ids[:, :1] - 1
    is_start = jnp.diff(segment_ids, axis=1, prepend=before_first) != 0

    # One start more than there is room for: the last run ends where the next one would start.
    find = functools.partial(jnp.flatnonzero, size=room + 1, fill_value=length)
    starts = jax.vmap(find)(is_start).astype(jnp.int32)
    lengths = jnp.diff(starts, axis=1)

    offsets = jnp.where(starts < length, starts, -1)
    lengths = jnp.where(lengths > 0, lengths, -1)
    fits = is_start.sum(axis=1) <= room
    return offsets, lengths, fits


def missing_cudnn() -> str | None:
    """What `attend_cudnn` needs and this machine has not; None if nothing is missing.

    The function is private to jax, so that another release may have it in another form.
    """
    try:
        from jax._src.cudnn import fused_attention_stablehlo as cudnn
    except ImportError as error:
        return f"this jax does not have it ({error})"

    # The function may have other parameters in this release.
    parameters = inspect.signature(cudnn.dot_product_attention).parameters
    used = {"q_seqlen", "kv_seqlen", "q_offsets", "kv_offsets", "scale", "mask_type"}
    lacking = sorted(used - set(parameters))
    if not hasattr(cudnn.MaskType, "PADDING_CAUSAL"):
        lacking = lacking or ["a causal mask"]
    if lacking:
        return f"this jax's form of it does not take {', '.join(lacking)}"

    # The libraries, and the chip.
    try:
        cudnn.check_cudnn_version()
    except RuntimeError as error:
        return str(error)
    if not cudnn.check_compute_capability("9.0"):
        return "it packs segments only on Hopper or later"
    return None
