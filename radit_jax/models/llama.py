"""LLaMA: RMSNorm, rotary positions, grouped-query attention, SwiGLU, a tied or untied head; no biases.

Modules have Hugging Face's names. The layers are one scanned block whose parameters are stacked on a leading
axis L; kernels are (in, out):

    model/embed_tokens/embedding                      V D
    model/layers/input_layernorm/weight               L D
    model/layers/self_attn/{q,k,v}_proj/kernel        L D (heads · H)
    model/layers/self_attn/o_proj/kernel              L (heads · H) D
    model/layers/post_attention_layernorm/weight      L D
    model/layers/mlp/{gate,up}_proj/kernel            L D F
    model/layers/mlp/down_proj/kernel                 L F D
    model/norm/weight                                 D
    lm_head/kernel                                    D V, unless the head is the embedding transposed

A kernel may be quantised and have an adapter beside it, see `models/lora.py`.
"""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from radit_jax.config import LlamaConfig
from radit_jax.models.attention import (
    UNROLLED,
    Kernel,
    Layout,
    attend,
    attention_mask,
    context_mask,
    keep_rows,
    wide,
    widened,
)
from radit_jax.models.lora import dequantized

_init = nn.initializers.normal(0.02)
REMAT = {  # what of a layer is kept for the backward pass; all else is computed again there
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # the projections
}
Remat = Literal["none", "dots", "full"]
Rope = tuple[Float[Array, "B T 1 h"], Float[Array, "B T 1 h"]]  # cosines and sines, h = H / 2
Seen = Bool[Array, "B T S"] | Int[Array, "B T"]  # see `attend`


class KvCache(NamedTuple):
    """Keys (already rotated) and values of S slots in every layer, and who may see them.

    A slot of segment 0 is unwritten or padding: nobody sees it. So prompts of different lengths lie in one
    cache, padded on either side, and every row is written at the same slots.
    """

    keys: Float[Array, "L B S M H"]
    values: Float[Array, "L B S M H"]
    segment_ids: Int[Array, "B S"]
    continuation_ids: Int[Array, "B S"]

    def write(self, block: "KvCache", slot: Int[Array, ""] | int) -> "KvCache":
        """The same cache with `block` in the slots from `slot` on."""

        def put(name: str, axis: int) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(getattr(self, name), getattr(block, name), slot, axis)

        return KvCache(put("keys", 2), put("values", 2), put("segment_ids", 1), put("continuation_ids", 1))

    def take(self, rows: Int[Array, "W r"]) -> "KvCache":
        """The cache of the rows that `take_rows` gives."""

        def own(array: Array, axis: int) -> Array:
            return take_rows(array, rows, axis)

        return KvCache(
            own(self.keys, 1), own(self.values, 1), own(self.segment_ids, 0), own(self.continuation_ids, 0)
        )

    def grow(self, slots: int) -> "KvCache":
        """The same cache with so many unwritten slots after its own."""

        def pad(array: Array, axis: int) -> Array:
            return jnp.pad(array, [(0, slots if i == axis else 0) for i in range(array.ndim)])

        return KvCache(
            pad(self.keys, 2), pad(self.values, 2), pad(self.segment_ids, 1), pad(self.continuation_ids, 1)
        )


def take_rows(array: Array, rows: Int[Array, "W r"], axis: int = 0) -> Array:
    """W · r rows: the first r are the numbers `rows[0]` of the array's first W-th, and so on.

    No row leaves its W-th. Were any row taken from anywhere, a mesh that spreads them W ways would bring all
    of them to every device first.

    >>> take_rows(jnp.array([3, 4, 5, 6]), jnp.array([[1, 1], [0, 1]])).tolist()
    [4, 4, 5, 6]
    """
    groups, behind = len(rows), array.shape[axis + 1 :]
    parts = array.reshape(*array.shape[:axis], groups, -1, *behind)
    pick = jax.vmap(lambda part, numbers: part[(slice(None),) * axis + (numbers,)], (axis, 0), axis)
    return pick(parts, rows).reshape(*array.shape[:axis], rows.size, *behind)


