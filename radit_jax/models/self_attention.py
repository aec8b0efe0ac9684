"""Self-attention of a decoder's layer, global or local, over its own tokens and those in a cache."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from radit_jax.config import DecoderConfig
from radit_jax.models.attention import Kernel, Layout, ScoreForm, attend, attend_heads_first, heads_first
from radit_jax.models.kv_cache import CacheSlot
from radit_jax.models.layers import Projection, RmsNorm
from radit_jax.models.rotary import Rope, rotate

Hidden = Float[Array, "B T D"]  # the residual stream, or what a layer adds to it
MaskOrSegmentIds = Bool[Array, "B T S"] | Int[Array, "B T"]  # see `attend`
KvHeads = Float[Array, "B M T H"]  # a layer's keys, or its values, of the T tokens that it reads
CachedKvHeads = Float[Array, "B M C H"]  # those of C earlier tokens


class View(NamedTuple):
    """What a kind of layers, global or local, knows of the tokens: their rotations, and who sees whom."""

    rope: Rope
    mask_or_segment_ids: MaskOrSegmentIds


class Views(NamedTuple):
    """The view of global layers, and that of local ones: None where all layers are global."""

    of_global: View
    of_local: View | None


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
        views: Views,
        is_local: Bool[Array, ""] | None,
        context: tuple[CachedKvHeads, CachedKvHeads] | CacheSlot | None,
    ) -> tuple[Hidden, tuple[KvHeads, KvHeads] | CacheSlot]:
        """What attention adds to the stream, and the keys (rotated) and values of these tokens.

        In place of the latter, where the context is a slot of a cache, the cache that has them.
        """
        config, traits = self.config, self.config.traits
        batch_and_length = x.shape[:2]
        view = _view_of(views, is_local)

        def project(name: str, num_heads: int) -> Float[Array, "B T N H"]:
            projection = Projection(
                num_heads * config.head_size,
                self.dtype,
                use_bias=traits.qkv_bias,
                name=f"{name}_proj",
            )
            projected = projection(x)
            heads_shape = (*batch_and_length, num_heads, config.head_size)
            if traits.qk_norm == "none" or name == "v":
                return projected.reshape(heads_shape)
            # The norm of a head, or of all heads as one vector.
            norm = RmsNorm(config.rms_norm_eps, traits.centred_norms, name=f"{name}_norm")
            if traits.qk_norm == "all":
                return norm(projected).reshape(heads_shape)
            return norm(projected.reshape(heads_shape))

        queries = rotate(project("q", config.num_heads), view.rope)
        new_keys = rotate(project("k", config.num_kv_heads), view.rope)
        new_values = project("v", config.num_kv_heads)

        kept = new = heads_first(new_keys, new_values)
        form = ScoreForm(config.score_scale, config.score_cap)
        attend_to = functools.partial(
            attend_heads_first,
            queries,
            mask=view.mask_or_segment_ids,
            form=form,
        )
        if context is None:
            attended = self._attend(queries, new_keys, new_values, view.mask_or_segment_ids, is_local)
        elif isinstance(context, CacheSlot):
            kept = context.write(*new)
            attended = attend_to(*kept.of_layer())
        else:
            # Cached keys come first: their tokens are the earlier ones.
            keys, values = map(_join_slots, context, new)
            attended = attend_to(keys, values, causal=True)
        output = Projection(config.hidden_size, self.dtype, name="o_proj")
        return output(attended.reshape(*batch_and_length, -1)), kept

    def _attend(
        self,
        queries: Float[Array, "B T N H"],
        keys: Float[Array, "B T M H"],
        values: Float[Array, "B T M H"],
        mask_or_segment_ids: MaskOrSegmentIds,
        is_local: Bool[Array, ""] | None,
    ) -> Float[Array, "B T N H"]:
        """`attend` in this layer's form. Local layers have their window in the mask, or tell the kernel."""
        config = self.config
        form = ScoreForm(config.score_scale, config.score_cap)

        def attend_in(form: ScoreForm) -> Callable[..., Float[Array, "B T N H"]]:
            return functools.partial(
                attend, kernel=self.attention, layout=self.layout, causal=True, form=form
            )

        inputs = queries, keys, values, mask_or_segment_ids
        is_mask = mask_or_segment_ids.ndim == 3
        is_whole = config.window is None or keys.shape[1] <= config.window
        if is_local is None or is_mask or is_whole:
            return attend_in(form)(*inputs)
        # Both kinds of layers are in one scanned block, which runs the kernel of its kind.
        local_form = form._replace(window=config.window)
        return jax.lax.cond(is_local, attend_in(local_form), attend_in(form), *inputs)


def _join_slots(
    cached: Float[Array, "B M C H"],
    new: Float[Array, "B M T H"],
) -> Float[Array, "B M C+T H"]:
    return jnp.concatenate([cached, new], axis=2)


def _view_of(views: Views, is_local: Bool[Array, ""] | None) -> View:
    """The view of a layer."""
    of_global, of_local = views
    if of_local is None or is_local is None:
        return of_global

    def choose(local: Shaped[Array, "*shape"], everywhere: Shaped[Array, "*shape"]) -> Any:
        return jnp.where(is_local, local, everywhere)

    return jax.tree.map(choose, of_local, of_global)
