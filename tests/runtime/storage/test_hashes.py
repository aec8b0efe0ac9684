"""Hashes of files: read once while nothing changes, and several at a time."""

import hashlib
import os
import threading
import time

import pytest

from radit_jax.runtime.storage import hashes


@pytest.fixture
def reads(monkeypatch):
    """The paths that were read from their disk."""
    paths = []
    real = hashes._read_and_hash
    monkeypatch.setattr(hashes, "_read_and_hash", lambda path: paths.append(str(path)) or real(path))
    return paths


@pytest.fixture
def settled(monkeypatch):
    """Every file counts as settled, as after two seconds."""
    monkeypatch.setattr(hashes, "_SETTLED_NS", 0)


def test_a_settled_file_is_read_once(tmp_path, reads, settled):
    file = tmp_path / "file"
    file.write_bytes(b"one")
    assert hashes.hash_file(file) == hashes.hash_file(file) == hashlib.sha256(b"one").hexdigest()
    assert reads == [str(file)]


def test_a_change_is_seen_though_size_and_time_are_set_back(tmp_path, reads, settled):
    file = tmp_path / "file"
    file.write_bytes(b"one")
    before = file.stat()
    hashes.hash_file(file)
    time.sleep(0.05)  # a filesystem's clock ticks every 4 to 10 ms
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert hashes.hash_file(file) == hashlib.sha256(b"two").hexdigest()
    assert len(reads) == 2


def test_another_file_of_the_same_name_is_read(tmp_path, reads, settled):
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_bytes(b"one")
    other.write_bytes(b"two")
    hashes.hash_file(file)
    other.rename(file)
    assert hashes.hash_file(file) == hashlib.sha256(b"two").hexdigest()


def test_a_file_of_this_moment_is_read_each_time(tmp_path, reads):
    """Within one tick of the filesystem's clock its bytes may change without its times."""
    file = tmp_path / "file"
    file.write_bytes(b"one")
    hashes.hash_file(file)
    file.write_bytes(b"two")
    assert hashes.hash_file(file) == hashlib.sha256(b"two").hexdigest()
    assert len(reads) == 2


def test_files_are_hashed_side_by_side_and_in_order(tmp_path):
    files = [tmp_path / str(number) for number in range(20)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]))
    expected = [hashlib.sha256(bytes([number])).hexdigest() for number in range(20)]
    assert hashes.hash_files(files) == expected

    # All threads are at work at once: each waits for the others.
    together = threading.Barrier(hashes.THREADS)
    assert (
        hashes.in_parallel(lambda _: together.wait(20) >= 0, range(hashes.THREADS)) == [True] * hashes.THREADS
    )


def test_an_error_ends_the_work(tmp_path):
    with pytest.raises(FileNotFoundError):
        hashes.hash_files([tmp_path / str(number) for number in range(100)])


def test_a_listing_is_hashed_as_sha256sum_prints_it():
    assert hashes.hash_listing(["a", "b"], ["x", "y z"]) == hashlib.sha256(b"a  x\nb  y z\n").hexdigest()
