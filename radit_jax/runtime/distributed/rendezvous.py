"""The rendezvous, or roll call: the program's processes find each other over TCP before jax starts.

jax ends a process in its C++ when another is missing, and does not say which one. So every process first
reports to process 0, at the port after the coordinator's, with its number, host and versions. Process 0 waits
for all of them, or tells all who is missing or differs. The connections stay open for the program's own use.

Any program can reach that port. A stranger is named and turned away. It can send anything, as slowly and as
often as it likes: a line is limited in length and time, and so is the number of connections that have not
introduced themselves. The join token (`join_token.py`) guards this roll call only: jax's own port and the
open connections trust the network.
"""

import contextlib
import hmac
import importlib.metadata
import json
import platform
import selectors
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from radit_jax.runtime.distributed.connection import LOOK_SECONDS, JsonConnection, Look
from radit_jax.runtime.distributed.join_token import TOKEN_FILE, TOKEN_VARIABLE, JoinToken
from radit_jax.runtime.distributed.topology import ProcessTopology
from radit_jax.text.printable import printable

_COMPARED_PACKAGES = ("jax", "jaxlib", "flax", "orbax-checkpoint", "libtpu")
_SECONDS_TO_SPEAK = 5.0  # for a visitor's introduction
_SECONDS_TO_CONNECT = 5.0
_VERDICT_GRACE_SECONDS = 10.0  # process 0 may start to wait later than the process that asks it
_MAX_BYTES = 16_384  # of an introduction
_MAX_HOST_LENGTH = 255
_MAX_VISITORS = 64  # connections that have not introduced themselves
_MAX_NAMED = 5  # visitors turned away that are named

Introduction = Mapping[str, Any]  # process, host, versions


def introduction(process_id: int) -> dict[str, Any]:
    """What a process says of itself: its number, its host, and versions, which must be equal everywhere."""
    versions = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in _COMPARED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "none"
    return {"process": process_id, "host": socket.gethostname(), "versions": versions}


def rendezvous(
    topology: ProcessTopology,
    own_introduction: Introduction,
    timeout_seconds: float,
    token: JoinToken,
    look: Look = lambda: None,
) -> dict[int, JsonConnection]:
    """Return on every process once all have joined and agree; else raise the same ValueError on all.

    Returns open connections by process number: process 0's to all others, another's to process 0. `look` is
    called during the wait, and may raise.
    """
    # The port after the coordinator's.
    host, port = topology.coordinator.rsplit(":", 1)
    address = (host, int(port) + 1)
    if topology.process_id != 0:
        return {0: _report(own_introduction, address, timeout_seconds, token, look)}
    if not token.is_known:
        print(
            f"hosts: no {TOKEN_VARIABLE} and no workdir that all see: whoever reaches port {address[1]} "
            "may join",
            file=sys.stderr,
        )
    with _bind(address[1]) as server:
        try:
            # Before anyone can connect: on NFS, a process that found no token would see it only much later.
            secret = token.publish()
            server.listen(_MAX_VISITORS)
            return _call_roll(topology, own_introduction, server, timeout_seconds, secret, look)
        finally:
            token.remove()


# ---- process 0 ----


def _bind(port: int) -> socket.socket:
    server = socket.socket()
    try:
        # A run that has just ended leaves its port in a state that refuses others for a minute.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("", port))
        return server
    except OSError as error:
        server.close()
        raise ValueError(
            f"hosts: expected port {port}, at which processes report to process 0, to be free, got "
            f"{error.strerror!r}. End the program that uses it, or name another --coordinator port."
        ) from None


def _call_roll(
    topology: ProcessTopology,
    own_introduction: Introduction,
    server: socket.socket,
    timeout_seconds: float,
    secret: str,
    look: Look,
) -> dict[int, JsonConnection]:
    """Wait for all processes, and send each the verdict, which is "" when all is well."""
    deadline = time.monotonic() + timeout_seconds
    with contextlib.ExitStack() as undo:
        # 1) Let processes in until all are here, one is wrong, or the time is over.
        door = undo.enter_context(_Door(server, topology.num_processes, secret))
        num_others = topology.num_processes - 1
        while len(door.connections) < num_others and not door.fault:
            seconds_left = deadline - time.monotonic()
            if seconds_left <= 0:
                break
            door.open_for(min(seconds_left, LOOK_SECONDS))
            look()

        # 2) Tell the verdict to all who came.
        introductions = {0: own_introduction, **door.introductions}
        fault = (
            door.fault
            or _missing_fault(topology, introductions, timeout_seconds, door.turned_away)
            or _version_fault(introductions)
        )
        for connection in door.connections.values():
            with contextlib.suppress(OSError):  # whoever speaks to a process that is gone notices it then
                connection.send({"fault": fault})
        if fault:
            raise ValueError(fault)

        # 3) Keep the connections open.
        undo.pop_all()
        door.close_to_strangers()
        return dict(door.connections)


