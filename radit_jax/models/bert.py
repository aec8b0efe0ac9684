"""BERT as an encoder of texts into single vectors: post-norm layers, erf GELU, learnt positions.

RoBERTa and XLM-RoBERTa are the same network, whose positions are counted from 2. So are
DistilBERT and MPNet, which have no token types. MPNet adds a bias to each score by the distance of the two
tokens.

A row holds one text (`encode`), or several (`encode_packed`), where rows of one short text each would be
mostly padding.

Modules have Hugging Face's names. The layers are one scanned block whose parameters are stacked on a leading
axis L; kernels are (in, out):

    embeddings/{word,position,token_type}_embeddings/embedding         V D (or positions, types)
    embeddings/LayerNorm/{scale,bias}                                  D
    encoder/relative_attention_bias/embedding                          buckets N, MPNet's
    encoder/layer/attention/self/{query,key,value}/{kernel,bias}       L D D
    encoder/layer/attention/output/{dense,LayerNorm}/…                 L D D, L D
    encoder/layer/intermediate/dense/…                                 L D F
    encoder/layer/output/{dense,LayerNorm}/…                           L F D, L D
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from radit_jax.config import BertConfig, EncoderConfig
from radit_jax.models.attention import UNROLLED, Layout, ScoreForm, attend, keep_rows, wide, widened

_init = nn.initializers.normal(0.02)  # as Hugging Face's BERT starts

Hidden = Float[Array, "B T D"]  # the states of a text's tokens
AttentionMask = Bool[Array, "B T T"]  # True where a token sees another
DistanceBias = Float[Array, "N T T"]  # what each head adds to the score of a token (row) for another


# The least distance of each of MPNet's buckets: one bucket for each up to 8, then two for each doubling. The
# last also has all greater distances. As many more are for tokens after the one that looks.
BUCKETS = (*range(8), 8, 12, 16, 23, 32, 46, 64, 91)


class PackedTexts(NamedTuple):
    """Texts that share rows; no text sees another."""

    tokens: Int[Array, "R T"]
    positions: Int[Array, "R T"]  # of each token in its text
    texts: Int[Array, "R T"]  # the number of its text, −1 where there is none


class Bert(nn.Module):
    """E_q or E_d of Eq. 1: the same network with two parameter trees. `dtype` is what it computes in."""

    config: BertConfig
    dtype: Any = jnp.float32
    layout: Layout | None = None  # None: activations lie where the compiler puts them

    def setup(self) -> None:
        """The two parts under Hugging Face's names."""
        self.embeddings = BertEmbeddings(self.config, self.dtype)
        self.encoder = BertLayers(self.config, self.dtype, self.layout)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
    ) -> Float[Array, "B D"]:
        """One float32 vector for each row; `mask` is True at its real tokens, the first of which is [CLS]."""
        # Every position sees the real tokens only, so that padding changes no vector.
        batch, length = mask.shape
        attention_mask = jnp.broadcast_to(mask[:, None], (batch, length, length))
        positions = jnp.arange(length)[None]
        hidden = self._hidden(tokens, positions, attention_mask)
        if self.config.pooling == "cls":
            return finished(hidden[:, 0], self.config)
        return finished(masked_mean(hidden, mask), self.config)

    def packed(self, packed: PackedTexts, num_texts: int) -> Float[Array, "N D"]:
        """One float32 vector for each of the texts 0 to N − 1, wherever they lie; 0 where there is none."""
        # A token sees the tokens of its own text; padding sees nothing.
        texts = packed.texts
        same_text = texts[:, :, None] == texts[:, None, :]
        is_text = (texts >= 0)[:, None, :]
        attention_mask = same_text & is_text
        hidden = self._hidden(packed.tokens, packed.positions, attention_mask)

        # A text's vector is the mean of its tokens, or the first of them.
        pooled = texts[None] == jnp.arange(num_texts)[:, None, None]
        if self.config.pooling == "cls":
            pooled &= packed.positions[None] == 0
        vectors = packed_mean(hidden, pooled)
        return finished(keep_rows(vectors, self.layout), self.config)

    def _hidden(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "b T"],
        attention_mask: AttentionMask,
    ) -> Hidden:
        embedded = self.embeddings(tokens, positions)
        return widened(self.encoder(embedded, attention_mask))


