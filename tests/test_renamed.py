"""Every public name of release 0.1 is found by its old path."""

import importlib
import json
import pathlib
import subprocess
import sys
import warnings

import pytest

import radit_jax  # noqa: F401 - installs the finder of old paths

OLD_NAMES = json.loads((pathlib.Path(__file__).parent / "golden" / "old_names.json").read_text())


@pytest.mark.parametrize("path", OLD_NAMES)
def test_an_old_path_has_all_its_names(path: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module = importlib.import_module(path)
    for name in OLD_NAMES[path]:
        assert getattr(module, name) is not None


def test_an_old_path_warns_and_says_where_to_import_from() -> None:
    sys.modules.pop("radit_jax.data.packing", None)
    with pytest.warns(
        FutureWarning, match=r"radit_jax.data.packing has moved to radit_jax.data.batches.packing"
    ):
        packing = importlib.import_module("radit_jax.data.packing")
    assert packing.Sequence is importlib.import_module("radit_jax.data.batches.packing").PrefixTree


def test_a_name_that_never_was_is_an_attribute_error() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        with pytest.raises(ImportError, match="cannot import name 'nothing'"):
            exec("from radit_jax.data.packing import nothing")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("radit_jax.data.never")


def test_an_old_command_runs_by_its_old_path() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "radit_jax.data.build", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--manual_dir" in shown
