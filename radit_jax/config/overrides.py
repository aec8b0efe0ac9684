"""An experiment from its Python file, and settings from the command line (`--set section.field=value`)."""

import dataclasses
import difflib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from radit_jax.config.experiment_files import experiment_file
from radit_jax.config.renamed_settings import RENAMED, notice
from radit_jax.config.settings import Experiment


def load_experiment(path: str) -> Experiment:
    """The experiment that a Python file defines by its function `experiment()`.

    `path` is a file, or the name of one of the package's own experiments, as `tiny`.
    """
    path = experiment_file(path)
    module_name = f"radit_experiment_{os.path.splitext(os.path.basename(path))[0]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--experiment: expected a file that ends in .py, got {path!r}. Name one.")
    module = importlib.util.module_from_spec(spec)
    # A variant imports the experiment that it varies from its own folder.
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    try:
        spec.loader.exec_module(module)
        experiment = module.experiment() if hasattr(module, "experiment") else None
    except SyntaxError as error:
        raise ValueError(f"{error.filename or path}:{error.lineno}: {error.msg}. Mend this line.") from error
    except (Exception, SystemExit) as error:
        raise ValueError(_where_it_failed(path, error)) from error
    finally:
        sys.path.pop(0)
    if not hasattr(module, "experiment"):
        raise ValueError(
            f"{path}: expected a function experiment(), got none. Add one that returns an Experiment."
        )
    if not isinstance(experiment, Experiment):
        raise ValueError(
            f"{path}: expected an Experiment from experiment(), got {type(experiment).__name__}. Return one."
        )
    return experiment


def _where_it_failed(path: str, error: BaseException) -> str:
    """One line on what the experiment's own code raised: the last of its lines on the way, and the error."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    line_number = lines[-1] if lines else 1
    reason = str(error).rstrip(".")
    return f"{path}:{line_number}: {type(error).__name__}: {reason}. Mend the experiment's file."


def override_settings(experiment: Experiment, assignments: Sequence[str]) -> Experiment:
    """`experiment` with each `section.field=value` of the command line put in its place.

    >>> tiny = load_experiment("experiments/tiny.py")
    >>> override_settings(tiny, ["seed=3", "r_ft.tau=0.02"]).r_ft.tau
    0.02
    """
    for old, assignment in _assigned_by_old_name(assignments).items():
        print(f"warning: --set {assignment}: {notice(old)}.", file=sys.stderr)
    assigned = experiment
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(
                f"--set {assignment}: expected section.field=value, got no value. Write one after an =."
            )
        assigned = _replace_at(assigned, RENAMED.get(path, path).split("."), text, assignment)
    return _without_replaced_models(experiment, assigned, assignments)


def _without_replaced_models(
    experiment: Experiment, assigned: Experiment, assignments: Sequence[str]
) -> Experiment:
    """`assigned` without the networks that were to be trained from scratch where it names a checkpoint.

    They would otherwise be what the checkpoint has to be, as they are where the experiment names one itself.
    """
    base = assigned.base
    paths = [assignment.partition("=")[0] for assignment in assignments]
    for role in ("lm", "retriever"):
        before, after = getattr(experiment.base, role), getattr(base, role)
        states_model = any(path.startswith(f"base.{role}.model.") for path in paths)
        if before.checkpoint or not after.checkpoint or after.model is None or states_model:
            continue
        # How the model made its vectors is none of the checkpoint's concern either.
        unset = {"model": None}
        for name in ("pooling", "normalize") if role == "retriever" else ():
            if f"base.{role}.{name}" not in paths:
                unset[name] = None
        base = replace(base, **{role: replace(after, **unset)})
        print(
            f"note: base.{role}.checkpoint={after.checkpoint} replaces the model that the experiment "
            "trains from scratch",
            file=sys.stderr,
        )
    return replace(assigned, base=base)


def _assigned_by_old_name(assignments: Sequence[str]) -> dict[str, str]:
    """The old names among the assigned settings, each with its assignment.

    Raises ValueError where a setting is assigned by both of its names.
    """
    assignment_of = {assignment.partition("=")[0]: assignment for assignment in assignments}
    by_old_name = {old: assignment_of[old] for old in RENAMED if old in assignment_of}
    for old, assignment in by_old_name.items():
        if RENAMED[old] in assignment_of:
            raise ValueError(
                f"--set {assignment}: expected one name of the setting, got {RENAMED[old]} too. "
                "Leave the old name out."
            )
    return by_old_name


def _replace_at(settings: Any, path: Sequence[str], text: str, assignment: str) -> Any:
    """`settings` with the field at `path` set to what `text` says; `assignment` is named in errors."""
    name, *rest = path
    names = [field.name for field in dataclasses.fields(settings)]
    # The run's folder belongs to the experiment's name, so only the experiment's file sets it.
    if isinstance(settings, Experiment):
        names.remove("name")
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"It has {', '.join(names)}."
        raise ValueError(
            f"--set {assignment}: expected a setting of {type(settings).__name__}, got {name!r}. {hint}"
        )
    # The rest of the path leads into a section.
    value = getattr(settings, name)
    if rest:
        if not dataclasses.is_dataclass(value):
            raise ValueError(
                f"--set {assignment}: expected a section of settings, got {name}, which is {value!r}. "
                "Set it whole."
            )
        return replace(settings, **{name: _replace_at(value, rest, text, assignment)})
    kind = get_type_hints(type(settings))[name]
    return replace(settings, **{name: _parse(text, kind, assignment)})


def _parse(text: str, kind: Any, assignment: str) -> Any:
    """`text` as a value of the annotated type `kind`."""
    if get_origin(kind) in (Union, UnionType):
        kinds = [member for member in get_args(kind) if member is not type(None)]
        if text.lower() == "none" and not any(map(dataclasses.is_dataclass, kinds)):
            return None
        return _parse(text, kinds[0], assignment)
    if get_origin(kind) is Literal:
        if text in get_args(kind):
            return text
        expected = "one of " + ", ".join(get_args(kind))
    elif kind is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        expected = "true or false"
    elif kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            expected = "a whole number" if kind is int else "a number"
    elif kind is str:
        return text
    elif get_origin(kind) is tuple and get_args(kind)[0] is str:
        return tuple(name.strip() for name in text.split(",") if name.strip())
    else:
        raise ValueError(
            f"--set {assignment}: expected a single setting, got a section of them. "
            "Write --set section.field=value."
        )
    raise ValueError(f"--set {assignment}: expected {expected}, got {text!r}.")


def as_text(value: Any) -> str:
    """A value as `--set` takes it, after the =.

    >>> [as_text(value) for value in (True, None, 1e-5, ("nq", "fever"))]
    ['true', 'none', '1e-05', 'nq,fever']
    """
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return str(value)
