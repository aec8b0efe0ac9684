"""`radit clean` shows sizes, asks once, and deletes what no setting names."""

import io
import pathlib
import sys

import pytest

from radit_jax import cli
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.runtime.storage.workdir import Workdir


@pytest.fixture
def stale(tmp_path: pathlib.Path) -> list[StageFolder]:
    """Two outputs that tiny's settings do not name."""
    workdir = Workdir(tmp_path)
    workdir.claim("tiny")
    folders = [workdir.folder("embed", "a" * 12), workdir.folder("lm_ft", "b" * 12)]
    for folder in folders:
        folder.write("shard", bytes(2_500_000))
    return folders


@pytest.mark.parametrize(("answer", "left"), [("y", False), ("", True), ("no", True)])
def test_clean_shows_what_it_would_delete_and_asks(
    tmp_path: pathlib.Path,
    stale: list[StageFolder],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str,
    left: bool,
) -> None:
    questions = []
    monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or answer)
    assert cli.main(["clean", f"--workdir={tmp_path}"]) == 0
    shown = capsys.readouterr().out
    assert f"   2.5 MB  {tmp_path}/embed/{'a' * 12}\n" in shown
    assert questions == ["delete 5.0 MB in 2 folders? [y/N] "]
    assert shown.endswith("nothing was deleted\n" if left else "freed 5.0 MB\n")
    assert [folder.path.exists() for folder in stale] == [left, left]


def test_clean_with_yes_asks_nobody(
    tmp_path: pathlib.Path, stale: list[StageFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["clean", f"--workdir={tmp_path}", "--yes"]) == 0
    assert not any(folder.path.exists() for folder in stale)
    assert cli.main(["clean", f"--workdir={tmp_path}", "--yes"]) == 0
    assert "nothing to delete" in capsys.readouterr().out


def test_clean_without_anybody_to_answer_deletes_nothing(
    tmp_path: pathlib.Path,
    stale: list[StageFolder],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert cli.main(["clean", f"--workdir={tmp_path}"]) == 1
    assert "clean: expected an answer, got the end of the input" in capsys.readouterr().err
    assert all(folder.path.exists() for folder in stale)


def test_a_workdir_that_is_not_there_is_not_made(tmp_path: pathlib.Path) -> None:
    assert cli.main(["clean", f"--workdir={tmp_path / 'none'}"]) == 0
    assert not (tmp_path / "none").exists()
