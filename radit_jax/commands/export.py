"""`radit export wiki_small`: the models and the index in one folder, and what that still lacks.

Without an experiment it is the one of the workdir's last run.
"""

import argparse

from radit_jax import train
from radit_jax.command_line import add_experiment_name
from radit_jax.commands.last_run import name_experiment, settings_words


def parser() -> argparse.ArgumentParser:
    """The options of train but those that say what else to do."""
    # A large export is written by several hosts, as every stage.
    p = argparse.ArgumentParser(
        description="Write the models and the index in one folder, after the stages that it still lacks.",
        parents=[train.experiment_options(default=None), train.host_options()],
    )
    # This stage and what it reads, never a dry run: `radit status` tells.
    add_experiment_name(p)
    p.set_defaults(run=run_export, stage="export", dry_run=False, prune=False)
    return p


def run_export(options: argparse.Namespace) -> None:
    """Export, of the workdir's last run where no experiment is named."""
    name_experiment(options)
    print(f"settings: {settings_words(options)}")
    train.run_stages(options)
