"""The seconds of a stage over all its sessions."""

import json
import os
import pathlib
import time

import pytest

from radit_jax.pipeline.sessions import FILE, session
from radit_jax.runtime.storage.stage_folder import StageFolder


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> StageFolder:
    return StageFolder(tmp_path / "lm_ft" / "0123456789ab")


def lasting(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clock go on by so many seconds."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + seconds)


def test_the_time_of_a_stage_is_that_of_all_its_sessions(
    folder: StageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1) Stopped after 100 s.
    with pytest.raises(KeyboardInterrupt), session(folder):
        lasting(100.0, monkeypatch)
        raise KeyboardInterrupt
    assert not folder.half_written  # a time alone is no output
    # 2) Killed, 20 s after its start: the last file that it wrote is of then.
    with pytest.raises(ZeroDivisionError), session(folder) as seconds:
        assert seconds() == pytest.approx(100.0, abs=1.0)
        killed = json.loads((folder.home / FILE).read_text())
        raise ZeroDivisionError
    (folder.home / FILE).write_text(json.dumps(killed))
    (folder.home / "shard").touch()
    end = killed["started"] + 20.0
    os.utime(folder.home / "shard", (end, end))
    # 3) Finished after 3 s more. The manifest has the time, and the file is gone.
    with session(folder) as seconds:
        lasting(3.0, monkeypatch)
        assert seconds() == pytest.approx(123.0, abs=1.0)
    assert not (folder.home / FILE).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"seconds": "many"}', '{"seconds": null}'])
def test_what_is_no_time_counts_nothing(folder: StageFolder, text: str) -> None:
    folder.home.mkdir(parents=True)
    (folder.home / FILE).write_text(text)
    with session(folder) as seconds:
        assert seconds() < 1.0
