"""RA-DIT, retrieval-augmented dual instruction tuning (arXiv 2310.01352), in JAX.

module, params, tokenizer = radit_jax.load("runs/tiny/export/lm")
ids = radit_jax.generate(module, params, ids, max_new_tokens=16)
"""

from typing import Any

__version__ = "0.1.0"


def load(path: str) -> tuple[Any, Any, Any]:
    """The model in a folder that export wrote: (module, params, tokenizer), the parameters bit for bit."""
    from radit_jax.runtime.models import load_model

    return load_model(path)


def generate(module: Any, params: Any, ids: Any, max_new_tokens: int, stop_ids: tuple[int, ...] = ()) -> Any:
    """Greedy continuations of prompts without padding, ids [B, T] → [B, max_new_tokens]."""
    import jax.numpy as jnp

    from radit_jax.method.decode import greedy

    prompts = jnp.asarray(ids, jnp.int32)
    lengths = jnp.full(prompts.shape[:1], prompts.shape[1], jnp.int32)
    return greedy(module, params, prompts, lengths, max_new_tokens=max_new_tokens, stop_ids=stop_ids)
