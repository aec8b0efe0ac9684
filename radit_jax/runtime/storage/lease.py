"""A lease keeps other runs out of a folder where no system lock can: in a bucket, on some filesystems.

The lease is the last of numbered objects under the folder's `lock/`. Its holder rewrites it every 15 s, and
empties it at the end. A run takes the next number, which the store gives to one of many at most. It may do so
once the last object is empty, or has not changed for a minute of the run's own clock.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from etils import epath

from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage import bucket
from radit_jax.runtime.storage.entries import modified

BEAT_SECONDS = 15.0  # between two writes of the holder
PATIENCE_SECONDS = 60.0  # without a change, after which another run may take the lease
_LOOK_SECONDS = 1.0
_PROCESS_ID = uuid.uuid4().hex


@contextlib.contextmanager
def lease(workdir: epath.PathLike, name: str = "lock") -> Iterator[Callable[[], bool]]:
    """Keep other runs out of `workdir` inside, by objects under `name/`; ValueError where one is in it.

    Yields a function that says whether the lease is still this process's: a process that was frozen for a
    minute may have lost it.
    """
    folder = epath.Path(workdir) / name
    if not bucket.is_bucket(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # A thread rewrites it while this process works.
    number = _take(folder)
    stop = threading.Event()
    beating = threading.Thread(target=_beat, args=(folder, number, stop), daemon=True)
    beating.start()

    def is_held() -> bool:
        return _last_number(folder) == number

    try:
        yield is_held
    finally:
        stop.set()
        beating.join()
        if is_held():
            bucket.put(_object(folder, number), b"")


def lease_holder(workdir: epath.PathLike, name: str = "lock") -> str | None:
    """Who holds the lease of `workdir`, and its age; None where nobody has rewritten it within a minute."""
    folder = epath.Path(workdir) / name
    last = _last_number(folder) if bucket.is_bucket(folder) or folder.is_dir() else 0
    signature = bucket.get(_object(folder, last)) if last else b""
    if not signature:
        return None
    # By the store's clock and this machine's, which may differ by some seconds.
    age = max(time.time() - modified(_object(folder, last)), 0.0)
    if age > PATIENCE_SECONDS:
        return None
    return f"{_describe(signature)}, last heard of {age:.0f} s ago"


def in_use(workdir: epath.PathLike, holder: str) -> str:
    """The error message of a run that finds another one in its workdir."""
    return (
        f"{workdir}: expected a workdir that no other run uses, got one in use by {holder}. Wait for it to "
        "end, or name another with --workdir."
    )


def _take(folder: epath.Path) -> int:
    """Take the lease by writing the object after the last, and return its number.

    ValueError where another run holds the lease, or takes it first.
    """
    # 1) The last object is empty if its holder gave the lease back; a killed holder's still says who it was.
    last = _last_number(folder)
    holder = bucket.get(_object(folder, last)) if last else b""
    if holder:
        _wait_for_silence(_object(folder, last), holder)
    # 2) Of several runs that try this number, the store lets one create the object.
    number = last + 1
    if not bucket.put_new(_object(folder, number), _signature(0)):
        winner = bucket.get(_object(folder, number))
        raise ValueError(in_use(folder.parent, _describe(winner)))
    # 3) Only the last number counts; the objects before it are litter.
    for old_number in _numbers(folder):
        if old_number < number:
            bucket.delete_objects(_object(folder, old_number))
    return number


def _wait_for_silence(path: epath.Path, holder: bytes) -> None:
    """Return once the lease at `path` is given back, or has not changed for a minute."""
    # A holder that lives rewrites its object in this time.
    workdir = path.parent.parent
    print(f"{workdir}: {_describe(holder)} had it; waiting for a minute's silence", file=sys.stderr)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        processes.stop_if_asked("the workdir's lock")
        time.sleep(min(_LOOK_SECONDS, PATIENCE_SECONDS / 10))
        now = bucket.get(path)
        if not now:  # it was given back
            return
        if now != holder:  # it beats
            raise ValueError(in_use(workdir, _describe(now)))


def _beat(folder: epath.Path, number: int, stop: threading.Event) -> None:
    """Rewrite the lease until `stop`; end the process where another run has taken it."""
    beats = 0
    while not stop.wait(BEAT_SECONDS):
        beats += 1
        try:
            if max(_numbers(folder), default=number) > number:
                # This process was silent for too long, and another run writes here.
                print(
                    f"error: {folder.parent}: another run took the workdir over", file=sys.stderr, flush=True
                )
                os._exit(1)
            bucket.put(_object(folder, number), _signature(beats))
        except Exception as error:  # of any kind, by the network: the next beat may succeed
            print(f"{folder}: a beat was lost ({error})", file=sys.stderr)


def _object(folder: epath.Path, number: int) -> epath.Path:
    return folder / f"{number:08d}"


def _numbers(folder: epath.Path) -> list[int]:
    return [int(name) for name in bucket.sizes(folder) if name.isdigit()]


def _last_number(folder: epath.Path) -> int:
    return max(_numbers(folder), default=0)


def _signature(beats: int) -> bytes:
    """What the holder writes: who it is, and a count that changes with every beat."""
    signature = {"process": os.getpid(), "host": socket.gethostname(), "beats": beats, "id": _PROCESS_ID}
    return json.dumps(signature).encode()


def _describe(holder: bytes | None) -> str:
    """The holder by its signature, for example `process 12 on worker-3`."""
    try:
        signature = json.loads(holder or b"")
        return f"process {signature['process']} on {signature['host']}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "another process"
