"""What a decoder's layers are made of: projections with their adapters, norms, the feed-forward part."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from radit_jax.config import DecoderConfig
from radit_jax.models.attention import widened
from radit_jax.models.lora import dequantized

initial_normal = nn.initializers.normal(0.02)  # as Hugging Face's LLaMA starts


class GatedMlp(nn.Module):
    """The feed-forward part of a layer: W_down (f(W_gate x) · W_up x), where f is SiLU, or GELU by tanh."""

    config: DecoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """What the feed-forward part adds to the stream."""
        gate_proj = Projection(self.config.ffn_size, self.dtype, name="gate_proj")
        up_proj = Projection(self.config.ffn_size, self.dtype, name="up_proj")
        down_proj = Projection(self.config.hidden_size, self.dtype, name="down_proj")
        gate = gate_proj(x)
        up = up_proj(x)
        opened = nn.gelu(gate, approximate=True) if self.config.traits.gelu else nn.silu(gate)
        return down_proj(opened * up)


class Projection(nn.Module):
    """x W + b in `dtype`, plus x A B where parameters `lora_a` and `lora_b` lie next to the kernel."""

    features: int  # F, the width of the outputs
    dtype: Any
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows F"]:
        """x W + b, or x (W + A B) + b without forming the sum."""
        kernel = self.param("kernel", initial_normal, (x.shape[-1], self.features))
        outputs = self._times(x, kernel)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            outputs += bias.astype(outputs.dtype).reshape(_last_axis(outputs))
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
        products = jnp.dot(flat, matrix)
        return products.reshape(*x.shape[:-1], -1)

    def _times_quantized(self, x: Float[Array, "*rows D"], matrix: Any) -> Float[Array, "*rows F"]:
        # Without the checkpoint, the backward pass would keep the whole matrices of all layers from the
        # forward pass.
        @jax.checkpoint
        def times(x: Float[Array, "*rows D"], matrix: Any) -> Float[Array, "*rows F"]:
            return self._times(x, dequantized(matrix))

        return times(x, matrix)


class RmsNorm(nn.Module):
    """x / rms(x) · weight over the last axis, computed in x's `wide` dtype and returned in x's own dtype.

    Where norms are `centred`, the factor is 1 + weight, and a weight starts at 0.
    """

    eps: float  # added to the mean square
    centred: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """Each vector at root mean square 1, times the factor."""
        initial = nn.initializers.zeros if self.centred else nn.initializers.ones
        weight = self.param("weight", initial, (x.shape[-1],))
        exact = widened(x)
        mean_square = jnp.mean(jnp.square(exact), axis=-1, keepdims=True)
        normalized = exact * jax.lax.rsqrt(mean_square + self.eps)
        factor = weight.astype(exact.dtype).reshape(_last_axis(x))
        if self.centred:
            factor += 1
        weighted = normalized * factor
        return weighted.astype(x.dtype)


def _last_axis(x: Float[Array, "*rows D"]) -> tuple[int, ...]:
    """The shape (1, …, 1, D), in which D numbers are multiplied with, or added to, every vector of `x`."""
    return (1,) * (x.ndim - 1) + (-1,)
