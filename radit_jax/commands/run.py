"""`radit run wiki_small`: train's command, which takes the experiment without an option."""

import argparse

from radit_jax import train
from radit_jax.command_line import add_experiment_name


def parser() -> argparse.ArgumentParser:
    """The options of train, and the experiment by its name alone."""
    p = argparse.ArgumentParser(
        description="Train and evaluate an experiment: all stages, or what --stage depends on.",
        parents=[train.parser()],
        add_help=False,
    )
    # `radit run NAME` is what people type; the option stays for scripts.
    add_experiment_name(p)
    return p
