"""lm-evaluation-harness on a model of ours: its whole command line, with `radit` among its models.

    python -m radit_jax.lm_eval --model radit --model_args path=runs/tiny/export,retrieval=true --tasks piqa

`path` is an export, or any LLaMA that `radit_jax.load` opens; only an export can retrieve. The query is the
text after the last blank line of the harness's prompt, which is the question as the harness knows it. The
texts before it are examples, and the Background comes between them. Where the window is short, examples are
left out first, and then the Background is cut. Answers are mixed over the chunks by Eq. 2. A model whose form
is chat reads all of it as what the user says. In Python, `register()` adds the name.
"""

import importlib.util
import sys

from radit_jax.errors import exit_command, run_command
from radit_jax.runtime.distributed.devices import prepare_devices

INSTALL = "Install it with: pip install 'radit_jax[lm_eval]'"


def register() -> type:
    """The harness's model `radit`, made known to it under this name; ValueError where there is no harness."""
    try:
        # The import fills the registry, which is left alone once it has an entry.
        import lm_eval.models  # noqa: F401  # pyright: ignore[reportMissingImports]
        from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
        from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            f"lm_eval: expected lm-evaluation-harness, got no module lm_eval. {INSTALL}"
        ) from None
    from radit_jax.evaluation.harness_model import Radit  # jax, which help does without

    # The harness's own class is the last base, so that `Radit` has the methods that it leaves abstract.
    model = type("RaditLM", (Radit, LM), {})
    return register_model("radit")(model)


def main() -> int:
    """The harness's command line; returns the exit status."""
    is_help = not {"-h", "--help"}.isdisjoint(sys.argv[1:])

    def body() -> None:
        # What is ours first. Without the harness there is no more to say.
        if is_help:
            print(__doc__)
            if importlib.util.find_spec("lm_eval") is None:
                print(INSTALL)
                return
        else:
            register()
        prepare_devices()  # before jax starts
        from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

        cli_evaluate()

    return run_command(body)


if __name__ == "__main__":
    exit_command(main)
