"""An experiment by its name or its file, in a checkout and in a wheel."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from radit_jax import config
from radit_jax.config import experiment_files

ROOT = pathlib.Path(__file__).parents[2]


def test_the_names_are_those_of_the_files_in_the_checkout() -> None:
    files = (ROOT / "experiments").glob("*.py")
    assert config.experiment_names() == sorted(file.stem for file in files)
    assert "wiki_small" in config.experiment_names()


def test_a_name_and_its_file_are_the_same_experiment() -> None:
    by_name = config.load_experiment("tiny_refreshed")
    assert by_name == config.load_experiment(str(ROOT / "experiments" / "tiny_refreshed.py"))


def test_a_file_of_that_name_comes_before_the_package(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").write_text("")
    monkeypatch.chdir(tmp_path)
    assert experiment_files.experiment_file("tiny") == "tiny"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("wiki_smal", "Did you mean 'wiki_small'?"),
        ("somewhere/experiments/radit7b.py", "Did you mean 'radit_7b'?"),
        ("zebra", "There are radit_13b, radit_65b,"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest_one(name: str, hint: str) -> None:
    with pytest.raises(ValueError) as caught:
        config.load_experiment(name)
    message = f"--experiment: expected a file or the name of an experiment, got {name!r}. {hint}"
    assert str(caught.value).startswith(message)


def test_experiments_import_each_other_from_where_a_wheel_has_them(tmp_path: pathlib.Path) -> None:
    """The layout of a wheel, seen from a folder without a checkout."""
    site = tmp_path / "site"
    shutil.copytree(ROOT / "radit_jax", site / "radit_jax", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "experiments", site / "radit_jax" / "experiments")
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-m", "radit_jax", "status", "radit_65b_64shot", "--stage=base", "--json"]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path / "empty",
        env=os.environ | {"PYTHONPATH": str(site)},
    )
    assert ended.returncode == 0, ended.stderr
    status = json.loads(ended.stdout)
    assert status["experiment"] == "radit_65b_64shot"
    assert [stage["why"] for stage in status["stages"]] == ["was never run"] * 2
    assert not any((tmp_path / "empty").iterdir())
