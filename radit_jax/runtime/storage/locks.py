"""One run at a time in a workdir, and no write by a run that has lost its lock.

On a disk the system holds the lock, and frees it however the process ends. In a bucket, and on a filesystem
without locks, it is a lease (`lease.py`). A run that was frozen can lose a lease, and a workdir can be
removed or replaced during a run. So every commit calls `check_held` first.
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
from radit_jax.runtime.storage.lease import in_use, lease, lease_holder

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
# Which locks this process took: workdir -> whether it still holds the lock.
_held: dict[str, Callable[[], bool]] = {}


@contextlib.contextmanager
def hold(folder: epath.Path) -> Iterator[None]:
    """Keep other runs out of `folder` inside; ValueError where one is in it."""
    # A store has no locks.
    lock = lease(folder) if bucket.is_bucket(folder) else _system_lock(folder)
    with lock as is_held:
        _held[os.fspath(folder)] = is_held
        try:
            yield
        finally:
            del _held[os.fspath(folder)]


def holder(folder: epath.Path) -> str | None:
    """Which process is at work in `folder`, in words; None where none is. Takes no lease and writes nothing.

    A holder of a lease is one that has rewritten it within a minute.
    """
    # A filesystem without locks has a lease of another name.
    if bucket.is_bucket(folder):
        return lease_holder(folder)
    return _system_holder(folder / "lock") or lease_holder(folder, "lease")


def check_held(path: epath.PathLike) -> None:
    """Refuse to write at `path` in a folder whose lock this process took and has lost."""
    for folder, is_held in _held.items():
        is_inside = f"{os.fspath(path)}/".startswith(f"{folder}/")
        if is_inside and not is_held():
            raise ValueError(
                f"{folder}: expected the lock that this run took, got another run's, or none: the folder was "
                "removed, or this machine stood still. Nothing more is written; start the same command again."
            )


@contextlib.contextmanager
def _system_lock(folder: epath.Path) -> Iterator[Callable[[], bool]]:
    """The system's lock on the file `lock`, or a lease where the filesystem has no locks."""
    import fcntl  # Unix only; planning works without it

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a+") as file:
        # 1) Take the lock, or say who has it.
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "a process that is just starting"
            raise ValueError(in_use(folder, holder)) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(f"{folder}: this filesystem has no locks; a lease is used instead", file=sys.stderr)
            with lease(folder, "lease") as is_held:
                yield is_held
            return

        # 2) Say in the file who holds it, for the error of the next run.
        file.truncate(0)
        process = f"process {os.getpid()} on {socket.gethostname()}"
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"{process}, started {started}\n")
        file.flush()
        try:
            yield lambda: _is_name_of(folder / "lock", file)
        finally:
            file.truncate(0)


def _system_holder(lock: epath.Path) -> str | None:
    """What the holder of the system's lock wrote; None where nobody holds it."""
    import fcntl  # Unix only; planning works without it

    holder = ""
    try:
        with open(lock) as file:
            # Who ends in order empties the file, so only what a kill has left is tried.
            holder = file.read().strip()
            if holder:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return holder
    except OSError:  # there is none, or it may not be read
        return None
    return None


def _is_name_of(path: epath.Path, file: IO[str]) -> bool:
    """Whether `path` is still the name of the open file."""
    # A workdir that was made again has another file of that name.
    open_file = os.fstat(file.fileno())
    try:
        return os.path.samestat(os.stat(path), open_file)
    except FileNotFoundError:
        return False