class Llama(nn.Module):
    """The network. `dtype` is what it computes in; norms, softmax and logits are `wide`: float32 at least."""

    config: LlamaConfig
    dtype: Any = jnp.float32
    remat: Remat = "none"
    attention: Kernel = "xla"  # of rows without continuations and without a cache
    layout: Layout | None = None  # None: activations lie where the compiler puts them

    def setup(self) -> None:
        self.model = Decoder(self.config, self.dtype, self.remat, self.attention, self.layout)
        if not self.config.tie_embeddings:
            self.lm_head = Projection(self.config.vocab_size, self.dtype, result=wide(self.dtype))

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        continuation_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """The logits of what follows each token. By default a row is one sequence, unpadded."""
        return self.logits(self.hidden(tokens, positions, segment_ids, continuation_ids))

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        continuation_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """The states after the last norm: `logits` of those that matter gives the predictions."""
        return self.extend(tokens, positions, segment_ids, continuation_ids)[0]

    def extend(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        continuation_ids: Int[Array, "B T"] | None = None,
        cache: KvCache | None = None,
    ) -> tuple[Float[Array, "B T D"], KvCache]:
        """`hidden` of tokens that go on from those in `cache`, and the cache of these tokens alone.

        The given cache stays as it is: `write` the result into it to decode on, or drop the result to try
        several continuations of one prompt. `positions` are those in the whole sequence.
        Without `continuation_ids` no two continuations share a prefix: segments say who sees whom, and a
        kernel may run.
        """
        batch, length = tokens.shape
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], (batch, length))
        segment_ids = jnp.ones_like(tokens) if segment_ids is None else segment_ids
        by_segments = continuation_ids is None and cache is None and self.attention != "xla"
        continuation_ids = jnp.zeros_like(tokens) if continuation_ids is None else continuation_ids
        seen = segment_ids if by_segments else attention_mask(segment_ids, continuation_ids)
        if cache is not None:
            before = context_mask(segment_ids, continuation_ids, cache.segment_ids, cache.continuation_ids)
            seen = jnp.concatenate([before, seen], axis=-1)
        context = None if cache is None else (cache.keys, cache.values)
        rope = rotations(self.config, positions, wide(self.dtype))
        hidden, (keys, values) = self.model(tokens, rope, seen, context)
        return hidden, KvCache(keys, values, segment_ids, continuation_ids)

    def logits(self, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """The head, in the `wide` dtype."""
        return self.model.attend(hidden) if self.config.tie_embeddings else self.lm_head(hidden)


class Decoder(nn.Module):
    """LLaMA without its head."""

    config: LlamaConfig
    dtype: Any
    remat: Remat
    attention: Kernel
    layout: Layout | None

    def setup(self) -> None:
        policy = REMAT.get(self.remat)
        block = nn.remat(Block, prevent_cse=False, policy=policy) if policy else Block
        scanned = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, 0),  # pyright: ignore[reportArgumentType]
            length=self.config.num_layers,
            unroll=self.config.num_layers if self.config.num_layers <= UNROLLED else 1,
        )
        self.embed_tokens = nn.Embed(
            self.config.vocab_size, self.config.hidden_size, dtype=self.dtype, embedding_init=_init
        )
        self.layers = scanned(self.config, self.dtype, self.attention, self.layout)
        self.norm = RmsNorm(self.config.rms_norm_eps)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        rope: Rope,
        seen: Seen,
        context: tuple[Float[Array, "L B C M H"], Float[Array, "L B C M H"]] | None,
    ) -> tuple[Float[Array, "B T D"], tuple[Float[Array, "L B T M H"], Float[Array, "L B T M H"]]]:
        embedded = keep_rows(self.embed_tokens(tokens), self.layout)
        hidden, keys_values = self.layers(embedded, rope, seen, context)
        return self.norm(hidden), keys_values

    def attend(self, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        embedding = self.embed_tokens.embedding.astype(self.dtype)
        return jnp.einsum("...d,vd->...v", hidden, embedding, preferred_element_type=wide(self.dtype))


class Block(nn.Module):
    """One layer: (hidden, …) → (hidden, its keys and values), the form that `nn.scan` wants."""

    config: LlamaConfig
    dtype: Any
    attention: Kernel
    layout: Layout | None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        rope: Rope,
        seen: Seen,
        context: tuple[Float[Array, "B C M H"], Float[Array, "B C M H"]] | None,
    ) -> tuple[Float[Array, "B T D"], tuple[Float[Array, "B T M H"], Float[Array, "B T M H"]]]:
        eps = self.config.rms_norm_eps
        attention = LlamaSelfAttention(self.config, self.dtype, self.attention, self.layout, name="self_attn")
        attended, keys_values = attention(RmsNorm(eps, name="input_layernorm")(x), rope, seen, context)
        x = keep_rows(x + attended, self.layout)
        mlp = SwiGlu(self.config, self.dtype, name="mlp")
        x = x + mlp(RmsNorm(eps, name="post_attention_layernorm")(x))
        return keep_rows(x, self.layout), keys_values


