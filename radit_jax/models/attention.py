"""Attention: which position sees which, and the weighted sum over what it sees.

`attend` is the function that networks call. Its reference, `xla`, takes any mask and runs anywhere. The
kernels take only rows of segments, in each of which a position sees itself and those before it:

    xla      every score in memory                       any mask, any device, any dtype
    splash   TPU, a block of scores at a time (Pallas)   rows of a multiple of 128 positions
    cudnn    Hopper or later, segments by their offsets  16 bits, at most T / 16 segments in a row of T
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from radit_jax.config import DecoderConfig
from radit_jax.models.cudnn import attend_cudnn, missing_cudnn
from radit_jax.models.masks import attention_mask, window_mask

# Up to this number of layers, each is compiled by itself: a loop would copy the activations in and out.
UNROLLED = 8
MASKED = -1e30  # added to a score; so large that float32 forgets the score, and finite
LANES = 128  # splash: positions in the smallest block of a row
BLOCK = 512  # splash: positions in a block, if the row divides into such blocks
BLOCKS = 8  # xla: the most blocks of queries in a row; each has at least `LANES` positions

Kernel = Literal["xla", "splash", "cudnn"]


class ScoreForm(NamedTuple):
    """How the product of a query and a key becomes a score, and how far back a kernel looks."""

    scale: float | None = None  # what the product is multiplied by; None: H^-½
    cap: float | None = None  # a score s becomes cap · tanh(s / cap)
    bias: Float[Array, "N T S"] | None = None  # added to each head's scores; only where a mask is not causal
    window: int | None = None  # a position sees itself and the window − 1 before it; a mask says so itself


PLAIN = ScoreForm()


@dataclasses.dataclass(frozen=True)
class Layout:
    """How activations lie on a mesh: their rows over `row_axes`, their heads over `tensor_axis`."""

    mesh: Mesh
    row_axes: tuple[str, ...]
    tensor_axis: str

    def keep_rows(self, x: Float[Array, "B *rest"]) -> Float[Array, "B *rest"]:
        """`x` with its rows where they are: devices that cut another axis would each need all rows.

        If the rows do not divide over the devices, the compiler decides.
        """
        if not self.divides(len(x)):
            return x
        sharding = NamedSharding(self.mesh, P(self.row_axes))
        return jax.lax.with_sharding_constraint(x, sharding)

    def rows_of_device(self, num_rows: int) -> int:
        """How many of `num_rows` rows a device has; all of them, if they do not divide over the devices."""
        return num_rows // self._num_devices if self.divides(num_rows) else num_rows

    def divides(self, num_rows: int) -> bool:
        """Whether so many rows divide over the devices."""
        return num_rows % self._num_devices == 0

    @property
    def _num_devices(self) -> int:
        """The number of parts into which rows are spread."""
        return math.prod(self.mesh.shape[axis] for axis in self.row_axes)

    @property
    def platform(self) -> str:
        """The kind of the mesh's devices: `cpu`, `gpu` or `tpu`."""
        return self.mesh.devices.flat[0].platform


def keep_rows(
    x: Float[Array, "B *rest"],
    layout: Layout | None,
) -> Float[Array, "B *rest"]:
    """`Layout.keep_rows`; without a layout, `x` lies where the compiler puts it."""
    if layout is None:
        return x
    return layout.keep_rows(x)


def wide(dtype: Any) -> Any:
    """The dtype that a network of `dtype` sums, normalises and divides in: float32, or float64 for float64.

    Only tests compute in float64, under `jax_enable_x64`: they prove what is equal but for rounding.

    >>> wide(jnp.bfloat16), wide(jnp.float32), wide(jnp.float64)
    (dtype('float32'), dtype('float32'), dtype('float64'))
    """
    return jnp.promote_types(dtype, jnp.float32)


