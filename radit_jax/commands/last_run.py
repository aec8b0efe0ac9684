"""What the last run of a workdir was: its experiment and `--set`, where a command does not name them."""

import argparse
import contextlib
import io
import os
import pathlib
import shlex
from typing import Any

from radit_jax import config, train
from radit_jax.command_line import add_experiment_name
from radit_jax.commands import run
from radit_jax.commands.output import output_options
from radit_jax.config.experiment_files import FOLDER, experiment_names
from radit_jax.pipeline.run_log import read_runs
from radit_jax.runtime.storage.runs_folder import default_workdir, known_workdirs
from radit_jax.runtime.storage.workdir import Workdir

_PROGRAMS = ("radit", "__main__.py", "cli.py", "train.py")  # `python -m` runs files


def find_workdir(options: argparse.Namespace) -> tuple[config.Experiment, Workdir]:
    """The experiment and the workdir that the options name, with what they leave out from the last run.

    Raises ValueError where the workdir is another experiment's, and where nothing says whose it is.
    """
    name_experiment(options)
    experiment, workdir = train.open_workdir(options)
    workdir.check_claim(experiment.name)
    return experiment, workdir


def name_experiment(options: argparse.Namespace) -> None:
    """Where no experiment is named, fill in that of the workdir's last run, and its `--set`."""
    # In a fresh folder a bare command speaks of tiny, as `radit run` does.
    if options.experiment is None and options.workdir is None:
        options.workdir = default_workdir() if known_workdirs() else None
    if options.experiment is None and options.workdir is None:
        options.experiment = str(train.TINY)
    if options.experiment is None:
        _add_last_run(options)


def settings_words(options: argparse.Namespace) -> str:
    """The experiment and its `--set` as words of a command line."""
    changes = [f"--set={assignment}" for assignment in options.set]
    # The package's own have a name, whatever the path to their folder.
    file = pathlib.Path(options.experiment)
    name = file.stem if file.parent == FOLDER else options.experiment
    return shlex.join([name, *changes])


def _add_last_run(options: argparse.Namespace) -> None:
    """Fill in the experiment of the workdir's last run, and its `--set` before the person's own."""
    train.check_folders(options)
    name = Workdir(options.workdir, options.scratch).claimed_by
    for record in reversed(read_runs(options.workdir)):
        last = _options_of(record)
        if last is None:
            continue
        # An export that named no experiment was of the run before it.
        options.experiment, options.set = last.experiment, [*last.set, *options.set]
        if options.experiment is not None:
            return
    # Runs of older versions left no record, but a name.
    if name not in experiment_names():
        got = "no run's" if name is None else f"one of {name!r}, whose file is not known"
        raise ValueError(
            f"{options.workdir}: expected a workdir that says which experiment it is of, got {got}. "
            "Name the experiment, or its file, before --workdir."
        )
    options.experiment = name


def _options_of(record: dict[str, Any]) -> argparse.Namespace | None:
    """The options of a recorded command; None where it was no command of ours, or its file is gone."""
    words = shlex.split(str(record.get("command", "")))
    if not words or words.pop(0) not in _PROGRAMS:
        return None
    # `radit run tiny` and `train.py --experiment=tiny` have the same options.
    command = words.pop(0) if words and words[0] in ("run", "demo", "export") else "run"
    of_command = _export_options() if command == "export" else run.parser()
    p = argparse.ArgumentParser(parents=[of_command, output_options()], add_help=False)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            options = p.parse_args(words)
    except SystemExit:
        return None
    # A path is relative to where the command was given.
    file = os.path.join(record.get("folder", ""), options.experiment or "")
    if os.path.isfile(file):
        options.experiment = file
    elif options.experiment not in (None, *experiment_names()):
        return None
    return options


def _export_options() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        parents=[train.experiment_options(default=None), train.host_options()], add_help=False
    )
    add_experiment_name(p)
    return p