class LlamaSelfAttention(nn.Module):
    config: LlamaConfig
    dtype: Any
    attention: Kernel
    layout: Layout | None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        rope: Rope,
        seen: Seen,
        context: tuple[Float[Array, "B C M H"], Float[Array, "B C M H"]] | None,
    ) -> tuple[Float[Array, "B T D"], tuple[Float[Array, "B T M H"], Float[Array, "B T M H"]]]:
        def project(name: str, num_heads: int) -> Float[Array, "B T N H"]:
            flat = Projection(num_heads * self.config.head_size, self.dtype, name=name)(x)
            return flat.reshape(*x.shape[:2], num_heads, self.config.head_size)

        q = rotate(project("q_proj", self.config.num_heads), rope)
        keys = new_keys = rotate(project("k_proj", self.config.num_kv_heads), rope)
        values = new_values = project("v_proj", self.config.num_kv_heads)
        if context is not None:
            keys = jnp.concatenate([context[0], keys], axis=1)
            values = jnp.concatenate([context[1], values], axis=1)
        attended = attend(q, keys, values, seen, self.attention, self.layout, causal=True)
        output = Projection(self.config.hidden_size, self.dtype, name="o_proj")(
            attended.reshape(*x.shape[:2], -1)
        )
        return output, (new_keys, new_values)


class SwiGlu(nn.Module):
    config: LlamaConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate = Projection(self.config.ffn_size, self.dtype, name="gate_proj")(x)
        up = Projection(self.config.ffn_size, self.dtype, name="up_proj")(x)
        return Projection(self.config.hidden_size, self.dtype, name="down_proj")(nn.silu(gate) * up)


class Projection(nn.Module):
    """x W, and x A B more where parameters `lora_a` and `lora_b` lie beside the kernel; in `dtype`.

    `result` is the dtype that products are summed and returned in, by default `dtype`.
    """

    features: int
    dtype: Any
    result: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows F"]:
        kernel = self.param("kernel", _init, (x.shape[-1], self.features))
        outputs = self._times(x, kernel)
        if self.has_variable("params", "lora_a"):
            a, b = (self.get_variable("params", name) for name in ("lora_a", "lora_b"))
            outputs = outputs + self._times(self._times(x, a), b)
        return outputs

    def _times(self, x: Float[Array, "*rows D"], matrix: Any) -> Float[Array, "*rows F"]:
        if hasattr(matrix, "qvalue"):
            # Else the backward pass would keep the whole matrices of all layers from the forward pass.
            return jax.checkpoint(lambda x, matrix: self._times(x, dequantized(matrix)))(x, matrix)
        x, matrix = x.astype(self.dtype), matrix.astype(self.dtype)
        # All rows as one matrix: XLA's CPU backend sums gradients of weights over two axes far slower.
        flat = jnp.dot(x.reshape(-1, x.shape[-1]), matrix, preferred_element_type=self.result)
        return flat.reshape(*x.shape[:-1], -1)


