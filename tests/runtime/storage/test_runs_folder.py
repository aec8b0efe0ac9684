"""The workdir that is meant where none is named."""

import os
import pathlib

import pytest

from radit_jax import cli
from radit_jax.runtime.storage.runs_folder import default_workdir


@pytest.fixture(autouse=True)
def here(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder to stand in, without runs."""
    monkeypatch.chdir(tmp_path)


def make(name: str, time: int) -> None:
    """A workdir whose last run was at `time`."""
    folder = pathlib.Path("runs", name)
    folder.mkdir(parents=True)
    (folder / "workdir.json").write_text('{"experiment": "tiny"}')
    os.utime(folder / "workdir.json", (time, time))


def test_the_only_run_is_meant() -> None:
    pathlib.Path("runs", "notes").mkdir(parents=True)
    make("huts", 1)
    assert default_workdir() == "runs/huts"


def test_of_several_none_is_meant_and_the_newest_is_named_first() -> None:
    make("a", 1)
    make("b", 3)
    make("c", 2)
    message = "expected one run in runs/, got 3: runs/b, runs/c, runs/a. Name one; the first ran last."
    with pytest.raises(ValueError, match=message):
        default_workdir()


@pytest.mark.parametrize("words", [["ask", "Who?"], ["serve"], ["push", "org/x"], ["report"]])
def test_every_command_on_a_finished_run_takes_that_one(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 1
    assert "--workdir: expected a run in runs/, got none." in capsys.readouterr().err
    make("huts", 1)
    assert cli.main(words) == 1
    assert "runs/huts" in capsys.readouterr().err
