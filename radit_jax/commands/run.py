"""`radit run wiki_small`: train's command, which takes the experiment without an option."""

import argparse

from radit_jax import train


def parser() -> argparse.ArgumentParser:
    """The options of train, and the experiment by its name alone."""
    p = argparse.ArgumentParser(
        description="Train and evaluate an experiment: all stages, or what --stage depends on.",
        parents=[train.parser()],
        add_help=False,
    )
    # `radit run NAME` is what people type; the option stays for scripts.
    add_experiment(p)
    return p


def add_experiment(p: argparse.ArgumentParser) -> None:
    """Let the experiment stand first, as in `radit status wiki_small`; --experiment means the same."""
    p.add_argument(
        "experiment",
        nargs="?",
        default=argparse.SUPPRESS,  # --experiment has the default
        metavar="EXPERIMENT",
        help="as for --experiment",
    )