def _missing_fault(
    topology: ProcessTopology,
    introductions: Mapping[int, Introduction],
    timeout_seconds: float,
    turned_away: list[str],
) -> str:
    """The fault that names processes which did not report; "" where all did."""
    missing = [
        topology.name(number) for number in range(topology.num_processes) if number not in introductions
    ]
    if not missing:
        return ""
    # Whoever was turned away may be the missing process, with an old token.
    strangers = f" (turned away: {', '.join(turned_away[:_MAX_NAMED])})" if turned_away else ""
    return (
        f"hosts: expected {topology.num_processes} processes within {timeout_seconds:g} s, got "
        f"{len(introductions)}, without {', '.join(missing)}{strangers}. Start the same command on every "
        "host (launch/ does), or set RADIT_JOIN_SECONDS if hosts start far apart."
    )


def _version_fault(introductions: Mapping[int, Introduction]) -> str:
    """The fault that names the first process with other versions than process 0's; "" where all agree."""
    # jax compiles one program for all, so their versions have to be equal.
    first = introductions[0]
    for number, other in sorted(introductions.items()):
        for package, version in first["versions"].items():
            other_version = other["versions"].get(package)
            if other_version != version:
                return (
                    f"hosts: expected {package} {version} everywhere, as on {first['host']}, got "
                    f"{other_version} from {other['host']} (process {number}). Install the same versions "
                    "(-c constraints.txt)."
                )
    return ""


@dataclass
class _Visitor:
    """A connection that has not introduced itself."""

    connection: socket.socket
    name: str  # its address
    deadline: float  # for its introduction, by `time.monotonic`
    received: bytearray = field(default_factory=bytearray)


class _Door:
    """Process 0's open port: lets the program's processes in, turns strangers away, and waits for no one."""

    def __init__(self, server: socket.socket, num_processes: int, secret: str):
        self.introductions: dict[int, Introduction] = {}
        self.connections: dict[int, JsonConnection] = {}
        self.turned_away: list[str] = []
        self.fault = ""
        self._server = server
        self._num_processes = num_processes
        self._secret = secret
        self._visitors: dict[socket.socket, _Visitor] = {}  # the longest here first
        self._selector = selectors.DefaultSelector()
        server.setblocking(False)
        self._selector.register(server, selectors.EVENT_READ)

    def __enter__(self) -> "_Door":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close_to_strangers()
        for connection in self.connections.values():
            connection.close()

    def close_to_strangers(self) -> None:
        """Drop whoever has not introduced itself, and keep the processes that are in."""
        for visitor_socket in self._visitors:
            visitor_socket.close()
        self._visitors.clear()
        self._selector.close()
        num_unnamed = len(self.turned_away) - _MAX_NAMED
        if num_unnamed > 0:
            print(f"hosts: turned away {num_unnamed} more", file=sys.stderr)

    def open_for(self, seconds: float) -> None:
        """Handle new connections and introductions for at most `seconds`."""
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._server:
                self._let_in()
            elif visitor := self._visitors.get(key.fileobj):  # type: ignore[arg-type]
                self._read(visitor)
        for visitor in list(self._visitors.values()):
            if visitor.deadline < time.monotonic():
                self._turn_away(visitor, f"said nothing whole within {_SECONDS_TO_SPEAK:g} s")

    def _let_in(self) -> None:
        try:
            connection, address = self._server.accept()
        except OSError:  # the visitor hung up, or this process has too many files open
            self._turn_oldest_away()
            return
        # The program's own processes speak at once, so the oldest visitor is a stranger.
        if len(self._visitors) >= _MAX_VISITORS:
            self._turn_oldest_away()
        connection.setblocking(False)
        name = f"{address[0]}:{address[1]}"
        deadline = time.monotonic() + _SECONDS_TO_SPEAK
        self._visitors[connection] = _Visitor(connection, name, deadline)
        self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, visitor: _Visitor) -> None:
        # 1) Read what is there.
        try:
            block = visitor.connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            block = b""
        visitor.received += block
        # 2) Judge a whole line, or what can no longer become one.
        line, newline, rest = visitor.received.partition(b"\n")
        if newline and len(line) <= _MAX_BYTES:
            self._admit(visitor, bytes(line), bytes(rest))
        elif not block:
            self._turn_away(visitor, "hung up")
        elif len(visitor.received) > _MAX_BYTES:
            self._turn_away(visitor, f"said more than {_MAX_BYTES} bytes")

    def _admit(self, visitor: _Visitor, line: bytes, rest: bytes) -> None:
        """Admit a process of this program; a second one with its number makes the program's start a fault."""
        # 1) It has to be one of the program's.
        try:
            introduced = _parse_introduction(line, self._num_processes, self._secret)
        except ValueError as reason:
            self._turn_away(visitor, str(reason))
            return
        # 2) It is known by its number from now on.
        self._forget(visitor)
        number = introduced["process"]
        connection = JsonConnection(visitor.connection, rest)
        if number in self.connections:
            first_host = self.introductions[number]["host"]
            self.fault = (
                f"hosts: expected each process once, got process {number} twice, from {first_host} and "
                f"{introduced['host']}. Start each number once, and no second program on these hosts."
            )
            with contextlib.suppress(OSError), connection:
                connection.send({"fault": self.fault})
            return
        self.introductions[number] = introduced
        self.connections[number] = connection

    def _turn_oldest_away(self) -> None:
        if self._visitors:
            self._turn_away(next(iter(self._visitors.values())), "was one of too many at once")

    def _turn_away(self, visitor: _Visitor, reason: str) -> None:
        self._forget(visitor)
        with contextlib.suppress(OSError):
            visitor.connection.send(b'{"turned_away": true}\n')
        visitor.connection.close()
        self.turned_away.append(printable(f"{visitor.name} ({reason})"))
        if len(self.turned_away) <= _MAX_NAMED:
            print(f"hosts: turned away {self.turned_away[-1]}", file=sys.stderr)

    def _forget(self, visitor: _Visitor) -> None:
        self._selector.unregister(visitor.connection)
        del self._visitors[visitor.connection]


