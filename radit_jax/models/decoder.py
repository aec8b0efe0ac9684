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

A kernel may be quantised, and an adapter may lie next to it: see `models/lora.py`.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from radit_jax.config import DecoderConfig
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
from radit_jax.models.kv_cache import KvCache
from radit_jax.models.lora import dequantized
from radit_jax.models.rotary import Rope, rotate, rotations

_init = nn.initializers.normal(0.02)  # as Hugging Face's LLaMA starts
REMAT = {  # what of a layer is kept for the backward pass; all else is computed again there
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # the projections
}
Remat = Literal["none", "dots", "full"]

Hidden = Float[Array, "B T D"]  # the residual stream, or what a layer adds to it
MaskOrSegmentIds = Bool[Array, "B T S"] | Int[Array, "B T"]  # see `attend`
KvHeads = Float[Array, "B T M H"]  # a layer's keys, or its values, of the T tokens that it reads
CachedKvHeads = Float[Array, "B C M H"]  # those of C earlier tokens


class DecoderLm(nn.Module):
    """The network. `dtype` is what it computes in; norms, softmax and logits are `wide`: float32 at least."""

    config: DecoderConfig
    dtype: Any = jnp.float32
    remat: Remat = "none"  # how much the backward pass computes again, see `REMAT`
    attention: Kernel = "xla"  # of rows without continuations and without a cache
    layout: Layout | None = None  # None: activations lie where the compiler puts them

    def setup(self) -> None:
        """The decoder, and a head where the embedding does not serve as one."""
        self.model = Decoder(
            self.config,
            self.dtype,
            self.remat,
            self.attention,
            self.layout,
        )
        if not self.config.tie_embeddings:
            self.lm_head = Projection(
                self.config.vocab_size,
                self.dtype,
                result=wide(self.dtype),
            )

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        continuation_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """The logits of what follows each token. By default a row is one sequence, unpadded."""
        hidden = self.hidden(tokens, positions, segment_ids, continuation_ids)
        return self.logits(hidden)

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        continuation_ids: Int[Array, "B T"] | None = None,
    ) -> Hidden:
        """The states after the last norm, before the head.

        The caller gives `logits` only the states that predict a target: V scores for each of the others would
        cost time and memory for nothing.
        """
        hidden, _ = self.extend(tokens, positions, segment_ids, continuation_ids)
        return hidden

    def extend(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        continuation_ids: Int[Array, "B T"] | None = None,
        cache: KvCache | None = None,
    ) -> tuple[Hidden, KvCache]:
        """`hidden` of tokens that continue those in `cache`, and the cache of these tokens alone.

        The given cache stays as it is: `write` the result into it to decode on, or drop the result to try
        several continuations of one prompt. `positions` are those in the whole sequence. Without
        `continuation_ids` no two continuations share a prefix: then segments alone say which tokens see each
        other, and a kernel may run.
        """
        segments_suffice = continuation_ids is None and cache is None
        use_kernel = segments_suffice and self.attention != "xla"

        # By default a row is one sequence, unpadded.
        batch, length = tokens.shape
        if positions is None:
            positions = jnp.arange(length, dtype=jnp.int32)[None]
            positions = jnp.broadcast_to(positions, (batch, length))
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        if continuation_ids is None:
            continuation_ids = jnp.zeros_like(tokens)

        # Which tokens see each other; those of the cache come first.
        mask_or_segment_ids = segment_ids
        if not use_kernel:
            mask_or_segment_ids = attention_mask(segment_ids, continuation_ids)
        if cache is not None:
            cached_mask = context_mask(
                segment_ids,
                continuation_ids,
                cache.segment_ids,
                cache.continuation_ids,
            )
            mask_or_segment_ids = jnp.concatenate([cached_mask, mask_or_segment_ids], axis=-1)

        rope = rotations(self.config, positions, wide(self.dtype))  # the same in every layer
        hidden, keys, values = self.model(tokens, rope, mask_or_segment_ids, cache)
        return hidden, KvCache(keys, values, segment_ids, continuation_ids)

    def logits(self, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """The head, in the `wide` dtype."""
        if self.config.tie_embeddings:
            return self.model.attend(hidden)
        return self.lm_head(hidden)


class Decoder(nn.Module):
    """LLaMA without its head: the embeddings, the L layers and the last norm."""

    config: DecoderConfig
    dtype: Any
    remat: Remat
    attention: Kernel
    layout: Layout | None

    def setup(self) -> None:
        """The embeddings, one scanned block for all layers, and the last norm."""
        config = self.config
        block: Any = Block
        if self.remat in REMAT:
            block = nn.remat(Block, prevent_cse=False, policy=REMAT[self.remat])
        stack = nn.scan(
            block,
            variable_axes={"params": 0},  # parameters are stacked on a leading axis
            split_rngs={"params": True},
            # The rotations and the mask serve all layers; cached keys and values have the layers' axis.
            in_axes=(nn.broadcast, nn.broadcast, 0),  # pyright: ignore[reportArgumentType]
            length=config.num_layers,
            unroll=config.num_layers if config.num_layers <= UNROLLED else 1,  # 1: a loop
        )
        self.embed_tokens = nn.Embed(
            config.vocab_size,
            config.hidden_size,
            dtype=self.dtype,
            embedding_init=_init,
        )
        self.layers = stack(config, self.dtype, self.attention, self.layout)
        self.norm = RmsNorm(config.rms_norm_eps)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        rope: Rope,
        mask_or_segment_ids: MaskOrSegmentIds,
        cache: KvCache | None,
    ) -> tuple[
        Hidden,
        Float[Array, "L B T M H"],
        Float[Array, "L B T M H"],
    ]:
        """The states after the last norm, and every layer's keys and values of these tokens."""
        context = None
        if cache is not None:
            context = cache.keys, cache.values
        embedded = keep_rows(self.embed_tokens(tokens), self.layout)
        hidden, (keys, values) = self.layers(embedded, rope, mask_or_segment_ids, context)
        return self.norm(hidden), keys, values

    def attend(self, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """The tied head: products with the embeddings."""
        embedding = self.embed_tokens.embedding.astype(self.dtype)
        return jnp.einsum(
            "...d,vd->...v",
            hidden,
            embedding,
            preferred_element_type=wide(self.dtype),
        )


class Block(nn.Module):
    """One layer: (hidden, …) → (hidden, its keys and values), the form that `nn.scan` expects."""

    config: DecoderConfig
    dtype: Any
    attention: Kernel
    layout: Layout | None

    @nn.compact
    def __call__(
        self,
        x: Hidden,
        rope: Rope,
        mask_or_segment_ids: MaskOrSegmentIds,
        context: tuple[CachedKvHeads, CachedKvHeads] | None,
    ) -> tuple[Hidden, tuple[KvHeads, KvHeads]]:
        """The states after the layer, and its keys and values of these tokens.

        `context` holds the layer's keys and values of earlier tokens, from a cache.
        """
        config, layout = self.config, self.layout
        attention = SelfAttention(
            config,
            self.dtype,
            self.attention,
            layout,
            name="self_attn",
        )
        mlp = SwiGlu(config, self.dtype, name="mlp")
        attention_norm = RmsNorm(config.rms_norm_eps, name="input_layernorm")
        mlp_norm = RmsNorm(config.rms_norm_eps, name="post_attention_layernorm")

        # Both parts read the normalised stream and add to the stream itself. `keep_rows` holds the compiler
        # to one split over devices, by rows.
        attended, keys_values = attention(attention_norm(x), rope, mask_or_segment_ids, context)
        x = keep_rows(x + attended, layout)
        x = keep_rows(x + mlp(mlp_norm(x)), layout)
        return x, keys_values


class SelfAttention(nn.Module):
    """Attention with rotary positions, in which N / M query heads share each of M key and value heads."""

    config: DecoderConfig
    dtype: Any
    attention: Kernel
    layout: Layout | None

    @nn.compact
    def __call__(
        self,
        x: Hidden,
        rope: Rope,
        mask_or_segment_ids: MaskOrSegmentIds,
        context: tuple[CachedKvHeads, CachedKvHeads] | None,
    ) -> tuple[Hidden, tuple[KvHeads, KvHeads]]:
        """What attention adds to the stream, and the keys (rotated) and values of these tokens."""
        config = self.config
        batch_and_length = x.shape[:2]

        def project(name: str, num_heads: int) -> Float[Array, "B T N H"]:
            projection = Projection(num_heads * config.head_size, self.dtype, name=name)
            return projection(x).reshape(*batch_and_length, num_heads, config.head_size)

        queries = rotate(project("q_proj", config.num_heads), rope)
        new_keys = rotate(project("k_proj", config.num_kv_heads), rope)
        new_values = project("v_proj", config.num_kv_heads)

        # Cached keys come first: their tokens are the earlier ones.
        keys, values = new_keys, new_values
        if context is not None:
            cached_keys, cached_values = context
            keys = jnp.concatenate([cached_keys, keys], axis=1)
            values = jnp.concatenate([cached_values, values], axis=1)

        attended = attend(
            queries,
            keys,
            values,
            mask_or_segment_ids,
            self.attention,
            self.layout,
            causal=True,
        )
        output = Projection(config.hidden_size, self.dtype, name="o_proj")
        return output(attended.reshape(*batch_and_length, -1)), (new_keys, new_values)


class SwiGlu(nn.Module):
    """The feed-forward part of a layer: W_down (silu(W_gate x) · W_up x)."""

    config: DecoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Hidden) -> Hidden:
        """What the feed-forward part adds to the stream."""
        gate_proj = Projection(self.config.ffn_size, self.dtype, name="gate_proj")
        up_proj = Projection(self.config.ffn_size, self.dtype, name="up_proj")
        down_proj = Projection(self.config.hidden_size, self.dtype, name="down_proj")
        gate = gate_proj(x)
        up = up_proj(x)
        return down_proj(nn.silu(gate) * up)


