"""RA-DIT, retrieval-augmented dual instruction tuning (arXiv 2310.01352), in JAX.

module, params, tokenizer = radit_jax.load("runs/tiny/export/lm")
prompt = tokenizer.encode_prompt("Q: Who?\nA:")
ids = radit_jax.generate(module, params, [prompt], max_new_tokens=16, stop_ids=tokenizer.stop_ids)
"""

import signal
import sys

# `python -m radit_jax.train`, not a program that imports the package: while modules load, Ctrl-C ends the
# command without a traceback. `exit_command` gives Ctrl-C its KeyboardInterrupt back.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import os  # noqa: E402
from typing import Any  # noqa: E402

from radit_jax import renamed  # noqa: E402

renamed.install()

__version__ = "0.1.0"


def load(
    path: str | os.PathLike[str], pooling: str | None = None, normalize: bool | None = None
) -> tuple[Any, Any, Any]:
    """The model that `path` names: (module, params, tokenizer), the parameters bit for bit in float32.

    It is a folder that export wrote, or a LLaMA or BERT in Hugging Face's form: a folder, or a repository of
    its hub (`hub:ORG/NAME`). How a BERT's vectors are made (`pooling` "cls" or "mean", `normalize`) its
    sentence-transformers layout says; saying otherwise is refused. Where it has none and you say nothing they
    are [CLS]'s, as they are. What an export's manifest vouches for is checked against it. A folder without a
    tokeniser has None for it. Whatever is wrong is a ValueError that says what to do.
    """
    from radit_jax.runtime.pretrained.model_io import open_model

    return open_model(os.fspath(path), pooling=pooling, normalize=normalize)


def generate(module: Any, params: Any, ids: Any, max_new_tokens: int, stop_ids: tuple[int, ...] = ()) -> Any:
    r"""Greedy continuations of prompts without padding, ids [B, T] → [B, max_new_tokens].

    `tokenizer.encode_prompt` gives a prompt's ids. What follows the first of `stop_ids` means nothing. That
    id may be one of `tokenizer.closing_ids`, such as `.\n`, whose text before the newline is the answer's.
    """
    import jax.numpy as jnp

    from radit_jax.method.generation import greedy

    prompts = jnp.asarray(ids, jnp.int32)
    lengths = jnp.full(prompts.shape[:1], prompts.shape[1], jnp.int32)
    return greedy(module, params, prompts, lengths, max_new_tokens=max_new_tokens, stop_ids=stop_ids)
