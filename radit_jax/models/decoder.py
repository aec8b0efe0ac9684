"""A decoder: LLaMA and its relatives, whose config says what they have beyond it.

RMSNorm, rotary positions, grouped-query attention, a gated feed-forward part, a tied or untied head.

Modules have Hugging Face's names. The layers are one scanned block whose parameters are stacked on a leading
axis L; kernels are (in, out):

    model/embed_tokens/embedding                      V D
    model/layers/input_layernorm/weight               L D                 not in OLMo 2
    model/layers/self_attn/{q,k,v}_proj/kernel        L D (heads · H)
    model/layers/self_attn/{q,k,v}_proj/bias          L (heads · H)       Qwen 2
    model/layers/self_attn/{q,k}_norm/weight          L H                 Qwen 3, Gemma 3; OLMo: L (heads · H)
    model/layers/self_attn/o_proj/kernel              L (heads · H) D
    model/layers/post_attention_layernorm/weight      L D                 LLaMA: before the feed-forward part
    model/layers/{pre,post}_feedforward_layernorm/weight   L D            Gemma; OLMo 2: post
    model/layers/mlp/{gate,up}_proj/kernel            L D F
    model/layers/mlp/down_proj/kernel                 L F D
    model/norm/weight                                 D
    lm_head/kernel                                    D V, unless the head is the embedding transposed

Gemma's and OLMo 2's `post_attention_layernorm` normalises what attention adds, as its name says.

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
    keep_rows,
    soft_cap,
    why_unsupported,
    wide,
)
from radit_jax.models.head import HeadKernel, head_kernel, head_logits
from radit_jax.models.kv_cache import CacheSlot, KvCache
from radit_jax.models.layers import GatedMlp, RmsNorm, initial_normal
from radit_jax.models.masks import attention_mask, context_mask, window_mask
from radit_jax.models.rotary import rotations
from radit_jax.models.self_attention import (
    CachedKvHeads,
    Hidden,
    KvHeads,
    MaskOrSegmentIds,
    SelfAttention,
    View,
    Views,
)

REMAT = {  # what of a layer is kept for the backward pass; all else is computed again there
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # the projections
}
Remat = Literal["none", "dots", "full"]


class DecoderLm(nn.Module):
    """The network. `dtype` is what it computes in; norms, softmax and logits are `wide`: float32 at least."""

    config: DecoderConfig
    dtype: Any = jnp.float32
    remat: Remat = "none"  # how much the backward pass computes again, see `REMAT`
    attention: Kernel = "xla"  # of rows that it can serve, without continuations and without a cache
    layout: Layout | None = None  # None: activations lie where the compiler puts them
    rounds_head_gradient: bool = False  # the gradient of the logits is rounded to `dtype`, see `head_logits`

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
            self.lm_head = Head(self.config.hidden_size, self.config.vocab_size)

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
        use_kernel = segments_suffice and self._kernel_serves(*tokens.shape)

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
        key_positions = positions
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
            key_positions = jnp.concatenate([cache.positions, positions], axis=-1)

        views = self._views(positions, key_positions, mask_or_segment_ids)
        hidden, keys, values = self.model(tokens, views, cache)
        positions = positions.astype(jnp.int32)
        return hidden, KvCache(keys, values, segment_ids, continuation_ids, positions)

    def _kernel_serves(self, num_rows: int, row_length: int) -> bool:
        """Whether the attention kernel, if there is one, can compute such rows on their devices."""
        if self.attention == "xla" or (self.layout and not self.layout.divides(num_rows)):
            return False
        reason = why_unsupported(
            self.attention,
            self.config,
            dtype=self.dtype,
            row_length=row_length,
            elsewhere=True,  # who chose the kernel has asked the machine
        )
        return reason is None

    def extend_in_place(
        self,
        tokens: Int[Array, "B 1"],
        positions: Int[Array, "B 1"],
        cache: KvCache,
        slot: Int[Array, ""] | int,
    ) -> tuple[Hidden, KvCache]:
        """`extend` of one token a row, and the given cache with it in `slot`, which nobody sees yet.

        Where the given cache is not used again, nothing of it is copied.
        """
        cache = cache.mark(positions, slot)
        segment_ids, continuation_ids = jnp.ones_like(tokens), jnp.zeros_like(tokens)
        mask = context_mask(segment_ids, continuation_ids, cache.segment_ids, cache.continuation_ids)
        views = self._views(positions, cache.positions, mask)
        hidden, keys, values = self.model(tokens, views, cache, slot)
        return hidden, cache._replace(keys=keys, values=values)

    def _views(
        self,
        positions: Int[Array, "B T"],
        key_positions: Int[Array, "B S"],
        mask_or_segment_ids: MaskOrSegmentIds,
    ) -> Views:
        """The same in every layer of a kind."""
        config, dtype = self.config, wide(self.dtype)
        of_global = View(rotations(config, positions, dtype), mask_or_segment_ids)
        if config.window is None:
            return Views(of_global, None)
        # A position has at most as many others before it as there are keys. A kernel is told the window.
        local_mask = mask_or_segment_ids
        is_mask = mask_or_segment_ids.ndim == 3
        if is_mask and key_positions.shape[1] > config.window:
            local_mask &= window_mask(positions, key_positions, config.window)
        of_local = View(rotations(config, positions, dtype, is_local=True), local_mask)
        return Views(of_global, of_local)

    def head_kernel(self) -> HeadKernel:
        """The head's matrix, for `logits` in a loop: there it is cast once."""
        tied = self.config.tie_embeddings
        exact = self.model.embedding() if tied else self.lm_head.kernel
        return head_kernel(exact, self.dtype)

    def logits(
        self,
        hidden: Float[Array, "*rows D"],
        kernel: HeadKernel | None = None,
    ) -> Float[Array, "*rows V"]:
        """The head, in the `wide` dtype; `kernel` is what `head_kernel` gives."""
        logits = head_logits(
            hidden,
            kernel or self.head_kernel(),
            tied=self.config.tie_embeddings,
            rounds_gradient=self.rounds_head_gradient,
        )
        return soft_cap(logits, self.config.logit_cap)


