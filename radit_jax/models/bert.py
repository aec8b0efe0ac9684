"""BERT as an encoder of texts into single vectors: post-norm layers, erf GELU, learnt positions.

Texts come one to a row (`encode`), or several to a row (`encode_packed`), where short ones would be padding
for the most part.

Modules have Hugging Face's names. The layers are one scanned block whose parameters are stacked on a leading
axis L; kernels are (in, out):

    embeddings/{word,position,token_type}_embeddings/embedding         V D (or positions, types)
    embeddings/LayerNorm/{scale,bias}                                  D
    encoder/layer/attention/self/{query,key,value}/{kernel,bias}       L D D
    encoder/layer/attention/output/{dense,LayerNorm}/…                 L D D, L D
    encoder/layer/intermediate/dense/…                                 L D F
    encoder/layer/output/{dense,LayerNorm}/…                           L F D, L D
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from radit_jax.config import BertConfig
from radit_jax.models.attention import UNROLLED, Layout, attend, keep_rows, wide, widened

_init = nn.initializers.normal(0.02)


# Products of bfloat16 stay in float32 until the next one: more exact, and XLA's CPU backend has a kernel for
# it, while it turns the factors of products that are to be bfloat16 into float32 first.
def _dot(x: Array, *args: Any, **options: Any) -> Array:
    return jax.lax.dot_general(x, *args, **options | {"preferred_element_type": wide(x.dtype)})


class PackedTexts(NamedTuple):
    """Texts that share rows, none of which sees another."""

    tokens: Int[Array, "R T"]
    positions: Int[Array, "R T"]  # of each token in its text
    texts: Int[Array, "R T"]  # the number of its text, −1 where there is none


class Bert(nn.Module):
    """E_q or E_d of Eq. 1: the same network with two parameter trees. `dtype` is what it computes in."""

    config: BertConfig
    dtype: Any = jnp.float32
    layout: Layout | None = None  # None: activations lie where the compiler puts them

    def setup(self) -> None:
        self.embeddings = BertEmbeddings(self.config, self.dtype)
        self.encoder = BertLayers(self.config, self.dtype, self.layout)

    def __call__(self, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, "B D"]:
        """One float32 vector for each row; `mask` is True at its real tokens, the first of which is [CLS]."""
        seen = jnp.broadcast_to(mask[:, None], (*mask.shape, mask.shape[1]))
        hidden = self._hidden(tokens, jnp.arange(tokens.shape[1])[None], seen)
        return self._finish(hidden[:, 0] if self.config.pooling == "cls" else masked_mean(hidden, mask))

    def packed(self, packed: PackedTexts, num_texts: int) -> Float[Array, "N D"]:
        """One float32 vector for each of the texts 0 to N − 1, wherever they lie; 0 where there is none."""
        texts = packed.texts
        seen = (texts[:, :, None] == texts[:, None, :]) & (texts >= 0)[:, None, :]
        hidden = self._hidden(packed.tokens, packed.positions, seen)
        pooled = texts[None] == jnp.arange(num_texts)[:, None, None]
        if self.config.pooling == "cls":
            pooled &= packed.positions[None] == 0
        weights = pooled / jnp.maximum(pooled.sum(axis=(1, 2), keepdims=True), 1)
        # A product, which devices do for their own rows; at full precision, for it only picks and adds.
        vectors = jnp.einsum("nrt,rtd->nd", weights, hidden, precision=jax.lax.Precision.HIGHEST)
        return self._finish(keep_rows(vectors, self.layout))

    def _hidden(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "b T"], seen: Bool[Array, "B T T"]
    ) -> Float[Array, "B T D"]:
        return widened(self.encoder(self.embeddings(tokens, positions), seen))

    def _finish(self, embedding: Float[Array, "N D"]) -> Float[Array, "N E"]:
        embedding = l2_normalize(embedding) if self.config.normalize else embedding
        return embedding[:, : self.config.truncate_dim]


class BertEmbeddings(nn.Module):
    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"], positions: Int[Array, "b T"]) -> Float[Array, "B T D"]:
        def embed(name: str, size: int, ids: Int[Array, "b T"]) -> Float[Array, "b T D"]:
            table = nn.Embed(size, self.config.hidden_size, dtype=self.dtype, embedding_init=_init, name=name)
            return table(ids)

        words = embed("word_embeddings", self.config.vocab_size, tokens)
        places = embed("position_embeddings", self.config.max_length, positions)
        types = embed("token_type_embeddings", self.config.type_vocab_size, jnp.zeros_like(tokens))
        return _layer_norm(self.config, self.dtype)(words + types + places)


class BertLayers(nn.Module):
    config: BertConfig
    dtype: Any
    layout: Layout | None

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], seen: Bool[Array, "B T T"]) -> Float[Array, "B T D"]:
        layers = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=self.config.num_layers,
            unroll=self.config.num_layers if self.config.num_layers <= UNROLLED else 1,
        )
        stack = layers(self.config, self.dtype, self.layout, name="layer")
        return stack(keep_rows(x, self.layout), seen)[0]


class Layer(nn.Module):
    config: BertConfig
    dtype: Any
    layout: Layout | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], seen: Bool[Array, "B T T"]
    ) -> tuple[Float[Array, "B T D"], None]:
        x = Attention(self.config, self.dtype, name="attention")(x, seen)
        wide = Intermediate(self.config, self.dtype, name="intermediate")(x)
        x = Output(self.config, self.dtype, name="output")(wide, x)
        return keep_rows(x, self.layout), None


class Attention(nn.Module):
    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], seen: Bool[Array, "B T T"]) -> Float[Array, "B T D"]:
        attended = BertSelfAttention(self.config, self.dtype, name="self")(x, seen)
        return Output(self.config, self.dtype, name="output")(attended, x)


class BertSelfAttention(nn.Module):
    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], seen: Bool[Array, "B T T"]) -> Float[Array, "B T D"]:
        def project(name: str) -> Float[Array, "B T N H"]:
            flat = _dense(x.shape[-1], self.dtype, name=name)(x)
            return flat.reshape(*x.shape[:2], self.config.num_heads, -1)

        return attend(project("query"), project("key"), project("value"), seen).reshape(x.shape)


class Intermediate(nn.Module):
    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T F"]:
        return jax.nn.gelu(_dense(self.config.ffn_size, self.dtype, name="dense")(x), approximate=False)


class Output(nn.Module):
    """Back to the residual stream, which is normalised after the sum."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T F"], residual: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        projected = _dense(self.config.hidden_size, self.dtype, name="dense")(x)
        return _layer_norm(self.config, self.dtype)(projected + residual)


def encode(
    module: Bert, params: Any, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B D"]:
    """A vector for each text: E_q or E_d, whose parameters `params` are."""
    vectors: Any = module.apply({"params": params}, tokens, mask)
    return vectors


def encode_packed(module: Bert, params: Any, packed: PackedTexts, num_texts: int) -> Float[Array, "N D"]:
    """`encode` of N texts that share rows: the same vectors."""
    vectors: Any = module.apply({"params": params}, packed, num_texts, method="packed")
    return vectors


def masked_mean(hidden: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B D"]:
    """The mean over the real tokens; 0 where there are none."""
    total = jnp.where(mask[:, :, None], hidden, 0.0).sum(axis=1)
    return total / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)


def l2_normalize(x: Float[Array, "B D"]) -> Float[Array, "B D"]:
    """X at length 1; the zero vector, with a finite gradient, stays zero."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-24))


def _dense(features: int, dtype: Any, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, kernel_init=_init, dot_general=_dot, name=name)


def _layer_norm(config: BertConfig, dtype: Any) -> nn.LayerNorm:
    # The fast variance E[x²] − E[x]² loses the digits that parity needs.
    return nn.LayerNorm(config.layer_norm_eps, dtype=dtype, use_fast_variance=False, name="LayerNorm")