def _parse_introduction(line: bytes, num_processes: int, secret: str) -> dict[str, Any]:
    """The introduction of a process of this program, without its token; ValueError says what is wrong."""
    try:
        introduced = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("said what is no introduction") from None
    if not isinstance(introduced, dict) or set(introduced) != {"process", "host", "versions", "token"}:
        raise ValueError("said what is no introduction")

    # The token first: a stranger learns nothing from the other checks.
    token = introduced.pop("token")
    is_text = isinstance(token, str)
    # The time of this comparison does not depend on where they differ.
    if not is_text or not hmac.compare_digest(token.encode(errors="replace"), secret.encode()):
        raise ValueError("has another token")

    # Then each field: these come from a process of this program, perhaps of another version.
    number = introduced["process"]
    host, versions = introduced["host"], introduced["versions"]
    if type(number) is not int or not 1 <= number < num_processes:
        raise ValueError(f"is process {number!r:.20}, expected 1 to {num_processes - 1}")
    if not isinstance(host, str) or len(host) > _MAX_HOST_LENGTH:
        raise ValueError("names no host")
    if not isinstance(versions, dict):
        raise ValueError("names no versions")
    if not all(isinstance(version, str) for version in versions.values()):
        raise ValueError("names no versions")
    return introduced


# ---- every other process ----


class _TurnedAwayError(Exception):
    """Process 0 has another token, or had too many visitors."""


def _report(
    own_introduction: Introduction,
    address: tuple[str, int],
    timeout_seconds: float,
    token: JoinToken,
    look: Look,
) -> JsonConnection:
    """Report to process 0, and return the connection once its verdict is that all is well.

    A process that is turned away, or reaches no one, tries again: process 0 may start later, or may have
    just written another token.
    """
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        look()
        with contextlib.ExitStack() as undo, contextlib.suppress(OSError, _TurnedAwayError):
            # Report, and wait for the verdict.
            opened = socket.create_connection(address, timeout=_SECONDS_TO_CONNECT)
            connection = undo.enter_context(JsonConnection(opened))
            connection.send({**own_introduction, "token": token.read()})
            verdict_deadline = time.monotonic() + timeout_seconds + _VERDICT_GRACE_SECONDS
            fault = _parse_verdict(connection.receive(verdict_deadline, look))
            if fault:
                raise ValueError(printable(fault))
            undo.pop_all()
            return connection
        time.sleep(LOOK_SECONDS)
    place = f"{address[0]}:{address[1]}"
    raise ValueError(
        f"hosts: expected process 0 at {place} within {timeout_seconds:g} s, got no "
        f"answer to process {own_introduction['process']} on {own_introduction['host']}. "
        f"{_token_remedy(token)}Start the same command on every host (launch/ does), and let them reach that "
        "port."
    )


def _parse_verdict(answer: Any) -> str:
    """Process 0's fault, "" where all is well; any other answer is another program's."""
    if isinstance(answer, dict) and isinstance(answer.get("fault"), str):
        return answer["fault"]
    raise _TurnedAwayError


def _token_remedy(token: JoinToken) -> str:
    if token.is_known and not token.read():
        return (
            f"Name a workdir that all hosts see, for its file {TOKEN_FILE}, or set {TOKEN_VARIABLE} on all. "
        )
    return ""