class Head(nn.Module):
    """The matrix of a head that is not tied: D V."""

    hidden_size: int
    vocab_size: int

    def setup(self) -> None:
        """Start as all projections do."""
        self.kernel = self.param("kernel", initial_normal, (self.hidden_size, self.vocab_size))


class Decoder(nn.Module):
    """The network without its head: the embeddings, the L layers and the last norm."""

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
            # The views serve all layers; cached keys and values have the layers' axis.
            in_axes=(nn.broadcast, 0, 0),  # pyright: ignore[reportArgumentType]
            length=config.num_layers,
            unroll=config.num_layers if config.num_layers <= UNROLLED else 1,  # 1: a loop
        )
        self.embed_tokens = nn.Embed(
            config.vocab_size,
            config.hidden_size,
            dtype=self.dtype,
            embedding_init=initial_normal,
        )
        self.layers = stack(config, self.dtype, self.attention, self.layout)
        self.norm = RmsNorm(config.rms_norm_eps, config.traits.centred_norms)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        views: Views,
        cache: KvCache | None,
        slot: Int[Array, ""] | int | None = None,
    ) -> tuple[
        Hidden,
        Float[Array, "L B M _ H"],
        Float[Array, "L B M _ H"],
    ]:
        """The states after the last norm, and every layer's keys and values of these tokens.

        With a `slot`, the cache's keys and values, and those of the tokens in it.
        """
        context, in_place = None, None
        if slot is not None and cache is not None:
            in_place = CacheSlot(cache.keys, cache.values, jnp.int32(slot), jnp.int32(0))
            context = jnp.arange(self.config.num_layers, dtype=jnp.int32)
        elif cache is not None:
            context = cache.keys, cache.values
        embedded = self.embed_tokens(tokens)
        if self.config.traits.scaled_embeddings:
            embedded *= jnp.asarray(self.config.hidden_size**0.5, embedded.dtype)
        embedded = keep_rows(embedded, self.layout)
        is_local = None if views.of_local is None else jnp.asarray(self.config.is_local)
        (hidden, in_place), kept = self.layers((embedded, in_place), views, is_local, context)
        keys, values = kept if in_place is None else in_place[:2]
        return self.norm(hidden), keys, values

    def embedding(self) -> Float[Array, "V D"]:
        """The embeddings, which may serve as the head."""
        return self.embed_tokens.embedding


class Block(nn.Module):
    """One layer: (stream, …) → (stream, its keys and values), the form that `nn.scan` expects.

    The stream is the hidden states, and the cache where the layers write into it.
    """

    config: DecoderConfig
    dtype: Any
    attention: Kernel
    layout: Layout | None

    @nn.compact
    def __call__(
        self,
        stream: tuple[Hidden, CacheSlot | None],
        views: Views,
        is_local: Bool[Array, ""] | None,
        context: tuple[CachedKvHeads, CachedKvHeads] | Int[Array, ""] | None,
    ) -> tuple[
        tuple[Hidden, CacheSlot | None],
        tuple[KvHeads, KvHeads] | None,
    ]:
        """The stream after the layer, and its keys and values of these tokens.

        `is_local` says which of the views is the layer's. `context` holds the layer's keys and values of
        earlier tokens, or its number in the stream's cache.
        """
        config, layout = self.config, self.layout
        x, in_place = stream
        earlier: Any = context
        if in_place is not None:
            earlier = in_place._replace(layer=context)
        attention = SelfAttention(
            config,
            self.dtype,
            self.attention,
            layout,
            name="self_attn",
        )
        mlp = GatedMlp(config, self.dtype, name="mlp")
        traits = config.traits

        def norm(name: str) -> RmsNorm:
            return RmsNorm(config.rms_norm_eps, traits.centred_norms, name=name)

        # Both parts read the stream, which most families normalise, and add to the stream itself.
        # `keep_rows` holds the compiler to one split over devices, by rows.
        read = norm("input_layernorm")(x) if traits.norms_before else x
        attended, kept = attention(read, views, is_local, earlier)
        if traits.norms_after:
            attended = norm("post_attention_layernorm")(attended)
        x = keep_rows(x + attended, layout)

        mlp_norm = "pre_feedforward_layernorm" if traits.norms_after else "post_attention_layernorm"
        read = norm(mlp_norm)(x) if traits.norms_before else x
        passed = mlp(read)
        if traits.norms_after:
            passed = norm("post_feedforward_layernorm")(passed)
        x = keep_rows(x + passed, layout)
        if isinstance(kept, CacheSlot):
            return (x, kept), None
        return (x, None), kept