class BertEmbeddings(nn.Module):
    """The sum of a token's word, position and type embeddings, normalised; all tokens are of type 0."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "b T"],
    ) -> Hidden:
        """What the first layer reads."""
        config = self.config

        def embed(
            name: str,
            num_embeddings: int,
            ids: Int[Array, "b T"],
        ) -> Float[Array, "b T D"]:
            table = nn.Embed(
                num_embeddings,
                config.hidden_size,
                dtype=self.dtype,
                embedding_init=_init,
                name=name,
            )
            return table(ids)

        words = embed("word_embeddings", config.vocab_size, tokens)
        first = config.first_position
        places = embed("position_embeddings", first + config.max_length, first + positions)
        if config.has_token_types:
            zeros = jnp.zeros_like(tokens)  # every token is of type 0
            words += embed("token_type_embeddings", config.type_vocab_size, zeros)
        layer_norm = _layer_norm(config, self.dtype)
        return layer_norm(words + places)


class BertLayers(nn.Module):
    """The L layers, as one scanned block."""

    config: BertConfig
    dtype: Any
    layout: Layout | None

    @nn.compact
    def __call__(self, x: Hidden, attention_mask: AttentionMask) -> Hidden:
        """The states after the last layer."""
        num_layers = self.config.num_layers
        layers = nn.scan(
            Layer,
            variable_axes={"params": 0},  # parameters are stacked on a leading axis
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=num_layers,
            unroll=num_layers if num_layers <= UNROLLED else 1,  # 1: a loop
        )
        stack = layers(self.config, self.dtype, self.layout, name="layer")
        bias = self._distance_bias(x.shape[1]) if self.config.has_distance_bias else None
        hidden, _ = stack(keep_rows(x, self.layout), attention_mask, bias)
        return hidden

    def _distance_bias(self, length: int) -> DistanceBias:
        """The bias of each head, which all layers share. Texts that share a row do not see each other."""
        table = nn.Embed(
            2 * len(BUCKETS),
            self.config.num_heads,
            dtype=wide(self.dtype),
            embedding_init=_init,
            name="relative_attention_bias",
        )
        return table(distance_buckets(length)).transpose(2, 0, 1)


class Layer(nn.Module):
    """One layer: (hidden, mask) → (hidden, nothing), the form that `nn.scan` expects."""

    config: BertConfig
    dtype: Any
    layout: Layout | None

    @nn.compact
    def __call__(
        self,
        x: Hidden,
        attention_mask: AttentionMask,
        bias: DistanceBias | None,
    ) -> tuple[Hidden, None]:
        """The states after the layer; no layer has an output of its own."""
        attention = Attention(self.config, self.dtype, name="attention")
        intermediate = Intermediate(self.config, self.dtype, name="intermediate")
        output = Output(self.config, self.dtype, name="output")

        # Attention has an `Output` of its own: both halves add to the stream and normalise it.
        x = attention(x, attention_mask, bias)
        x = output(intermediate(x), x)
        return keep_rows(x, self.layout), None


class Attention(nn.Module):
    """Self-attention and its way back to the residual stream."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Hidden,
        attention_mask: AttentionMask,
        bias: DistanceBias | None,
    ) -> Hidden:
        """norm(x + attention(x) W + b)."""
        self_attention = BertSelfAttention(self.config, self.dtype, name="self")
        output = Output(self.config, self.dtype, name="output")
        return output(self_attention(x, attention_mask, bias), x)


class BertSelfAttention(nn.Module):
    """N heads, each with its own keys and values."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Hidden,
        attention_mask: AttentionMask,
        bias: DistanceBias | None,
    ) -> Hidden:
        """The outputs of the N heads, one after the other."""
        batch, length, width = x.shape

        def project(name: str) -> Float[Array, "B T N H"]:
            flat = _dense(width, self.dtype, name=name)(x)
            return flat.reshape(batch, length, self.config.num_heads, -1)

        queries = project("query")
        keys = project("key")
        values = project("value")
        form = ScoreForm(bias=bias)
        return attend(queries, keys, values, attention_mask, form=form).reshape(x.shape)


class Intermediate(nn.Module):
    """The first half of the feed-forward part: GELU(x W + b), with the exact GELU by erf."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Hidden) -> Float[Array, "B T F"]:
        """F numbers for each token."""
        dense = _dense(self.config.ffn_size, self.dtype, name="dense")
        return jax.nn.gelu(dense(x), approximate=False)


