"""`radit clean wiki_small`: delete the outputs that the settings no longer name, after showing and asking."""

import argparse

from radit_jax import train
from radit_jax.command_line import add_experiment_name
from radit_jax.commands.last_run import find_workdir, settings_words
from radit_jax.commands.sizes import size_text
from radit_jax.pipeline.runner import Run
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage.entries import bytes_freed
from radit_jax.runtime.storage.workdir import Workdir


def parser() -> argparse.ArgumentParser:
    """The command line of `radit clean`."""
    p = argparse.ArgumentParser(
        description="Delete the outputs that the current settings do not name. Shows them, and asks first.",
        parents=[train.experiment_options(default=None)],
    )
    # The experiment says which outputs are current.
    add_experiment_name(p)
    p.add_argument("--yes", action="store_true", help="do not ask")
    p.set_defaults(run=clean)
    return p


def clean(options: argparse.Namespace) -> None:
    """Show what no setting names, and delete it where the answer is yes. Nobody else may use the workdir."""
    # A workdir that is not there is not made to be cleaned.
    if options.workdir and not Workdir(options.workdir).path.exists():
        print(f"nothing to delete: there is no {options.workdir}")
        return
    experiment, workdir = find_workdir(options)
    if not workdir.path.exists():
        print(f"nothing to delete: there is no {workdir.path}")
        return
    workdir.check_free(experiment.name)
    with workdir.lock():
        run = Run(experiment, workdir)
        workdir.claim(experiment.name)
        stale = workdir.superseded(run.folders.values())
        print(f"settings to keep: {settings_words(options)}")
        # 1) All of it with what it frees, before the question.
        sizes = bytes_freed(folder.home for folder in stale)
        for folder, size in zip(stale, sizes, strict=True):
            print(f"{size_text(size):>9}  {folder.home}")
        if not stale:
            print(f"nothing to delete in {workdir.path}: the current settings name all outputs")
            return
        # 2) The question.
        total = size_text(sum(sizes))
        if not options.yes and not agrees(f"delete {total} in {len(stale)} folders? [y/N] "):
            print("nothing was deleted")
            return
        # 3) Each is gone, or whole, if this is stopped.
        for folder in stale:
            folder.clear()
        print(f"freed {total}")


def agrees(question: str) -> bool:
    """Whether the person answers yes; ValueError where nobody can answer."""
    # Ctrl-C at the question ends the command; nothing has to be saved.
    try:
        with processes.stopping_at_once("the question"):
            answer = input(question)
    except EOFError:
        raise ValueError(
            "clean: expected an answer, got the end of the input. Use a terminal, or --yes."
        ) from None
    return answer.strip().lower() in ("y", "yes")
