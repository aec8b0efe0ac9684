"""Several processes as one program: who they are, a roll call, then jax.distributed, and how they keep step.

Nothing here imports jax before the roll call (`rendezvous.py`) is over. All processes run the same program,
and every one knows every result; process 0 alone writes. The lines of the roll call stay open: over them
processes wait for each other, for hours if need be, process 0 tells the others what it found on disk, and one
that was told to stop says so. A process by itself is process 0 of one.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from radit_jax.errors import Stopped, one_line
from radit_jax.runtime.distributed.join_token import TOKEN_FILE, JoinToken
from radit_jax.runtime.distributed.rendezvous import (
    Line,
    ProcessTopology,
    introduction,
    rendezvous,
)

T = TypeVar("T")

JOIN_SECONDS = 45.0  # so that a program started on one host of many ends within a minute
STOPPED = os.EX_TEMPFAIL  # the exit code of a program that SIGTERM stopped
_HANDLED = (signal.SIGTERM, signal.SIGINT)
_STOPPING = b"\nstopping; the same command goes on. Ctrl-C again ends it at once.\n"


# ---- joining ----


def join_processes(
    place: ProcessTopology, workdir: str | None = None, timeout_seconds: float | None = None
) -> None:
    """Make this process one of the program's, before jax is used; RADIT_JOIN_SECONDS is the default patience.

    `workdir` is a folder that all processes see, if there is one: they know each other by a token in it,
    where none is in the environment. Raises ValueError on every process that came, when one is missing or
    runs other versions.
    """
    seconds = timeout_seconds or _seconds_to_join(os.environ)
    token = JoinToken(Path(workdir) / TOKEN_FILE if workdir else None)
    own = introduction(place.process_id)
    lines = rendezvous(place, own, seconds, token, lambda: stop_if_asked("the roll call"))
    _process_group.place, _process_group.lines = place, lines
    import jax

    # Detection is off: under SLURM it would leave a process that is alone on its host one of the GPUs.
    jax.distributed.initialize(
        place.coordinator,
        place.num_processes,
        place.process_id,
        None if place.local_device is None else [place.local_device],
        cluster_detection_method="deactivate",
        initialization_timeout=60,
    )
    if signal.getsignal(signal.SIGTERM) == _process_group.heed:
        _note_signal()  # again: jax takes SIGTERM for itself


def _seconds_to_join(environment: Mapping[str, str]) -> float:
    text = environment.get("RADIT_JOIN_SECONDS", str(JOIN_SECONDS))
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= 86_400:
            return float(text)
    raise ValueError(f"RADIT_JOIN_SECONDS: expected 0 < x <= 86400, got {text!r}.")


# ---- keeping step ----


@dataclass
class ProcessGroup:
    """This process among those of the program."""

    place: ProcessTopology | None = None
    lines: dict[int, Line] = field(default_factory=dict)
    alone: bool = False  # process 0 works while the others wait
    stop_signal: int = 0  # SIGTERM or SIGINT, once one was sent to this process
    at_once: str = ""  # what a signal interrupts, where it does
    deferring: bool = False  # a training loop looks at `stop_signal` by itself, and keeps its state first

    @property
    def is_process_zero(self) -> bool:
        return self.place is None or self.place.process_id == 0

    @property
    def is_multiprocess(self) -> bool:
        return self.place is not None and not self.alone

    @property
    def share(self) -> tuple[int, int]:
        """Which of so many shares of the work is this process's; the only one, where it works by itself."""
        if self.place is None or self.alone:
            return 0, 1
        return self.place.process_id, self.place.num_processes

    def tell(self, where: str, value: Any = None) -> Any:
        """Process 0's value, on every process, once all are here; Stopped if one was asked to stop."""
        if not self.is_multiprocess:
            self.stop_if_asked(where)
            return value
        own = {"where": where, "stop": self.stop_signal}
        said = self._gather(own, value) if self.is_process_zero else self._ask(own)
        if said["stop"] and not self.deferring:
            raise Stopped(f"at {where}; what was finished is kept", said["stop"])
        return said["value"]

    def stop_if_asked(self, where: str) -> None:
        """See `stop_if_asked` below."""
        if self.stop_signal and not self.deferring and not self.is_multiprocess:
            raise Stopped(f"at {where}; what was finished is kept", self.stop_signal)

    def on_process_zero(self, where: str, function: Callable[[], T]) -> T:
        """What `function`, run by process 0 while the others wait, returns (JSON) or raises (ValueError).

        An error of another type that a person can cause is a ValueError of its line on all.
        """
        if not self.is_multiprocess:
            self.stop_if_asked(where)
            return function()
        found = self.tell(where, self._outcome(function) if self.is_process_zero else None)
        if found["fault"]:
            raise ValueError(found["fault"])
        return found["value"]

    def _outcome(self, function: Callable[[], Any]) -> dict[str, Any]:
        value, fault = None, ""
        self.alone = True
        try:
            value = function()
        except Stopped:
            pass  # `tell` says so to all
        except Exception as error:
            if (line := one_line(error)) is None:
                raise
            fault = line
        finally:
            self.alone = False
        return {"value": value, "fault": fault}

    def _gather(self, own: Mapping[str, Any], value: Any) -> dict[str, Any]:
        stop = own["stop"]
        for number, line in self.lines.items():
            said = self._speak(number, line.receive)
            assert said["where"] == own["where"], f"process {number} is at {said}, process 0 at {own}"
            stop = stop or said["stop"]
        said = {"value": value, "stop": stop}
        for number, line in self.lines.items():
            self._speak(number, lambda line=line: line.send(said))
        return said

    def _ask(self, own: Mapping[str, Any]) -> dict[str, Any]:
        self._speak(0, lambda: self.lines[0].send(own))
        return self._speak(0, self.lines[0].receive)

    def _speak(self, number: int, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except OSError:
            assert self.place is not None
            raise ValueError(
                f"hosts: {self.place.name(number)} is gone, needed are all {self.place.num_processes}; look "
                "at what it printed last, and start the same command again on every host"
            ) from None

    def heed(self, signal_number: int, *_: object) -> None:
        """What SIGTERM and Ctrl-C do: a note, for an exception here could be caught by any library."""
        self.stop_signal = self.stop_signal or signal_number
        if signal_number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            with contextlib.suppress(OSError):
                os.write(2, _STOPPING)
        if self.at_once:
            self.stop_if_asked(self.at_once)


_process_group = ProcessGroup()


def shutdown() -> None:
    """Hang up: who waits for this process learns that it is gone, before jax waits for it at its exit."""
    global _process_group
    for line in _process_group.lines.values():
        line.__exit__()
    _process_group = ProcessGroup()


def is_process_zero() -> bool:
    """Whether this process is the one that writes."""
    return _process_group.is_process_zero


def is_multiprocess() -> bool:
    """Whether other processes are at the same place of the program."""
    return _process_group.is_multiprocess


def process_index_and_count() -> tuple[int, int]:
    """Which of how many shares of some work is this process's: (0, 1) where no other is at it."""
    return _process_group.share


def barrier(where: str) -> None:
    """Wait until every process is here, which sees then what the others have written."""
    _process_group.tell(where)


def on_process_zero(where: str, function: Callable[[], T]) -> T:
    """See `ProcessGroup.on_process_zero`. A decision that depends on files is process 0's, and is told."""
    return _process_group.on_process_zero(where, function)


def stop_if_asked(where: str) -> None:
    """Raise Stopped, between two units of work, where this process was asked to stop.

    Of several processes, none stops here, for others may be elsewhere: they stop where all meet.
    """
    _process_group.stop_if_asked(where)


@contextlib.contextmanager
def handling_signals() -> Iterator[None]:
    """Inside, SIGTERM and Ctrl-C ask for a stop; who looks by `stop_if_asked`, or meets, raises Stopped.

    A second Ctrl-C ends the process at once, as any program; what is written whole stays whole.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # to which signals do not come
        return
    before = {number: signal.getsignal(number) for number in _HANDLED}
    _note_signal()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        _process_group.stop_signal = 0


def _note_signal() -> None:
    for number in _HANDLED:
        signal.signal(number, _process_group.heed)


@contextlib.contextmanager
def stopping_at_once(where: str) -> Iterator[None]:
    """Inside, a signal raises Stopped in the middle of what a library does, if no other process waits."""
    stop_if_asked(where)
    _process_group.at_once = where
    try:
        yield
    finally:
        _process_group.at_once = ""


@contextlib.contextmanager
def deferring_stops(deferring: bool = True) -> Iterator[None]:
    """Inside, nothing raises Stopped: a training loop looks at `stop_asked`, and keeps its state first."""
    before, _process_group.deferring = _process_group.deferring, deferring
    try:
        yield
    finally:
        _process_group.deferring = before


def stop_asked() -> bool:
    """Whether this process was asked to stop."""
    return bool(_process_group.stop_signal)


def stopped(where: str) -> Stopped:
    """What a loop raises that has kept its state; the signal may have been sent to another process."""
    return Stopped(where, _process_group.stop_signal or signal.SIGTERM)