def widened(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` in its wide dtype."""
    return x.astype(wide(x.dtype))


def soft_cap(x: Float[Array, "*shape"], cap: float | None) -> Float[Array, "*shape"]:
    """cap · tanh(x / cap), which stays between −cap and cap; without a cap, x as it is."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S M H"],
    v: Float[Array, "B S M H"],
    mask_or_segment_ids: Bool[Array, "B T S"] | Int[Array, "B T"],
    kernel: Kernel = "xla",
    layout: Layout | None = None,
    *,
    causal: bool = False,
    form: ScoreForm = PLAIN,
) -> Float[Array, "B T N H"]:
    """Scaled dot-product attention of T queries over S keys, its softmax in float32.

    N query heads share M key heads, N / M neighbours each (grouped-query attention). A mask is True where a
    query sees a key; it is computed by the reference, whatever the kernel. Segment ids are those of rows
    (S = T) in which a position sees itself and the earlier positions of its segment. A query that sees
    nothing, as padding does, gives finite numbers without a meaning.

    A mask is `causal` if the last T keys are those of the queries' own positions, and no query sees a later
    one: then about half of the scores are never computed.
    """
    # Whatever segment ids cannot say goes to the reference.
    if mask_or_segment_ids.ndim == 3:
        return attend_heads_first(q, *heads_first(k, v), mask_or_segment_ids, causal=causal, form=form)
    segment_ids = mask_or_segment_ids
    if kernel == "xla":
        mask = attention_mask(segment_ids, jnp.zeros_like(segment_ids))
        if form.window is not None:
            # Within a segment, places in the row are as far apart as positions.
            places = jnp.arange(segment_ids.shape[1])[None]
            mask &= window_mask(places, places, form.window)
        return _causal_reference(q, *heads_first(k, v), mask, form)

    run: Callable[..., Any] = functools.partial(attend_cudnn, scale=form.scale)
    if kernel == "splash":
        # On a CPU, where only tests run it, the kernel is interpreted step by step.
        platform = jax.default_backend() if layout is None else layout.platform
        run = functools.partial(_splash, form=form, interpret=platform == "cpu")

    # The compiler cannot cut a kernel: each device is handed its rows and heads.
    if layout is not None:
        rows = P(layout.row_axes)
        heads = P(layout.row_axes, None, layout.tensor_axis, None)
        run = jax.shard_map(
            run,
            mesh=layout.mesh,
            in_specs=(heads, heads, heads, rows),
            out_specs=heads,
            check_vma=False,  # kernels do not say over which axes their outputs vary
        )
    return run(q, k, v, segment_ids)


def heads_first(
    keys: Float[Array, "B S M H"],
    values: Float[Array, "B S M H"],
) -> tuple[Float[Array, "B M S H"], Float[Array, "B M S H"]]:
    """Keys and values with each head in one piece, as products and caches have them."""
    return keys.swapaxes(1, 2), values.swapaxes(1, 2)


def attend_heads_first(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "B M S H"],
    values: Float[Array, "B M S H"],
    mask: Bool[Array, "B T S"],
    *,
    causal: bool = False,
    form: ScoreForm = PLAIN,
) -> Float[Array, "B T N H"]:
    """`attend` under a mask over keys and values as a cache has them, each head in one piece."""
    by_mask = _causal_reference if causal else _reference
    return by_mask(q, keys, values, mask, form)


def why_unsupported(
    kernel: Kernel,
    config: DecoderConfig,
    *,
    dtype: Any,
    row_length: int,
    tensor: int = 1,
    elsewhere: bool = False,
) -> str | None:
    """Why `kernel` cannot serve rows of `row_length` positions, heads over `tensor` devices; None: it can.

    Elsewhere than on this machine, nothing is asked of this machine's libraries.
    """
    if kernel == "xla":
        return None
    if config.num_kv_heads % tensor:
        return f"{config.num_kv_heads} key heads do not divide over {tensor} devices"
    if kernel == "splash" and row_length % LANES:
        return f"rows of {row_length} are not a multiple of {LANES}"
    if kernel == "splash":
        return None
    # What is left is cudnn.
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"it computes in bfloat16, not in {jnp.dtype(dtype)}"
    if config.head_size % 8 or config.head_size > 256:
        return f"heads of {config.head_size} are not a multiple of 8 up to 256"
    if config.window is not None and config.window < row_length:
        return f"it packs segments without a window, here of {config.window} positions"
    if config.score_cap is not None:
        return "it does not cap scores"
    return None if elsewhere else missing_cudnn()


def _causal_reference(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "B M S H"],
    values: Float[Array, "B M S H"],
    mask: Bool[Array, "B T S"],
    form: ScoreForm,
) -> Float[Array, "B T N H"]:
    """`_reference` by blocks of queries, each over the keys up to its own end."""
    # The queries stand at the last positions of the keys.
    length = q.shape[1]
    num_earlier_keys = keys.shape[2] - length
    block = max(LANES, -(-length // BLOCKS))
    outputs = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        num_keys = num_earlier_keys + stop
        block_keys = keys[:, :, :num_keys]
        block_values = values[:, :, :num_keys]
        block_mask = mask[:, start:stop, :num_keys]
        outputs.append(_reference(q[:, start:stop], block_keys, block_values, block_mask, form))
    return jnp.concatenate(outputs, axis=1)


def _reference(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "B M S H"],
    values: Float[Array, "B M S H"],
    mask: Bool[Array, "B T S"],
    form: ScoreForm,
) -> Float[Array, "B T N H"]:
    """softmax(q kᵀ · scale) v over the keys that the mask shows."""
    batch, length, num_heads, head_size = q.shape
    num_groups = keys.shape[1]
    group_size = num_heads // num_groups

    # Heads first, and those that share a key head as further rows of one matrix: a batch of plain products,
    # which XLA's CPU backend computes several times faster than the same ones over strided heads.
    queries = q.reshape(batch, length, num_groups, group_size, head_size)
    queries = queries.transpose(0, 2, 3, 1, 4)
    queries = queries.reshape(batch, num_groups, group_size * length, head_size)

    # A masked score becomes so low that its weight is 0.
    scores = jnp.einsum(
        "bmth,bmsh->bmts",
        queries,
        keys,
        preferred_element_type=wide(q.dtype),
    )
    scores = scores * (form.scale or head_size**-0.5)
    scores = soft_cap(scores, form.cap)
    if form.bias is not None:
        scores = scores + form.bias.reshape(1, *scores.shape[1:])
    tiled_mask = jnp.tile(mask, (1, group_size, 1))
    bias = jnp.where(tiled_mask, 0.0, MASKED)
    scores = scores + bias[:, None]

    # The softmax is divided by its sum after the second product, where there are H numbers instead of S.
    peak = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - peak)
    weighted = jnp.einsum(
        "bmts,bmsh->bmth",
        weights.astype(values.dtype),
        values,
        preferred_element_type=wide(values.dtype),
    )
    total = weights.sum(axis=-1, keepdims=True)
    attended = weighted / total
    attended = attended.astype(values.dtype)

    # Back to positions first.
    attended = attended.reshape(batch, num_groups, group_size, length, head_size)
    attended = attended.transpose(0, 3, 1, 2, 4)
    return attended.reshape(q.shape)


def _splash(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T M H"],
    v: Float[Array, "B T M H"],
    segment_ids: Int[Array, "B T"],
    *,
    form: ScoreForm,
    interpret: bool,
) -> Float[Array, "B T N H"]:
    """Causal attention within segments by the Pallas kernel for TPUs; interpreted, it runs anywhere."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, num_heads, head_size = q.shape[1:]

    # The same block everywhere: the largest that the row divides into.
    candidates = BLOCK, 2 * LANES, LANES
    block = next(size for size in candidates if length % size == 0)
    sizes = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    blocks: Any = {f"block_{size}": block for size in sizes}
    head_mask: Any = masks.CausalMask((length, length))
    if form.window is not None:
        # As many positions before its own as the first number says, and none after it.
        head_mask = masks.LocalMask((length, length), (form.window - 1, 0), offset=0)
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([head_mask] * num_heads),
        block_sizes=splash.BlockSizes(**blocks),
        head_shards=1,  # shard_map has cut the heads already
        q_seq_shards=1,
        attn_logits_soft_cap=form.cap,
        interpret=interpret,
    )

    # The kernel does not scale the scores, and its arrays have the heads first.
    scaled = q.astype(jnp.float32) * (form.scale or head_size**-0.5)
    scaled = scaled.astype(q.dtype)
    heads_first = (x.swapaxes(1, 2) for x in (scaled, k, v))
    segments = splash.SegmentIds(segment_ids, segment_ids)
    attended: Any = jax.vmap(kernel)(*heads_first, segments)
    return attended.swapaxes(1, 2)