class Projection(nn.Module):
    """x W in `dtype`, plus x A B where parameters `lora_a` and `lora_b` lie next to the kernel.

    `result` is the dtype that products are summed and returned in, by default `dtype`.
    """

    features: int  # F, the width of the outputs
    dtype: Any
    result: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows F"]:
        """x W, or x (W + A B) without forming the sum."""
        kernel = self.param("kernel", _init, (x.shape[-1], self.features))
        outputs = self._times(x, kernel)
        if not self.has_variable("params", "lora_a"):
            return outputs
        lora_a = self.get_variable("params", "lora_a")
        lora_b = self.get_variable("params", "lora_b")
        return outputs + self._times(self._times(x, lora_a), lora_b)

    def _times(self, x: Float[Array, "*rows D"], matrix: Any) -> Float[Array, "*rows F"]:
        if hasattr(matrix, "qvalue"):
            return self._times_quantized(x, matrix)
        x, matrix = x.astype(self.dtype), matrix.astype(self.dtype)
        # All rows as one matrix: XLA's CPU backend sums gradients of weights over two axes far slower.
        flat = x.reshape(-1, x.shape[-1])
        products = jnp.dot(flat, matrix, preferred_element_type=self.result)
        return products.reshape(*x.shape[:-1], -1)

    def _times_quantized(self, x: Float[Array, "*rows D"], matrix: Any) -> Float[Array, "*rows F"]:
        # Without the checkpoint, the backward pass would keep the whole matrices of all layers from the
        # forward pass.
        @jax.checkpoint
        def times(x: Float[Array, "*rows D"], matrix: Any) -> Float[Array, "*rows F"]:
            return self._times(x, dequantized(matrix))

        return times(x, matrix)


class RmsNorm(nn.Module):
    """x / rms(x) · weight, computed in x's `wide` dtype and returned in x's own dtype."""

    eps: float  # added to the mean square

    @nn.compact
    def __call__(self, x: Hidden) -> Hidden:
        """Each token's state at root mean square 1, times the weight."""
        weight = self.param("weight", nn.initializers.ones, (x.shape[-1],))
        exact = widened(x)
        mean_square = jnp.mean(jnp.square(exact), axis=-1, keepdims=True)
        normalized = exact * jax.lax.rsqrt(mean_square + self.eps)
        weighted = normalized * weight.astype(exact.dtype)[None, None]
        return weighted.astype(x.dtype)
