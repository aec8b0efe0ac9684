"""`radit export wiki_small`: the models and the index in one folder, and what that still lacks."""

import argparse

from radit_jax import train
from radit_jax.command_line import add_experiment_name


def parser() -> argparse.ArgumentParser:
    """The options of train but those that say what else to do."""
    # A large export is written by several hosts, as every stage.
    p = argparse.ArgumentParser(
        description="Write the models and the index in one folder, after the stages that it still lacks.",
        parents=[train.experiment_options(), train.host_options()],
    )
    # This stage and what it reads, never a dry run: `radit status` tells.
    add_experiment_name(p)
    p.set_defaults(run=train.run_stages, stage="export", dry_run=False, prune=False)
    return p
