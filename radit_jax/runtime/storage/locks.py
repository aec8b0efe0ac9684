"""One run at a time in a workdir, and no write by a run that has lost its lock.

On a disk the system holds the lock and frees it however the process ends. In a bucket, and on a filesystem
without locks, it is a lease (`bucket.lease`). A run that was frozen can be overtaken, and a workdir can be
removed or replaced under a run: so whoever commits something calls `check_held` first.
"""

import contextlib
import errno
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO

from etils import epath

from radit_jax.runtime.storage import bucket

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
_held: dict[str, Callable[[], bool]] = {}  # workdir -> whether this process still holds its lock


@contextlib.contextmanager
def hold(folder: epath.Path) -> Iterator[None]:
    """Keep other runs out of `folder` while the context lasts; ValueError where one is in it."""
    locked = bucket.lease(folder) if bucket.is_bucket(folder) else _locked(folder)
    with locked as still_ours:
        _held[os.fspath(folder)] = still_ours
        try:
            yield
        finally:
            del _held[os.fspath(folder)]


def check_held(path: epath.PathLike) -> None:
    """Refuse to write at `path` where it lies in a folder whose lock this process held and has lost."""
    for folder, still_ours in _held.items():
        if f"{os.fspath(path)}/".startswith(f"{folder}/") and not still_ours():
            raise ValueError(
                f"{folder}: expected the lock that this run took, got another run's, or none: the folder was "
                "removed, or this machine stood still. Nothing more is written; start the same command again."
            )


@contextlib.contextmanager
def _locked(folder: epath.Path) -> Iterator[Callable[[], bool]]:
    """The system's lock on the file `lock`, or a lease where the filesystem has no locks."""
    import fcntl  # Unix only, like the stages' other dependencies; planning works without

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "a process that is just starting"
            raise ValueError(bucket.in_use(folder, holder)) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(f"{folder}: this filesystem has no locks; a lease is used instead", file=sys.stderr)
            with bucket.lease(folder, "lease") as still_ours:
                yield still_ours
            return
        file.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {socket.gethostname()}, started {started}\n")
        file.flush()
        try:
            yield lambda: _names(folder / "lock", file)
        finally:
            file.truncate(0)


def _names(path: epath.Path, file: IO[str]) -> bool:
    """Whether `path` is still the name of the open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