class Output(nn.Module):
    """Back to the residual stream, which is normalised after the sum."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T F"], residual: Hidden) -> Hidden:
        """norm(x W + b + residual)."""
        dense = _dense(self.config.hidden_size, self.dtype, name="dense")
        layer_norm = _layer_norm(self.config, self.dtype)
        return layer_norm(dense(x) + residual)


def encode(
    module: nn.Module,
    params: Any,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Float[Array, "B D"]:
    """A vector for each text: E_q or E_d, as `params` are those of one or the other."""
    vectors: Any = module.apply({"params": params}, tokens, mask)
    return vectors


def encode_packed(
    module: nn.Module,
    params: Any,
    packed: PackedTexts,
    num_texts: int,
) -> Float[Array, "N D"]:
    """`encode` of N texts that share rows: the same vectors."""
    vectors: Any = module.apply(
        {"params": params},
        packed,
        num_texts,
        method="packed",
    )
    return vectors


def distance_buckets(length: int) -> Int[np.ndarray, "T T"]:
    """The bucket of the distance from each token of a row to each other one.

    >>> distance_buckets(3).tolist()
    [[0, 17, 18], [1, 0, 17], [2, 1, 0]]
    """
    places = np.arange(length)
    offsets = places - places[:, None]
    buckets = np.searchsorted(BUCKETS, np.abs(offsets), side="right") - 1
    return np.where(offsets > 0, len(BUCKETS) + buckets, buckets)


def masked_mean(hidden: Hidden, mask: Bool[Array, "B T"]) -> Float[Array, "B D"]:
    """The mean over the real tokens; 0 where there are none."""
    real = jnp.where(mask[:, :, None], hidden, 0.0)
    total = real.sum(axis=1)
    count = mask.sum(axis=1, keepdims=True)
    return total / jnp.maximum(count, 1)


def packed_mean(
    hidden: Float[Array, "R T D"],
    is_pooled: Bool[Array, "N R T"],
) -> Float[Array, "N D"]:
    """The mean over the tokens of rows that are pooled for each of N texts; 0 where there are none."""
    counts = is_pooled.sum(axis=(1, 2), keepdims=True)
    weights = is_pooled / jnp.maximum(counts, 1)
    # A product, which devices compute for their own rows; at full precision, as it only picks and adds.
    return jnp.einsum(
        "nrt,rtd->nd",
        weights,
        hidden,
        precision=jax.lax.Precision.HIGHEST,
    )


def finished(vectors: Float[Array, "N D"], config: EncoderConfig) -> Float[Array, "N E"]:
    """The vectors at length 1, if the encoder normalises them, and cut to its width."""
    # A vector is cut after that, so that its length may be less than 1.
    if config.normalize:
        vectors = l2_normalize(vectors)
    return vectors[:, : config.truncate_dim]  # None keeps all D


def l2_normalize(x: Float[Array, "B D"]) -> Float[Array, "B D"]:
    """X at length 1; the zero vector stays zero, with a finite gradient."""
    square = jnp.square(x).sum(axis=-1, keepdims=True)
    # A length below 1e-12 counts as 1e-12.
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def _dense(features: int, dtype: Any, name: str) -> nn.Dense:
    return nn.Dense(
        features,
        dtype=dtype,
        kernel_init=_init,
        dot_general=_dot_general,
        name=name,
    )


def _dot_general(
    inputs: Float[Array, "..."],
    *args: Any,
    **options: Any,
) -> Float[Array, "..."]:
    # Products of bfloat16 stay in float32 until the next product. That is more exact, and XLA's CPU backend
    # has a kernel for it; for a result in bfloat16 it would first turn both factors into float32.
    options["preferred_element_type"] = wide(inputs.dtype)
    return jax.lax.dot_general(inputs, *args, **options)


def _layer_norm(config: BertConfig, dtype: Any) -> nn.LayerNorm:
    return nn.LayerNorm(
        config.layer_norm_eps,
        dtype=dtype,
        use_fast_variance=False,  # E[x²] − E[x]² would lose the digits that parity with the original needs
        name="LayerNorm",
    )
