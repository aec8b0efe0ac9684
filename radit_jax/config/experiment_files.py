"""Where experiments are: a Python file by its path, or one of the package's own by its name."""

import difflib
import os
import pathlib

PACKAGE = pathlib.Path(__file__).parents[1]
# A wheel has the experiments inside the package, a checkout next to it.
IN_WHEEL = PACKAGE / "experiments"
FOLDER = IN_WHEEL if IN_WHEEL.is_dir() else PACKAGE.parent / "experiments"


def experiment_names() -> list[str]:
    """The names of the package's own experiments, sorted."""
    return sorted(file.stem for file in FOLDER.glob("*.py"))


def experiment_file(name: str) -> str:
    """The file that `name` means: that file itself, or the package's own experiment of that name.

    Raises ValueError where there is neither.
    """
    if os.path.isfile(name):
        return name
    # A path is never taken for a name, so that a typing error does not start another run.
    if name in experiment_names():
        return str(FOLDER / f"{name}.py")
    stem = os.path.splitext(os.path.basename(name))[0]
    # A path of the checkout is often meant, as experiments/tiny.py.
    close = difflib.get_close_matches(stem, experiment_names(), n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"There are {', '.join(experiment_names())}."
    raise ValueError(f"--experiment: expected a file or the name of an experiment, got {name!r}. {hint}")
