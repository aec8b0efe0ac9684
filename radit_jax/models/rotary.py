"""Rotary positions (arXiv 2104.09864): a token's position turns pairs of the numbers of every head."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from radit_jax.config import DecoderConfig
from radit_jax.models.attention import widened

Cosines = Float[Array, "B T 1 h"]  # one for each of a head's h = H / 2 pairs
Rope = tuple[Cosines, Cosines]  # cosines, and sines of the same shape


def rotations(
    config: DecoderConfig,
    positions: Int[Array, "B T"],
    dtype: Any,
    *,
    is_local: bool = False,
) -> Rope:
    """The cosines and sines by which positions rotate the two halves of every head, in a kind of layers."""
    frequencies = jnp.asarray(rope_frequencies(config, is_local=is_local), dtype)
    positions = positions[:, :, None].astype(dtype)
    angles = positions * frequencies[None, None]
    # The same for all heads.
    cos = jnp.cos(angles)[:, :, None]
    sin = jnp.sin(angles)[:, :, None]
    return cos, sin


def rope_frequencies(config: DecoderConfig, *, is_local: bool = False) -> Float[np.ndarray, " h"]:
    """Radians per position of each of the H / 2 pairs, scaled where the config says so.

    Linear scaling slows all pairs down, `factor` times. Llama 3's does so with the pairs that turn fewer than
    `low_freq_factor` times within the original context. It leaves alone those that turn more than
    `high_freq_factor` times, and blends between. Local layers may have a θ of their own, which is not scaled.
    """
    # The first pair turns by one radian a position, the last ones about θ times slower.
    has_own_theta = is_local and config.local_rope_theta is not None
    theta = config.local_rope_theta if has_own_theta else config.rope_theta
    assert theta is not None
    exponents = np.arange(0, config.head_size, 2) / config.head_size
    frequencies = theta**-exponents

    scaling = config.rope_scaling
    if scaling is None or has_own_theta:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor

    # What is not scaled of each pair: nothing of the slow ones, all of the fast ones.
    turns = scaling.original_max_length * frequencies / (2 * np.pi)
    blend_width = scaling.high_freq_factor - scaling.low_freq_factor
    unscaled = (turns - scaling.low_freq_factor) / blend_width
    unscaled = np.clip(unscaled, 0.0, 1.0)
    factors = unscaled + (1 - unscaled) / scaling.factor
    return frequencies * factors


def rotate(
    x: Float[Array, "B T N H"],
    rope: Rope,
) -> Float[Array, "B T N H"]:
    """Rotary positions in Hugging Face's form: element i of the first half pairs with i of the second."""
    cos, sin = rope
    first, second = jnp.split(widened(x), 2, axis=-1)  # of each head
    first_rotated = first * cos - second * sin
    second_rotated = second * cos + first * sin
    halves = [first_rotated, second_rotated]
    rotated = jnp.concatenate(halves, axis=-1)
    return rotated.astype(x.dtype)
