"""Notices a training step that hangs.

Where one host of several has stopped answering, the others would wait for its part of a sum for as long as
they are paid for. jax ends a program whose host is gone after 100 seconds; a host that is there and stuck
(a GPU that fell off its bus, a disk that hangs) it does not see.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from radit_jax.errors import ExitCode
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.environment import seconds_of

HANG_SECONDS = 1800.0  # far above any step; RADIT_HANG_SECONDS sets another limit
MAX_HANG_SECONDS = 86_400.0

OnHang = Callable[[str, float], None]  # what is waited for, and since how many seconds


class Wait(NamedTuple):
    """What the main thread waits for, and since when (`time.monotonic`)."""

    what: str
    since: float


class Watchdog:
    """A thread that calls `on_hang`, once, when the main thread has waited longer than `limit` seconds."""

    def __init__(self, on_hang: OnHang, limit: float):
        self._on_hang = on_hang
        self._limit = limit
        self._wait: Wait | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Inside, the main thread waits for `what`."""
        self._wait = Wait(what, time.monotonic())
        try:
            yield
        finally:
            self._wait = None

    def overdue(self, now: float) -> Wait | None:
        """What has been waited for beyond the limit by `now` (`time.monotonic`); None where nothing has."""
        wait = self._wait
        return wait if wait and now - wait.since > self._limit else None

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()

    def _look(self) -> None:
        # A tenth of the limit is soon enough, and costs nothing.
        while not self._closed.wait(self._limit / 10):
            now = time.monotonic()
            wait = self.overdue(now)
            if wait:
                self._on_hang(wait.what, now - wait.since)
                return


@contextlib.contextmanager
def watching(name: str, environment: Mapping[str, str] = os.environ) -> Iterator[Watchdog]:
    """A watchdog for the steps of the stage `name`; see `end_hanging` for what it does."""
    limit = seconds_of(environment, "RADIT_HANG_SECONDS", HANG_SECONDS, MAX_HANG_SECONDS)
    watchdog = Watchdog(lambda what, seconds: end_hanging(f"{name}: {what}", seconds), limit)
    try:
        yield watchdog
    finally:
        watchdog.close()


def end_hanging(what: str, seconds: float) -> None:
    """Say where all threads are, and end this process if it is one of several, so that all can start anew.

    A process by itself goes on: what it waits for may come.
    """
    ends = processes.is_multiprocess()
    then = "This process ends; the same command goes on from the last checkpoint." if ends else "It goes on."
    print(
        f"\n{what} has not ended for {seconds:.0f} s (RADIT_HANG_SECONDS sets the limit). {then}",
        file=sys.stderr,
        flush=True,
    )
    faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr, all_threads=True)
    if ends:
        os._exit(ExitCode.STOPPED)
