"""`radit completion bash`: a script by which a shell completes commands, options and names of experiments."""

import argparse

from radit_jax.config import experiment_names


def parser() -> argparse.ArgumentParser:
    """The command line of `radit completion`."""
    p = argparse.ArgumentParser(
        description="Print a script that completes `radit`. In bash: source <(radit completion bash)"
    )
    p.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="which shell to write for")
    p.set_defaults(run=print_script)
    return p


def print_script(options: argparse.Namespace) -> None:
    """Print the script for the shell."""
    import shtab

    from radit_jax import cli

    # 1) All commands with all their options.
    p = cli.whole_parser()
    complete_values(p)
    # 2) A script that needs no Python at each press of the key.
    print(shtab.complete(p, options.shell))


def complete_values(command: argparse.ArgumentParser) -> None:
    """Let values complete, too: files, folders and the names of experiments. Also in the commands below."""
    import shtab

    kinds = {"FILE": shtab.FILE, "FOLDER": shtab.DIRECTORY}
    # By the word that the help has in the place of a value.
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                complete_values(inner)
        elif action.dest == "experiment":
            action.choices = experiment_names()
        elif action.metavar in kinds:
            action.complete = kinds[action.metavar]  # pyright: ignore[reportAttributeAccessIssue]
