"""Mimetic initialisation: a LLaMA that attends and copies before it has learnt anything."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from radit_jax.config import DecoderConfig

EMBEDDING_STD = 0.08
COPY_SCALE = 0.5  # of what the upper layers copy, next to the token's own embedding


def mimetic_init(params: Any, config: DecoderConfig, rng: PRNGKeyArray) -> Any:
    """`params` with attention that gathers and copies from the start, so that a small LM learns to read.

    In the lower half of the layers W_o W_v = I: each position gathers those before it. In the upper half
    W_q = W_k, one orthogonal matrix, attends to the same token, and W_o W_v = ½ Rᵀ copies what was gathered
    there into a subspace that only the head reads, for it applies R, random orthogonal, before the embedding.
    The embeddings' standard deviation is 0.08. The result is a plain LLaMA with an untied head. The idea of
    weights that mimic trained ones is from arXiv 2305.09828; this form of it is ours.
    """
    _check_config(config)
    size, num_layers = config.hidden_size, config.num_layers

    # Draw the embedding, R, and an orthogonal matrix a layer for the values and for queries with keys.
    embed_key, turn_key, value_key, match_key = jax.random.split(rng, 4)
    normal = jax.random.normal(embed_key, (config.vocab_size, size))
    embedding = EMBEDDING_STD * normal
    turn = jax.random.orthogonal(turn_key, size)
    value = jax.random.orthogonal(value_key, size, (num_layers,))
    match = jax.random.orthogonal(match_key, size, (num_layers,))

    layers = params["model"]["layers"]
    attention = layers["self_attn"]
    is_upper = jnp.arange(num_layers) >= num_layers // 2
    is_upper = is_upper[:, None, None]
    gather = value.swapaxes(1, 2)

    # Queries meet equal keys in the upper layers only.
    queries = jnp.where(is_upper, match, attention["q_proj"]["kernel"])
    keys = jnp.where(is_upper, match, attention["k_proj"]["kernel"])

    # Lower layers gather; upper layers copy into the subspace that R turns to.
    copy = COPY_SCALE * gather @ turn[None]
    outputs = jnp.where(is_upper, copy, gather)

    # Norms and feed-forward parts stay as they are; the head applies R before the embedding.
    projections = {
        "q_proj": {"kernel": queries},
        "k_proj": {"kernel": keys},
        "v_proj": {"kernel": value},
        "o_proj": {"kernel": outputs},
    }
    model = params["model"] | {
        "embed_tokens": {"embedding": embedding},
        "layers": layers | {"self_attn": projections},
    }
    head = turn.T @ embedding.T
    return {"model": model, "lm_head": {"kernel": head}}


def _check_config(config: DecoderConfig) -> None:
    is_square = config.num_heads * config.head_size == config.hidden_size
    is_multi_head = config.num_kv_heads == config.num_heads
    if config.family == "llama" and is_square and is_multi_head and not config.tie_embeddings:
        return
    raise ValueError(
        "mimetic_init: expected family llama, num_kv_heads = num_heads, num_heads · head_size = hidden_size "
        f"and an untied head, got {config}. Change the model, or start it from init='normal'."
    )
