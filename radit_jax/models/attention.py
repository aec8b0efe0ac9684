"""Attention: who sees whom, and the weighted sum over what is seen.

`attend` is the one function. Its reference, `xla`, takes any mask and runs anywhere; the kernels know rows of
segments only, in each of which a position sees those before it:

    xla      every score in memory                       any mask, any device, any dtype
    splash   TPU, a block of scores at a time (Pallas)   rows of a multiple of 128 positions
    cudnn    Hopper or later, segments by their offsets  16 bits, at most T / 16 segments in a row of T
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

# So few layers are compiled one by one: a loop would copy their activations in and out.
UNROLLED = 8
MASKED = -1e30  # added to a score; so large that float32 forgets the score, and finite
LANES = 128  # splash: positions in the smallest block of a row
BLOCK = 512  # splash: positions in a block where the row divides into such
BLOCKS = 8  # xla: blocks of queries at most, none of fewer than `LANES`
SEGMENT_TOKENS = 16  # cudnn: a row has room for one segment per so many positions

Kernel = Literal["xla", "splash", "cudnn"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How activations lie on a mesh: their rows over `row_axes`, their heads over `tensor_axis`."""

    mesh: Mesh
    row_axes: tuple[str, ...]
    tensor_axis: str

    def keep_rows(self, x: Float[Array, "B *rest"]) -> Float[Array, "B *rest"]:
        """`x` with its rows where they are: a device that cut another axis instead would need all of them.

        Rows that do not divide over the devices are left to the compiler.
        """
        if len(x) % math.prod(self.mesh.shape[axis] for axis in self.row_axes):
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, P(self.row_axes)))

    @property
    def platform(self) -> str:
        return self.mesh.devices.flat[0].platform


def keep_rows(x: Float[Array, "B *rest"], layout: Layout | None) -> Float[Array, "B *rest"]:
    """`Layout.keep_rows`; without a layout `x` lies where the compiler puts it."""
    return x if layout is None else layout.keep_rows(x)


def wide(dtype: Any) -> Any:
    """What a network of `dtype` sums, normalises and divides in: float32, or its own float64.

    Nothing trains in float64. Tests do, under `jax_enable_x64`, to prove what is equal but for rounding.

    >>> wide(jnp.bfloat16), wide(jnp.float32), wide(jnp.float64)
    (dtype('float32'), dtype('float32'), dtype('float64'))
    """
    return jnp.promote_types(dtype, jnp.float32)


