"""How much arithmetic a network asks for, by its shape."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from radit_jax.config import PROJECTIONS, DecoderConfig, EncoderConfig, LastTokenConfig, LoraConfig


def pairs_at(config: DecoderConfig, positions: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The tokens that one at each position sees, itself included: the mean over the layers, float32.

    At position p a global layer sees p + 1, a local one at most its window.
    """
    seen = positions.astype(jnp.float32) + 1
    if config.window is None:
        return seen
    seen_locally = jnp.minimum(seen, config.window)
    num_local = sum(config.is_local)
    num_global = config.num_layers - num_local
    in_layers = num_local * seen_locally + num_global * seen
    return in_layers / config.num_layers


def attended_pairs(config: DecoderConfig, *, sequences: float | int, length: int) -> float:
    """The pairs of a token and one that it sees, itself included, in sequences of `length` tokens.

    The mean over the layers, as `training_flops` counts them.

    >>> attended_pairs(DecoderConfig(8, 8, 2, 1, 1, 8, 8), sequences=3, length=4)
    30.0
    """
    positions = jnp.arange(length)
    pairs = pairs_at(config, positions)
    return sequences * float(pairs.sum())


def training_flops(
    config: DecoderConfig,
    *,
    tokens: float | int,
    attended: float | int,
    targets: float | int,
    lora: LoraConfig | None = None,
) -> float:
    """The floating-point operations of a decoder's training step; a multiply-add is two.

    Only matrix products count: the projections for each of `tokens`; attention's two for each of `attended`;
    the head for each of `targets`. `attended` counts pairs of a token and one that it sees, itself included:
    a row of T tokens has T (T + 1) / 2, and what a mask hides adds none. Where layers differ, it is
    their mean (`pairs_at`).

    The backward pass takes as much as the forward pass for the gradients of the inputs, and as much again for
    those of the weights. Under `lora` the network's weights have no gradients, and the adapters are added.
    Padding and what rematerialisation computes again count nothing.
    """
    shapes = projection_shapes(config)
    is_frozen = lora is not None and lora.rank > 0
    passes = 2 if is_frozen else 3  # forward, gradients of inputs, gradients of weights

    # Multiply-adds of one forward pass: the projections, and the head.
    tokens_in_layers = tokens * config.num_layers
    sizes = [size_in * size_out for size_in, size_out in shapes.values()]
    kernels = tokens_in_layers * sum(sizes)
    head = targets * config.hidden_size * config.vocab_size
    # A pair has a score in every head, and a value that it weighs.
    pairs_in_layers = attended * config.num_layers
    pairs = pairs_in_layers * 2 * config.num_heads * config.head_size
    # A target of LoRA has two matrices, (in, R) and (R, out).
    adapters = 0.0
    if lora is not None and is_frozen:
        widths = [sum(shapes[name]) for name in lora.targets]
        adapters = tokens_in_layers * lora.rank * sum(widths)

    # Attention and the adapters always pass gradients both to their inputs and to what they multiply with.
    multiply_adds = passes * (kernels + head) + 3 * (pairs + adapters)
    return 2.0 * multiply_adds


def encoder_flops(config: EncoderConfig, *, rows: int, length: int) -> float:
    """The operations of an encoder that reads `rows` texts of `length` tokens, counted likewise."""
    if isinstance(config, LastTokenConfig):
        # A training step without targets, which would read the head, is three such passes.
        decoder = config.decoder
        attended = attended_pairs(decoder, sequences=float(rows), length=length)
        step = training_flops(decoder, tokens=rows * length, attended=attended, targets=0)
        return step / 3
    size = config.hidden_size
    # Multiply-adds of a token in a layer; every token sees all of its text.
    projections = 4 * size**2
    feed_forward = 2 * size * config.ffn_size
    attention = 2 * length * size
    multiply_adds = projections + feed_forward + attention
    return 2.0 * rows * length * config.num_layers * multiply_adds


def projection_shapes(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """(in, out) of the kernels of a layer, by the projection's name."""
    size = config.hidden_size
    heads = config.num_heads * config.head_size
    kv_heads = config.num_kv_heads * config.head_size
    ffn = config.ffn_size
    shapes = (
        (size, heads),
        (size, kv_heads),
        (size, kv_heads),
        (heads, size),
        (size, ffn),
        (size, ffn),
        (ffn, size),
    )
    return dict(zip(PROJECTIONS, shapes, strict=True))
