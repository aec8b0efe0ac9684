"""SHA-256 of files: several are read at a time, and a process reads a file once while it does not change."""

import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from etils import epath

from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage import bucket

BLOCK_BYTES = 1 << 24  # read at once: a file that is hashed need not fit in memory
THREADS = 8  # one hashes about 1.4 GB a second, less than a disk of a server gives

# A filesystem may give two writes in a row the same time. What was written longer ago than this, in
# nanoseconds, cannot change any more without another time.
_SETTLED_NS = 2_000_000_000

State = tuple[int, ...]  # device, inode, size and both times of a file
T = TypeVar("T")
R = TypeVar("R")

_known: dict[str, tuple[State, str]] = {}  # by path: a file's state, and its hash


def hash_file(path: epath.PathLike) -> str:
    """SHA-256 of a file's or an object's bytes; a file is read again only if it has changed."""
    name = os.fspath(path)
    state = None if bucket.is_bucket(path) else _settled_state(name)
    if state is None:
        return _read_and_hash(path)
    known = _known.get(name)
    if known is None or known[0] != state:
        _known[name] = known = (state, _read_and_hash(path))
    return known[1]


def hash_files(paths: Collection[epath.PathLike]) -> list[str]:
    """`hash_file` of each, several at a time."""
    return in_parallel(hash_file, paths)


def in_parallel(function: Callable[[T], R], items: Collection[T]) -> list[R]:
    """`function` of each item, in order, by several threads: for what waits for a disk or hashes."""
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(THREADS, len(items))) as threads:
        return list(threads.map(function, items))


def hash_listing(hashes: Iterable[str], names: Iterable[str]) -> str:
    """One hash for many files: that of their `listing`."""
    return hashlib.sha256(listing(hashes, names)).hexdigest()


def listing(hashes: Iterable[str], names: Iterable[str]) -> bytes:
    """The lines that `sha256sum` would print of files with these hashes."""
    lines = []
    for digest, name in zip(hashes, names, strict=True):
        lines.append(f"{digest}  {name}\n")
    # A file's name need not be UTF-8.
    return "".join(lines).encode(errors="surrogateescape")


def _settled_state(name: str) -> State | None:
    """What changes whenever a file's bytes do; None for a file so new that its next change may not show."""
    status = os.stat(name)
    # A program can set mtime back, but not ctime, which the system keeps.
    newest = max(status.st_mtime_ns, status.st_ctime_ns)
    if time.time_ns() - newest < _SETTLED_NS:
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _read_and_hash(path: epath.PathLike) -> str:
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            processes.stop_if_asked(f"the hash of {path}")
            digest.update(block)
    return digest.hexdigest()
