"""RA-DIT, retrieval-augmented dual instruction tuning (arXiv 2310.01352), in JAX.

hits = radit_jax.Retriever.load("runs/tiny").search(["Who?"], k=5)
answers = radit_jax.answer("runs/tiny/export/lm", ["Who?"], hits)
docs/api.md has the rest: `load`, `score_pairs`, `train_query_encoder`, `tune_lm`, `losses`, `open`.
"""

import importlib
import os
import signal
import sys

# Under `radit` and `python -m radit_jax.train`, but not in a program that imports the package, Ctrl-C ends
# the command without a traceback while modules load. `exit_command` gives Ctrl-C its KeyboardInterrupt back.
_program = "".join(sys.argv[:1])
_is_command = _program == "-m" or os.path.basename(_program) == "radit"
if _is_command and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from typing import TYPE_CHECKING, Any  # noqa: E402

from radit_jax import renamed  # noqa: E402

renamed.install()

__version__ = "0.1.0"

# Names whose modules are imported when they are used, so that `import radit_jax` is quick.
_LAZY = {
    "Retriever": ("api.retriever", "Retriever"),
    "Training": ("api.training", "Training"),
    "answer": ("api.language_model", "answer_from_chunks"),
    "losses": ("method.losses", ""),
    "open": ("api.finished_run", "open_run"),
    "score_pairs": ("api.language_model", "score_pairs"),
    "train_query_encoder": ("api.training", "train_query_encoder"),
    "tune_lm": ("api.language_model", "tune_lm"),
}

# Type checkers and editors read them here.
if TYPE_CHECKING:
    from radit_jax.api.finished_run import open_run as open  # noqa: F401
    from radit_jax.api.language_model import answer_from_chunks as answer  # noqa: F401
    from radit_jax.api.language_model import score_pairs as score_pairs
    from radit_jax.api.language_model import tune_lm as tune_lm
    from radit_jax.api.retriever import Retriever as Retriever
    from radit_jax.api.training import Training as Training
    from radit_jax.api.training import train_query_encoder as train_query_encoder
    from radit_jax.method import losses as losses


def __getattr__(name: str) -> Any:
    """The object of a name in `_LAZY`."""
    if name not in _LAZY:
        raise AttributeError(f"module 'radit_jax' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    found: Any = importlib.import_module(f"radit_jax.{module}")
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


# `load` and `generate` import what they need when they are called, so that `import radit_jax` is quick.


def load(
    path: str | os.PathLike[str],
    pooling: str | None = None,
    normalize: bool | None = None,
) -> tuple[Any, Any, Any]:
    """The model at `path`, as (module, params, tokenizer); the parameters are exact copies in float32.

    `path` is a folder that export wrote, or a language model or encoder in Hugging Face's form: a folder, or
    a repository of its hub (`hub:ORG/NAME`). A language model may be a GGUF file. Files that an export's
    manifest lists are checked against it. The tokenizer is None where there is none. Any fault is a
    ValueError that says what to do.

    `pooling` ("cls", "mean", or a decoder's "last") and `normalize` say how an encoder makes vectors. A
    sentence-transformers layout says it too, and contradicting it is an error. Without either, a BERT's are
    those of [CLS] as they are, and a decoder is a language model.
    """
    from radit_jax.runtime.pretrained.model_io import open_model

    return open_model(os.fspath(path), pooling=pooling, normalize=normalize)


def generate(
    module: Any,
    params: Any,
    ids: Any,
    max_new_tokens: int,
    stop_ids: tuple[int, ...] = (),
) -> Any:
    r"""Greedy continuations of B prompts of one length, without padding: ids [B, T] → [B, max_new_tokens].

    `tokenizer.encode_prompt` gives a prompt's ids. Ids after the first of `stop_ids` have no meaning. If that
    first one is in `tokenizer.closing_ids`, such as `.\n`, its text before the newline belongs to the answer.
    """
    import jax.numpy as jnp

    from radit_jax.method.generation import greedy

    prompts = jnp.asarray(ids, jnp.int32)
    batch_size, length = prompts.shape
    lengths = jnp.full((batch_size,), length, jnp.int32)
    return greedy(
        module,
        params,
        prompts,
        lengths,
        max_new_tokens=max_new_tokens,
        stop_ids=stop_ids,
    )
