"""Several processes as one program: the rendezvous, then jax.distributed, and how they keep step.

Nothing here imports jax before the rendezvous is over. All processes run the same program, and each has every
result; process 0 alone writes. The rendezvous' connections stay open. Over them processes wait for each
other, for hours if they have to, process 0 tells the others what it found on disk, and a process that was
asked to stop tells the others. A single process is process 0 of one.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from radit_jax.errors import Stopped, one_line
from radit_jax.runtime.distributed.connection import JsonConnection
from radit_jax.runtime.distributed.environment import seconds_of
from radit_jax.runtime.distributed.join_token import TOKEN_FILE, JoinToken
from radit_jax.runtime.distributed.rendezvous import introduction, rendezvous
from radit_jax.runtime.distributed.topology import ProcessTopology

T = TypeVar("T")
R = TypeVar("R")

JOIN_SECONDS = 45.0  # so that a program that was started on one host of many ends within a minute
MAX_JOIN_SECONDS = 86_400.0
STOPPED = os.EX_TEMPFAIL  # the exit code of a program that SIGTERM stopped
_HANDLED = (signal.SIGTERM, signal.SIGINT)
_STOPPING = b"\nstopping; the same command goes on. Ctrl-C again ends it at once.\n"


# ---- joining ----


def join_processes(
    topology: ProcessTopology, workdir: str | None = None, timeout_seconds: float | None = None
) -> None:
    """Make this process one of the program's, before jax is used.

    `workdir` is a folder that all processes see, if there is one. A token in it tells the program's processes
    from strangers, where the environment has none. The default timeout is RADIT_JOIN_SECONDS.

    Raises ValueError on every process that joined, where one is missing or runs other versions.
    """
    if timeout_seconds is None:
        timeout_seconds = seconds_of(os.environ, "RADIT_JOIN_SECONDS", JOIN_SECONDS, MAX_JOIN_SECONDS)
    token = JoinToken(Path(workdir) / TOKEN_FILE if workdir else None)
    own_introduction = introduction(topology.process_id)
    # 1) Find the others.
    _process_group.connections = rendezvous(
        topology, own_introduction, timeout_seconds, token, lambda: stop_if_asked("the roll call")
    )
    _process_group.topology = topology

    # 2) Let jax find them, too.
    import jax

    # Detection is off: under SLURM it would leave a process that is alone on its host one of the GPUs.
    jax.distributed.initialize(
        topology.coordinator,
        topology.num_processes,
        topology.process_id,
        None if topology.local_device is None else [topology.local_device],
        cluster_detection_method="deactivate",
        initialization_timeout=60,
    )
    if signal.getsignal(signal.SIGTERM) == _process_group.note_signal:
        _install_handlers()  # again: jax takes SIGTERM for itself


# ---- keeping step ----


@dataclass
class ProcessGroup:
    """This process among those of the program, with a connection to each that it talks to."""

    topology: ProcessTopology | None = None  # None: a single process
    connections: dict[int, JsonConnection] = field(default_factory=dict)  # by process number
    alone: bool = False  # it works by itself: the others wait for it, or do other work
    stop_signal: int = 0  # SIGTERM or SIGINT, once it was sent to this process
    interruptible: str = ""  # the work that a signal interrupts at once, if any
    deferring: bool = False  # a training loop looks at `stop_signal` by itself, and saves its state first

    @property
    def is_process_zero(self) -> bool:
        """Whether this process writes and prints for all; a single one does."""
        return self.topology is None or self.topology.process_id == 0

    @property
    def is_multiprocess(self) -> bool:
        """Whether other processes work with this one now."""
        return self.topology is not None and not self.alone

    @property
    def index_and_count(self) -> tuple[int, int]:
        """Which part of the work is this process's, of how many: (0, 1) where it works alone."""
        if self.topology is None or self.alone:
            return 0, 1
        return self.topology.process_id, self.topology.num_processes

    def broadcast(self, where: str, value: Any = None) -> Any:
        """Process 0's value (JSON) on every process, once all are here; Stopped if one was asked to stop."""
        if not self.is_multiprocess:
            self.stop_if_asked(where)
            return value
        values = self._meet(where, value if self.is_process_zero else None)
        return values[0]

    def _meet(self, where: str, value: Any) -> list[Any]:
        """The values (JSON) of all processes in their order, once all are here; Stopped as in `broadcast`."""
        # Each report says where its process is: all have to be at the same place.
        report = {"where": where, "stop": self.stop_signal, "value": value}
        reply = self._collect(report) if self.is_process_zero else self._ask(report)
        if reply["stop"] and not self.deferring:
            raise Stopped(f"at {where}; what was finished is kept", reply["stop"])
        return reply["values"]

    def stop_if_asked(self, where: str) -> None:
        """See `stop_if_asked` below."""
        if self.stop_signal and not self.deferring and not self.is_multiprocess:
            raise Stopped(f"at {where}; what was finished is kept", self.stop_signal)

    def on_process_zero(self, where: str, function: Callable[[], T]) -> T:
        """Run `function` on process 0 while the others wait: all return its result (JSON) or raise its error.

        An error of another type that a person can cause is a ValueError of one line on all.
        """
        if not self.is_multiprocess:
            self.stop_if_asked(where)
            return function()
        outcome = self.broadcast(where, self._outcome(function) if self.is_process_zero else None)
        if outcome["fault"]:
            raise ValueError(outcome["fault"])
        return outcome["value"]

    def on_each_process(self, where: str, function: Callable[[], T]) -> list[T]:
        """Run `function` on every process: all return all results (JSON), in the processes' order.

        Each works apart. Where one fails, all raise the first one's error, as in `on_process_zero`.
        """
        if not self.is_multiprocess:
            self.stop_if_asked(where)
            return [function()]
        results = []
        for outcome in self._meet(where, self._outcome(function)):
            if outcome["fault"]:
                raise ValueError(outcome["fault"])
            results.append(outcome["value"])
        return results

    def _outcome(self, function: Callable[[], Any]) -> dict[str, Any]:
        """What `function` returns while this process works apart, or its error as one line."""
        value, fault = None, ""
        try:
            with self.apart():
                value = function()
        except Stopped:
            pass  # `_meet` stops all
        except Exception as error:
            line = one_line(error)
            if line is None:
                raise
            fault = line
        return {"value": value, "fault": fault}

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """See `apart` below."""
        before = self.alone
        self.alone = True
        try:
            yield
        finally:
            self.alone = before

    def _collect(self, own_report: Mapping[str, Any]) -> dict[str, Any]:
        """Process 0: wait for all reports, then send their values, and the first stop signal, to all."""
        # 1) Everyone reports, however long it takes. They joined in any order.
        stop = own_report["stop"]
        values = [own_report["value"]]
        for number, connection in sorted(self.connections.items(), key=lambda item: item[0]):
            report = self._talk(number, connection.receive)
            assert report["where"] == own_report["where"], (
                f"process {number} is at {report}, process 0 at {own_report}"
            )
            stop = stop or report["stop"]
            values.append(report["value"])
        # 2) Everyone gets the reply.
        reply = {"values": values, "stop": stop}
        for number, connection in self.connections.items():
            self._talk(number, lambda connection=connection: connection.send(reply))
        return reply

    def _ask(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """Any other process: report to process 0, and wait for its reply."""
        self._talk(0, lambda: self.connections[0].send(report))
        return self._talk(0, self.connections[0].receive)

    def _talk(self, number: int, act: Callable[[], Any]) -> Any:
        """What `act` returns; an error that names process `number` where its connection is gone."""
        try:
            return act()
        except OSError:
            assert self.topology is not None
            # Its own output says why; the others only see that the connection ended.
            raise ValueError(
                f"hosts: expected all {self.topology.num_processes} processes, got no answer from "
                f"{self.topology.name(number)}, which is gone. Look at what it printed last, and start the "
                "same command again on every host."
            ) from None

    def note_signal(self, signal_number: int, *_: object) -> None:
        """Handle SIGTERM or Ctrl-C: remember the signal, so that the next `stop_if_asked` raises Stopped.

        Nothing is raised here, because the library that is running could catch it. The exception is work
        inside `stopping_at_once`, which has no `stop_if_asked` of its own.
        """
        self.stop_signal = self.stop_signal or signal_number
        if signal_number == signal.SIGINT:
            # A second Ctrl-C ends the process.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            with contextlib.suppress(OSError):
                os.write(2, _STOPPING)
        if self.interruptible:
            self.stop_if_asked(self.interruptible)


_process_group = ProcessGroup()


def shutdown() -> None:
    """Close this process's connections, so that others see that it is gone before jax waits for it."""
    global _process_group
    for connection in _process_group.connections.values():
        connection.close()
    _process_group = ProcessGroup()


def is_process_zero() -> bool:
    """Whether this process is the one that writes."""
    return _process_group.is_process_zero


def is_multiprocess() -> bool:
    """Whether other processes do the same work now; not while process 0 works alone."""
    return _process_group.is_multiprocess


def process_index_and_count() -> tuple[int, int]:
    """Which part of the work is this process's, of how many: (0, 1) where no other process does it."""
    return _process_group.index_and_count


def barrier(where: str) -> None:
    """Wait until every process is here; then each sees what the others have written."""
    _process_group.broadcast(where)


def on_process_zero(where: str, function: Callable[[], T]) -> T:
    """Run `function` on process 0 and return its result (JSON), or raise its error, on every process.

    A decision that depends on files is process 0's: others may see a shared disk's changes later.
    """
    return _process_group.on_process_zero(where, function)


def on_each_process(where: str, function: Callable[[], T]) -> list[T]:
    """Run `function` on every process, each apart, and return all results (JSON) on all, or raise one error.

    For a share of some work whose results are small: they pass through process 0.
    """
    return _process_group.on_each_process(where, function)


def in_shares(where: str, items: Sequence[T], function: Callable[[Sequence[T]], list[R]]) -> list[R]:
    """What `function` makes of each item (JSON), in their order; each process calls it with some of them."""
    index, count = process_index_and_count()
    shares = on_each_process(where, lambda: function(items[index::count]))
    results: list[Any] = [None] * len(items)
    for number, share in enumerate(shares):
        results[number::count] = share
    return results


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Inside, this process works as if it were the only one, while the others do other work.

    It writes and reads files by itself, and waits for nobody: nobody has to be at the places that it passes.
    A stop that it was asked for is raised here. The others learn of it at the next barrier.
    """
    with _process_group.apart():
        yield


def stop_if_asked(where: str) -> None:
    """Raise Stopped, between two units of work, where this process was asked to stop.

    One of several processes does not stop here, for others may be elsewhere: they stop together at a barrier.
    """
    _process_group.stop_if_asked(where)


@contextlib.contextmanager
def handling_signals() -> Iterator[None]:
    """Inside, SIGTERM and Ctrl-C ask for a stop: the next `stop_if_asked` or barrier raises Stopped.

    A second Ctrl-C ends the process at once; files are whole even then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals go to the main thread only
        return
    before = {number: signal.getsignal(number) for number in _HANDLED}
    _install_handlers()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        _process_group.stop_signal = 0


def _install_handlers() -> None:
    for number in _HANDLED:
        signal.signal(number, _process_group.note_signal)


@contextlib.contextmanager
def stopping_at_once(where: str) -> Iterator[None]:
    """Inside, a signal raises Stopped in the middle of a library's work, if no other process waits."""
    stop_if_asked(where)
    _process_group.interruptible = where
    try:
        yield
    finally:
        _process_group.interruptible = ""


@contextlib.contextmanager
def deferring_stops(deferring: bool = True) -> Iterator[None]:
    """Inside, nothing raises Stopped: a training loop looks at `stop_asked`, and saves its state first."""
    # Validation inside a training loop turns it off again.
    before = _process_group.deferring
    _process_group.deferring = deferring
    try:
        yield
    finally:
        _process_group.deferring = before


def stop_asked() -> bool:
    """Whether this process was asked to stop."""
    return bool(_process_group.stop_signal)


def stopped(where: str) -> Stopped:
    """The error of a loop that has saved its state."""
    # The signal may have been sent to another process.
    return Stopped(where, _process_group.stop_signal or signal.SIGTERM)