def widened(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` in its wide dtype."""
    return x.astype(wide(x.dtype))


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S M H"],
    v: Float[Array, "B S M H"],
    seen: Bool[Array, "B T S"] | Int[Array, "B T"],
    kernel: Kernel = "xla",
    layout: Layout | None = None,
    *,
    causal: bool = False,
) -> Float[Array, "B T N H"]:
    """Scaled dot-product attention of T queries over S keys, its softmax in float32.

    N query heads share M key heads, N / M neighbours each (grouped-query attention). `seen` is a mask, True
    where a query sees a key, which takes the reference, whatever the kernel; or the segment ids of rows
    (S = T) of which a position sees the earlier ones of its segment. A query that sees nothing, as padding
    does, gives numbers that are finite and mean nothing. A mask is `causal` if the last T keys are those of
    the queries' own positions, of which none sees a later one: then about half of the scores are not made.
    """
    if seen.ndim == 3:
        return _causal_reference(q, k, v, seen) if causal else _reference(q, k, v, seen)
    if kernel == "xla":
        return _causal_reference(q, k, v, attention_mask(seen, jnp.zeros_like(seen)))
    platform = jax.default_backend() if layout is None else layout.platform
    run: Callable[..., Any] = _cudnn
    if kernel == "splash":
        run = functools.partial(_splash, interpret=platform == "cpu")  # step by step, to be tested
    if layout is not None:  # the compiler cannot cut a kernel: each device is handed its rows and heads
        rows, heads = P(layout.row_axes), P(layout.row_axes, None, layout.tensor_axis, None)
        specs = (heads, heads, heads, rows)
        # Kernels do not say over which axes their outputs vary.
        run = jax.shard_map(run, mesh=layout.mesh, in_specs=specs, out_specs=heads, check_vma=False)
    return run(q, k, v, seen)


def why_unsupported(
    kernel: Kernel, *, head_size: int, num_kv_heads: int, dtype: Any, row_length: int, tensor: int = 1
) -> str | None:
    """Why `kernel` cannot serve rows of `row_length` positions, heads cut `tensor` ways; None: it can."""
    if kernel == "xla":
        return None
    if num_kv_heads % tensor:
        return f"{num_kv_heads} key heads do not divide over {tensor} devices"
    if kernel == "splash":
        return f"rows of {row_length} are no multiple of {LANES}" if row_length % LANES else None
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"it computes in bfloat16, not in {jnp.dtype(dtype)}"
    if head_size % 8 or head_size > 256:
        return f"heads of {head_size} are no multiple of 8 up to 256"
    return _missing_cudnn()


def max_segments(row_length: int) -> int:
    """Segments in a row, padding counted as one, that every kernel has room for."""
    return max(2, row_length // SEGMENT_TOKENS)


def _causal_reference(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S M H"],
    v: Float[Array, "B S M H"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """`_reference` by blocks of queries, each over the keys up to its own end."""
    length, before = q.shape[1], k.shape[1] - q.shape[1]
    block = max(LANES, -(-length // BLOCKS))
    parts = []
    for start in range(0, length, block):
        rows, ends = slice(start, start + block), before + min(start + block, length)
        parts.append(_reference(q[:, rows], k[:, :ends], v[:, :ends], mask[:, rows, :ends]))
    return jnp.concatenate(parts, axis=1)


def _reference(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S M H"],
    v: Float[Array, "B S M H"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    # Heads first, and those that share a key head as further rows of one matrix: a batch of plain products,
    # which XLA's CPU backend computes several times faster than the same ones over strided heads.
    batch, length, num_heads, head_size = q.shape
    groups, sharing = k.shape[2], num_heads // k.shape[2]
    queries = q.reshape(batch, length, groups, sharing, head_size).transpose(0, 2, 3, 1, 4)
    queries = queries.reshape(batch, groups, sharing * length, head_size)
    keys, values = k.swapaxes(1, 2), v.swapaxes(1, 2)
    scores = jnp.einsum("bmth,bmsh->bmts", queries, keys, preferred_element_type=wide(q.dtype))
    scores = scores * head_size**-0.5 + jnp.where(jnp.tile(mask, (1, sharing, 1)), 0.0, MASKED)[:, None]
    # The softmax is divided by its sum behind the second product, where there are H numbers instead of S.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    weighted = jnp.einsum(
        "bmts,bmsh->bmth", weights.astype(v.dtype), values, preferred_element_type=wide(v.dtype)
    )
    attended = (weighted / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)
    attended = attended.reshape(batch, groups, sharing, length, head_size)
    return attended.transpose(0, 3, 1, 2, 4).reshape(q.shape)


def _splash(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T M H"],
    v: Float[Array, "B T M H"],
    segment_ids: Int[Array, "B T"],
    *,
    interpret: bool,
) -> Float[Array, "B T N H"]:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, num_heads, head_size = q.shape[1:]
    block = next(size for size in (BLOCK, 2 * LANES, LANES) if length % size == 0)
    sizes = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    blocks: Any = {f"block_{size}": block for size in sizes}
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((length, length))] * num_heads),
        block_sizes=splash.BlockSizes(**blocks),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    scaled = (q.astype(jnp.float32) * head_size**-0.5).astype(q.dtype)
    heads_first = (x.swapaxes(1, 2) for x in (scaled, k, v))
    attended: Any = jax.vmap(kernel)(*heads_first, splash.SegmentIds(segment_ids, segment_ids))
    return attended.swapaxes(1, 2)


def _cudnn(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T M H"],
    v: Float[Array, "B T M H"],
    segment_ids: Int[Array, "B T"],
) -> Float[Array, "B T N H"]:
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    offsets, lengths, fits = segment_bounds(segment_ids, max_segments(segment_ids.shape[1]))
    attended: Any = cudnn.dot_product_attention(
        q,
        k,
        v,
        q_seqlen=lengths,
        kv_seqlen=lengths,
        q_offsets=offsets,
        kv_offsets=offsets,
        scale=q.shape[-1] ** -0.5,
        mask_type=cudnn.MaskType.PADDING_CAUSAL,
    )
    # A row that was packed for another kernel must not pass unseen: its loss is not finite.
    return jnp.where(fits[:, None, None, None], attended, jnp.nan)


def segment_bounds(
    segment_ids: Int[Array, "B T"], room: int
) -> tuple[Int[Array, "B {room}+1"], Int[Array, "B {room}"], Bool[Array, " B"]]:
    """Where the runs of equal ids start in each row, how long they are, and whether there is room for all.

    Padding is a run as well, so that what is computed for it is finite. −1 stands where there is no run.
    """
    length = segment_ids.shape[1]
    first = jnp.diff(segment_ids, axis=1, prepend=segment_ids[:, :1] - 1) != 0
    find = functools.partial(jnp.flatnonzero, size=room + 1, fill_value=length)
    starts = jax.vmap(find)(first).astype(jnp.int32)
    lengths = jnp.diff(starts, axis=1)
    return (
        jnp.where(starts < length, starts, -1),
        jnp.where(lengths > 0, lengths, -1),
        first.sum(axis=1) <= room,
    )


def _missing_cudnn() -> str | None:
    """What this jax's cuDNN attention, which is private to jax, lacks of what `_cudnn` calls."""
    try:
        from jax._src.cudnn import fused_attention_stablehlo as cudnn
    except ImportError as error:
        return f"this jax has it no more ({error})"
    wanted = {"q_seqlen", "kv_seqlen", "q_offsets", "kv_offsets", "scale", "mask_type"}
    lacking = wanted - set(inspect.signature(cudnn.dot_product_attention).parameters)
    if lacking or not hasattr(cudnn.MaskType, "PADDING_CAUSAL"):
        return f"this jax's form of it does not take {', '.join(sorted(lacking) or ['a causal mask'])}"
    try:
        cudnn.check_cudnn_version()
    except RuntimeError as error:
        return str(error)
    return None if cudnn.check_compute_capability("9.0") else "it packs segments from Hopper on only"


def attention_mask(
    segment_ids: Int[Array, "B T"], continuation_ids: Int[Array, "B T"]
) -> Bool[Array, "B T T"]:
    """True where position i sees position j of a row of packed trees (`data/batches/packing.py` draws one).

    It does where j is not after i, both are in the same segment, which is not 0 (padding), and j is in the
    segment's prefix (continuation 0) or in i's own continuation.
    """
    causal = jnp.tri(segment_ids.shape[1], dtype=bool)[None]
    return causal & context_mask(segment_ids, continuation_ids, segment_ids, continuation_ids)


def context_mask(
    segment_ids: Int[Array, "B T"],
    continuation_ids: Int[Array, "B T"],
    context_segment_ids: Int[Array, "B S"],
    context_continuation_ids: Int[Array, "B S"],
) -> Bool[Array, "B T S"]:
    """True where a position sees one of S others that all come before it in its row, such as cached ones."""
    segment, continuation = segment_ids[:, :, None], continuation_ids[:, :, None]
    context_segment, context_continuation = context_segment_ids[:, None], context_continuation_ids[:, None]
    same_continuation = (context_continuation == 0) | (context_continuation == continuation)
    return (context_segment == segment) & (segment != 0) & same_continuation