class RmsNorm(nn.Module):
    """x / rms(x) · weight, computed in x's `wide` dtype and returned in its own."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        weight = self.param("weight", nn.initializers.ones, (x.shape[-1],))
        exact = widened(x)
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(exact), axis=-1, keepdims=True) + self.eps)
        return (exact * scale * weight.astype(exact.dtype)[None, None]).astype(x.dtype)


def rotations(config: LlamaConfig, positions: Int[Array, "B T"], dtype: Any) -> Rope:
    """The cosines and sines by which positions rotate the two halves of every head."""
    frequencies = jnp.asarray(rope_frequencies(config), dtype)
    angles = positions[:, :, None].astype(dtype) * frequencies[None, None]
    return jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]


def rope_frequencies(config: LlamaConfig) -> Float[np.ndarray, " h"]:
    """Radians per position of each of the H / 2 pairs, with Llama 3's scaling where the config has it.

    The scaling slows those pairs down `factor` times that turn fewer than `low_freq_factor` times within the
    original context, leaves alone those that turn more than `high_freq_factor` times, and blends between.
    """
    exponents = np.arange(0, config.head_size, 2) / config.head_size
    frequencies = config.rope_theta**-exponents
    if (scaling := config.rope_scaling) is not None:
        turns = scaling.original_max_length * frequencies / (2 * np.pi)
        kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        kept = np.clip(kept, 0.0, 1.0)
        frequencies = frequencies * (kept + (1 - kept) / scaling.factor)
    return frequencies


def rotate(x: Float[Array, "B T N H"], rope: Rope) -> Float[Array, "B T N H"]:
    """Rotary positions in Hugging Face's form: element i of the first half pairs with i of the second."""
    cos, sin = rope
    first, second = jnp.split(widened(x), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def mimetic_init(params: Any, config: LlamaConfig, rng: PRNGKeyArray) -> Any:
    """`params` with attention that gathers and copies from the start, so that a small LM learns to read.

    In the lower half of the layers W_o W_v = I: each position gathers those before it. In the upper half
    W_q = W_k, one orthogonal matrix, attends to the same token, and W_o W_v = ½ Rᵀ copies what was gathered
    there into a subspace that only the head reads, for it applies R, random orthogonal, before the embedding.
    The embeddings' standard deviation is 0.08. The result is a plain LLaMA with an untied head. The idea of
    weights that mimic trained ones is from arXiv 2305.09828; this form of it is ours.
    """
    _check_mimetic(config)
    size, num_layers = config.hidden_size, config.num_layers
    embed_key, turn_key, value_key, match_key = jax.random.split(rng, 4)
    embedding = 0.08 * jax.random.normal(embed_key, (config.vocab_size, size))
    turn = jax.random.orthogonal(turn_key, size)
    value = jax.random.orthogonal(value_key, size, (num_layers,))
    match = jax.random.orthogonal(match_key, size, (num_layers,))

    layers = params["model"]["layers"]
    attention = layers["self_attn"]
    upper = (jnp.arange(num_layers) >= num_layers // 2)[:, None, None]
    gather = value.swapaxes(1, 2)
    kernels = {
        "q_proj": jnp.where(upper, match, attention["q_proj"]["kernel"]),
        "k_proj": jnp.where(upper, match, attention["k_proj"]["kernel"]),
        "v_proj": value,
        "o_proj": jnp.where(upper, 0.5 * gather @ turn[None], gather),
    }
    layers = layers | {"self_attn": {name: {"kernel": kernel} for name, kernel in kernels.items()}}
    model = params["model"] | {"embed_tokens": {"embedding": embedding}, "layers": layers}
    return {"model": model, "lm_head": {"kernel": turn.T @ embedding.T}}


def _check_mimetic(config: LlamaConfig) -> None:
    square = config.num_heads * config.head_size == config.hidden_size
    if not square or config.num_kv_heads != config.num_heads or config.tie_embeddings:
        raise ValueError(
            f"mimetic_init: {config} came; needed are num_kv_heads = num_heads, num_heads · head_size = "
            "hidden_size and an untied head; change the model, or start it from init='normal'"
        )
