"""Two runs in a workdir, a workdir that goes away under a run, and filesystems that cannot lock."""

import errno
import fcntl
import os
import re
import time

import pytest

from radit_jax.runtime.storage import lease as leases
from radit_jax.runtime.storage import locks
from radit_jax.runtime.storage.workdir import Workdir


@pytest.fixture
def workdir(tmp_path):
    return Workdir(tmp_path / "run")


def test_a_second_run_is_told_who_has_the_workdir(workdir):
    with workdir.lock():
        message = rf"run: expected a workdir .*, got one in use by process {os.getpid()} on .*. Wait for it"
        with pytest.raises(ValueError, match=message), workdir.lock():
            pass
    with workdir.lock():
        pass


def test_a_workdir_that_was_removed_gets_nothing_more(workdir):
    folder = workdir.folder("embed", "0123456789ab")
    with workdir.lock():
        folder.write("one", b"1")
        workdir.path.rmtree()
        for act in (
            lambda: folder.write("two", b"2"),
            lambda: folder.commit("one"),
            folder.finish,
            folder.clear,
        ):
            with pytest.raises(
                ValueError, match=r"run: expected the lock that this run took, got another run's, or"
            ):
                act()
        assert not workdir.path.exists()


def test_a_run_whose_workdir_was_made_again_by_another_writes_nothing(workdir):
    folder, other = workdir.folder("embed", "0123456789ab"), Workdir(workdir.path)
    with workdir.lock():
        workdir.path.rmtree()
        workdir.path.mkdir()
        (workdir.path / "lock").touch()
        with pytest.raises(ValueError, match="Nothing more is written"):
            folder.write("one", b"1")
    folder.write("one", b"1")  # whoever holds no lock is not watched
    assert other.folder("embed", "0123456789ab").has("one")


def test_a_folder_beside_the_workdir_is_no_part_of_it(workdir, tmp_path):
    with workdir.lock():
        workdir.path.rmtree()
        locks.check_held(tmp_path / "run2" / "x")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_the_filesystem_has_no_locks_a_lease_keeps_others_out(workdir, monkeypatch, capsys, number):
    def refused(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(leases, "PATIENCE_SECONDS", 0.5)
    with workdir.lock():
        assert "run: this filesystem has no locks; a lease is used instead" in capsys.readouterr().err
        with pytest.raises(ValueError, match="run: expected .*, got one in use by process"), workdir.lock():
            pass
        workdir.folder("embed", "0123456789ab").write("one", b"1")
    with workdir.lock():
        pass


def test_the_holder_is_known_without_taking_the_lock(workdir):
    assert locks.holder(workdir.path) is None
    with workdir.lock():
        assert locks.holder(workdir.path).startswith(f"process {os.getpid()} on ")
    assert locks.holder(workdir.path) is None
    # What a killed process wrote stays in the file, and no lock.
    (workdir.path / "lock").write_text("process 7 on vm, started 2026-11-30 12:00:00")
    assert locks.holder(workdir.path) is None


def test_a_lease_says_how_long_ago_its_holder_was_heard_of(workdir):
    workdir.path.mkdir()
    with leases.lease(workdir.path, "lease"):
        assert re.search(r", last heard of \d s ago$", locks.holder(workdir.path))
        (signature,) = (workdir.path / "lease").iterdir()
        for age, words in ((40, f"process {os.getpid()} on .*, last heard of 4[0-9] s ago"), (90, None)):
            then = time.time() - age
            os.utime(signature, (then, then))
            holder = locks.holder(workdir.path)
            assert re.fullmatch(words, holder) if words else holder is None
    assert locks.holder(workdir.path) is None


def test_another_fault_of_the_system_is_not_taken_for_that(workdir, monkeypatch):
    def refused(file, how):
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(PermissionError), workdir.lock():
        pass
