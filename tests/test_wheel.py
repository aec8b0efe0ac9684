"""The wheel: what is in it, and that it works in a folder without the checkout."""

import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import zipfile

import pytest

from radit_jax import cli

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The wheel, as pip builds it, but without fetching the build backend."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target=wheel", f"--directory={folder}"]
    built = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (file,) = folder.glob("*.whl")
    return file


def test_a_wheel_has_the_package_the_experiments_and_the_licence_and_nothing_else(
    wheel: pathlib.Path,
) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {str(path.relative_to(ROOT)) for path in ROOT.glob("radit_jax/**/*.py")}
    experiments = {f"radit_jax/experiments/{path.name}" for path in ROOT.glob("experiments/*.py")}
    assert package | experiments | {"radit_jax/py.typed"} <= names
    rest = {name.partition("/")[2] for name in names if not name.startswith("radit_jax/")}
    assert rest == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert not [name for name in names if "__pycache__" in name]


def test_a_wheel_says_which_command_it_brings_under_which_licence(wheel: pathlib.Path) -> None:
    archive = zipfile.ZipFile(wheel)
    files = {name.rpartition("/")[2]: name for name in archive.namelist() if ".dist-info/" in name}
    assert "radit = radit_jax.cli:console" in archive.read(files["entry_points.txt"]).decode()
    metadata = archive.read(files["METADATA"]).decode()
    assert "License-Expression: Apache-2.0\nLicense-File: LICENSE\n" in metadata
    assert "Requires-Python: >=3.11\n" in metadata


def test_experiments_import_each_other_from_a_wheel(wheel: pathlib.Path, tmp_path: pathlib.Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    # Its base is radit_65b, whose base is radit_7b.
    command = [sys.executable, "-m", "radit_jax", "status", "radit_65b_64shot", "--stage=base", "--json"]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path / "empty",
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
    )
    assert ended.returncode == 0, ended.stderr
    status = json.loads(ended.stdout)
    assert status["experiment"] == "radit_65b_64shot"
    assert {stage["why"] for stage in status["stages"]} == {"was never run"}
    assert not any((tmp_path / "empty").iterdir())


@pytest.mark.slow
def test_an_installed_wheel_runs_the_demo_from_an_empty_folder(
    wheel: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """A fresh environment, from the network: minutes of downloads, then minutes of training."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    scripts = tmp_path / "venv" / "bin"
    subprocess.run([scripts / "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel], check=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: str) -> str:
        ended = subprocess.run(words, capture_output=True, text=True, cwd=empty, env=environment)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    radit = str(scripts / "radit")
    for name in cli.NAMES:
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        run(radit, name, "--help")
        assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1, name
    run(radit, "demo", "--log-file=demo.log")
    results = json.loads((empty / "runs" / "tiny" / "results.json").read_text())
    assert results["gains"]["radit-base"]["low"] > 0
    assert re.search(
        r"^\S+ \S+ ── \d+/\d+ r_ft: was never run$", (empty / "demo.log").read_text(), re.MULTILINE
    )
    again = run(str(scripts / "python"), "-m", "radit_jax.train", "--stage=all")
    assert "everything is current" in again
