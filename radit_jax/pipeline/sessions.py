"""How long a stage took, over all the runs that worked on it: those that were stopped or killed, too.

A file in the stage's folder keeps the seconds of earlier sessions while the stage is unfinished. A session
that was killed lasted until the last file in the folder was written.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator

from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage import locks
from radit_jax.runtime.storage.entries import bytes_or_none, files_under, modified, remove
from radit_jax.runtime.storage.files import write_whole
from radit_jax.runtime.storage.stage_folder import StageFolder

FILE = ".sessions.json"  # hidden, as it is no output


@contextlib.contextmanager
def session(folder: StageFolder) -> Iterator[Callable[[], float]]:
    """Count the time inside to the stage of `folder`; yields a function of its seconds so far."""
    # 1) What earlier sessions took. Process 0 writes the stage's time, and so it alone has to know.
    started = time.time()
    earlier = processes.on_process_zero(f"{folder} sessions", lambda: _begin(folder, started))
    begun = time.monotonic()

    def seconds() -> float:
        return earlier + time.monotonic() - begun

    # 2) However it ends, what it took is kept; a finished stage has it in its manifest.
    try:
        yield seconds
    except BaseException:
        # What ended it is the error to report, not that this fails too.
        if processes.is_process_zero():
            with contextlib.suppress(OSError, ValueError):
                _write(folder, seconds(), None)
        raise
    if processes.is_process_zero():
        remove(folder.home / FILE)


def _begin(folder: StageFolder, started: float) -> float:
    """The seconds of earlier sessions; this one is begun in the file."""
    seconds = _seconds_before(folder)
    _write(folder, seconds, started)
    return seconds


def _seconds_before(folder: StageFolder) -> float:
    data = bytes_or_none(folder.home / FILE)
    # Whatever else stands there, a time is not worth an error.
    try:
        record = json.loads(data or b"{}")
        seconds, started = float(record.get("seconds", 0.0)), record.get("started")
        if started is None:
            return seconds
        # The last session was killed. What it wrote last is on this machine, or nobody knows.
        times = [modified(file) for file in files_under(folder.path) if file.name != FILE]
        return seconds + max(0.0, max(times, default=0.0) - float(started))
    except (ValueError, TypeError, AttributeError):
        return 0.0


def _write(folder: StageFolder, seconds: float, started: float | None) -> None:
    """Keep the seconds of the sessions that ended; `started` is the time of one that has not."""
    locks.check_held(folder.home)
    record = {"seconds": round(seconds, 1), "started": started}
    write_whole(folder.home / FILE, json.dumps(record) + "\n")
