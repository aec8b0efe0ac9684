"""How much arithmetic a network asks for, by its shape."""

from radit_jax.config import BertConfig, LlamaConfig


def training_flops(
    config: LlamaConfig, *, tokens: float | int, attended: float | int, targets: float | int
) -> float:
    """tmp"""
    size, heads, kv = (
        config.hidden_size,
        config.num_heads * config.head_size,
        config.num_kv_heads * config.head_size,
    )
    layer = size * (2 * heads + 2 * kv + 3 * config.ffn_size)
    kernels = tokens * config.num_layers * layer
    head = targets * config.hidden_size * config.vocab_size
    pairs = attended * config.num_layers * 2 * config.num_heads * config.head_size
    return 6.0 * (kernels + head + pairs)


def encoder_flops(config: BertConfig, *, rows: int, length: int) -> float:
    """The operations of a BERT that reads `rows` texts of `length` tokens, counted as above."""
    kernels = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.ffn_size
    return 2.0 * rows * length * config.num_layers * (kernels + 2 * length * config.hidden_size)
