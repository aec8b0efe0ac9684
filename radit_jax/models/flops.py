"""How much arithmetic a network asks for, by its shape."""

from radit_jax.config import PROJECTIONS, BertConfig, LlamaConfig, LoraConfig


def training_flops(
    config: LlamaConfig,
    *,
    tokens: float | int,
    attended: float | int,
    targets: float | int,
    lora: LoraConfig | None = None,
) -> float:
    """The floating-point operations of a LLaMA's training step, of which a multiply-add is two.

    Counted are matrix products: the projections for each of `tokens`; attention's two for each of `attended`,
    the pairs of a token and one that it sees, itself included, so that a row of T tokens has T (T + 1) / 2
    and what a mask hides has none; the head for each of `targets`. The backward pass takes as much as the
    forward pass for the inputs' gradients, and again for the weights'. Under `lora` the network's weights
    have none, and the adapters come in. Padding, what rematerialisation computes again and all that is no
    matrix product count nothing.
    """
    shapes = projection_shapes(config)
    frozen = lora is not None and lora.rank > 0
    kernels = tokens * config.num_layers * sum(rows * columns for rows, columns in shapes.values())
    head = targets * config.hidden_size * config.vocab_size
    pairs = attended * config.num_layers * 2 * config.num_heads * config.head_size
    adapters = 0.0
    if lora is not None and frozen:
        adapters = tokens * config.num_layers * lora.rank * sum(sum(shapes[name]) for name in lora.targets)
    return 2.0 * ((2 if frozen else 3) * (kernels + head) + 3 * (pairs + adapters))


def encoder_flops(config: BertConfig, *, rows: int, length: int) -> float:
    """The operations of a BERT that reads `rows` texts of `length` tokens, counted likewise."""
    kernels = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.ffn_size
    return 2.0 * rows * length * config.num_layers * (kernels + 2 * length * config.hidden_size)


def projection_shapes(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """(in, out) of a layer's kernels."""
    size, heads = config.hidden_size, config.num_heads * config.head_size
    kv_heads = config.num_kv_heads * config.head_size
    shapes = (size, heads), (size, kv_heads), (size, kv_heads), (heads, size)
    feed_forward = (size, config.ffn_size), (size, config.ffn_size), (config.ffn_size, size)
    return dict(zip(PROJECTIONS, (*shapes, *feed_forward), strict=True))
