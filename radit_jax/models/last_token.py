"""A decoder as an encoder of texts into single vectors: a text's vector is its last token's state.

Qwen3-Embedding is one: its tokeniser ends every text with a token of its own, which sees all others. The
parameters are those of `models/decoder.py` without a head.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from radit_jax.config import LastTokenConfig
from radit_jax.models.attention import Layout, keep_rows, widened
from radit_jax.models.bert import Bert, PackedTexts, finished, packed_mean
from radit_jax.models.decoder import DecoderLm


class LastTokenEncoder(nn.Module):
    """E_q or E_d of Eq. 1, called as `Bert` is. `dtype` is what it computes in."""

    config: LastTokenConfig
    dtype: Any = jnp.float32
    layout: Layout | None = None  # None: activations lie where the compiler puts them

    def setup(self) -> None:
        """The decoder, whose parameters are the encoder's own."""
        self.lm = DecoderLm(self.config.decoder, self.dtype, layout=self.layout)
        nn.share_scope(self, self.lm)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
    ) -> Float[Array, "B D"]:
        """One float32 vector for each row; `mask` is True at its real tokens, which come first."""
        # Padding is segment 0, which no token sees.
        hidden = widened(self.lm.hidden(tokens, segment_ids=mask.astype(jnp.int32)))
        # Each row's last token; a row without one gives numbers without a meaning.
        num_tokens = mask.sum(axis=1)
        last = jnp.maximum(num_tokens - 1, 0)
        states = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
        return finished(states[:, 0], self.config)

    def packed(self, packed: PackedTexts, num_texts: int) -> Float[Array, "N D"]:
        """One float32 vector for each of the texts 0 to N − 1, wherever they lie; 0 where there is none."""
        # Each text is a segment of its row.
        texts = packed.texts
        hidden = widened(self.lm.hidden(packed.tokens, packed.positions, texts + 1))

        # After a text's last token there is another text, padding, or the row's end.
        texts_after = jnp.pad(texts[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
        is_last = texts != texts_after
        is_pooled = texts[None] == jnp.arange(num_texts)[:, None, None]
        vectors = packed_mean(hidden, is_pooled & is_last[None])
        return finished(keep_rows(vectors, self.layout), self.config)


TextEncoder = Bert | LastTokenEncoder
