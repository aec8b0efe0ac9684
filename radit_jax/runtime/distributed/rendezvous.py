"""The roll call: a program's processes meet over TCP before jax does, and know each other by a token.

jax ends a process in its C++ when another is missing, without saying which one. So every process first
reports to process 0, at the port next to the coordinator's, with its number, host and versions; process 0
hears all, or says to all who is missing or differs. The lines stay open for the program's own use.

Whoever else reaches that port is named and turned away. It can say what it likes, as slowly as it likes, and
as often: a line has a limit of length and of time, and only so many may be on their way at once. The token is
in RADIT_JOIN_TOKEN, where launch/ puts it, or in a file that process 0 leaves in a workdir that all see. It
guards this roll call; jax's own port and the lines, once they stand, trust the network.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from radit_jax.runtime.distributed.join_token import TOKEN_FILE, TOKEN_VARIABLE, JoinToken
from radit_jax.text.printable import printable

_SECONDS_TO_SPEAK = 5.0
_MAX_BYTES = 16_384  # of an introduction
_MAX_VISITORS = 64  # who have not spoken yet
_MAX_NAMED = 5  # of those who were turned away
_LOOK_SECONDS = 0.2  # how often a wait looks whether the program was asked to stop

Look = Callable[[], None]


class ProcessTopology(NamedTuple):
    """One process's place among those of the program."""

    coordinator: str  # host:port of process 0
    num_processes: int
    process_id: int
    hosts: tuple[str, ...] = ()  # by process where there is one process a host and their names are known
    local_device: int | None = None  # the only device of this process; None: all of its host's

    def name(self, process_id: int) -> str:
        """For example `process 3 (worker-3)`."""
        host = f" ({self.hosts[process_id]})" if len(self.hosts) == self.num_processes else ""
        return f"process {process_id}{host}"


class Line:
    """A connection of two processes, over which JSON goes both ways."""

    def __init__(self, connection: socket.socket, received: bytes = b""):
        self.connection = connection
        self._received = bytearray(received)
        connection.settimeout(None)
        # Who waits for hours sends nothing, and networks forget connections that are silent.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *exception: object) -> None:
        self.connection.close()

    def send(self, value: Any) -> None:
        self.connection.sendall(json.dumps(value).encode() + b"\n")

    def receive(self, deadline: float | None = None, look: Look | None = None) -> Any:
        """What the other process sent; OSError where it is gone, or has sent nothing by `deadline`."""
        start = 0
        while (end := self._received.find(b"\n", start)) < 0:
            start = len(self._received)
            if deadline is not None and not _readable(self.connection, deadline, look):
                raise TimeoutError("nothing was said in time")
            received = self.connection.recv(1 << 16)
            if not received:
                raise ConnectionError("the line is dead")
            self._received += received
        said = bytes(self._received[:end])
        del self._received[: end + 1]
        try:
            return json.loads(said)
        except (ValueError, RecursionError):
            raise ConnectionError("what was said is no JSON: another program's line") from None


def _readable(connection: socket.socket, deadline: float, look: Look | None) -> bool:
    """Whether there is something to read before the deadline."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if selector.select(min(left, _LOOK_SECONDS)):
                return True
            if look is not None:
                look()
    return False


# ---- the roll call ----


def introduction(process_id: int) -> dict[str, Any]:
    """What a process says of itself; `versions` must be the same everywhere."""
    versions = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in ("jax", "jaxlib", "flax", "orbax-checkpoint", "libtpu"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "none"
    return {"process": process_id, "host": socket.gethostname(), "versions": versions}


def rendezvous(
    place: ProcessTopology,
    own: Mapping[str, Any],
    seconds: float,
    token: JoinToken,
    look: Look = lambda: None,
) -> dict[int, Line]:
    """Return on every process once all have come and agree; else raise the same ValueError on all.

    What it returns are open lines: process 0's to all others by their numbers, any other's to process 0.
    `look` is called while it waits, and may raise.
    """
    host, port = place.coordinator.rsplit(":", 1)
    address = (host, int(port) + 1)
    if place.process_id:
        return {0: _report(own, address, seconds, token, look)}
    if not token.is_known:
        print(
            f"hosts: no {TOKEN_VARIABLE} and no workdir that all see: whoever reaches port {address[1]} "
            "may join",
            file=sys.stderr,
        )
    with _bind(address[1]) as server:
        try:
            known = (
                token.publish()
            )  # first: who reached process 0 and found none would look again late, on NFS
            server.listen(_MAX_VISITORS)
            return _hear(place, own, server, seconds, known, look)
        finally:
            token.remove()


def _bind(port: int) -> socket.socket:
    server = socket.socket()
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a run that has just ended had it
        server.bind(("", port))
        return server
    except OSError as error:
        server.close()
        raise ValueError(
            f"hosts: port {port}, at which processes report to process 0, is taken ({error.strerror}); "
            "end the program that runs here already, or name another --coordinator port"
        ) from None


def _hear(
    place: ProcessTopology,
    own: Mapping[str, Any],
    server: socket.socket,
    seconds: float,
    token: str,
    look: Look,
) -> dict[int, Line]:
    """Process 0: hear everyone, and tell everyone the verdict, which is empty when all is well."""
    deadline = time.monotonic() + seconds
    with contextlib.ExitStack() as undo:
        door = undo.enter_context(_Door(server, place.num_processes, token))
        while len(door.lines) < place.num_processes - 1 and not door.fault:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            door.open_for(min(left, _LOOK_SECONDS))
            look()
        came = {0: own, **door.introductions}
        fault = door.fault or _missing(place, came, seconds, door.turned_away) or _differing(came)
        for line in door.lines.values():
            with contextlib.suppress(OSError):  # it is gone, which who speaks to it next will notice
                line.send({"fault": fault})
        if fault:
            raise ValueError(fault)
        undo.pop_all()
        door.close_to_strangers()
        return dict(door.lines)


@dataclass
class _Visitor:
    """A connection over which nobody has introduced himself yet."""

    connection: socket.socket
    name: str  # its address
    deadline: float
    said: bytearray = field(default_factory=bytearray)


class _Door:
    """Where process 0 lets the others in, and turns strangers away; it waits for none of them."""

    def __init__(self, server: socket.socket, num_processes: int, token: str):
        self.introductions: dict[int, Mapping[str, Any]] = {}
        self.lines: dict[int, Line] = {}
        self.turned_away: list[str] = []
        self.fault = ""
        self._server, self._num_processes, self._token = server, num_processes, token
        self._visitors: dict[socket.socket, _Visitor] = {}  # the first is the one that came first
        self._selector = selectors.DefaultSelector()
        server.setblocking(False)
        self._selector.register(server, selectors.EVENT_READ)

    def __enter__(self) -> "_Door":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close_to_strangers()
        for line in self.lines.values():
            line.connection.close()

    def close_to_strangers(self) -> None:
        for connection in self._visitors:
            connection.close()
        self._visitors.clear()
        self._selector.close()
        if len(self.turned_away) > _MAX_NAMED:
            print(f"hosts: turned away {len(self.turned_away) - _MAX_NAMED} more", file=sys.stderr)

    def open_for(self, seconds: float) -> None:
        """Hear who comes or speaks within `seconds`."""
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._server:
                self._let_in()
            elif visitor := self._visitors.get(key.fileobj):  # type: ignore[arg-type]
                self._hear(visitor)
        for visitor in list(self._visitors.values()):
            if visitor.deadline < time.monotonic():
                self._turn_away(visitor, f"said nothing whole within {_SECONDS_TO_SPEAK:g} s")

    def _let_in(self) -> None:
        try:
            connection, address = self._server.accept()
        except OSError:  # it hung up, or this process has too many files open
            if self._visitors:
                self._turn_away(next(iter(self._visitors.values())), "came with too many others")
            return
        if len(self._visitors) >= _MAX_VISITORS:  # who speaks at once, as ours do, is not among the oldest
            self._turn_away(next(iter(self._visitors.values())), "came with too many others")
        connection.setblocking(False)
        name = f"{address[0]}:{address[1]}"
        self._visitors[connection] = _Visitor(connection, name, time.monotonic() + _SECONDS_TO_SPEAK)
        self._selector.register(connection, selectors.EVENT_READ)

    def _hear(self, visitor: _Visitor) -> None:
        try:
            received = visitor.connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        visitor.said += received
        line, end, rest = visitor.said.partition(b"\n")
        if end and len(line) <= _MAX_BYTES:
            self._judge(visitor, bytes(line), bytes(rest))
        elif not received:
            self._turn_away(visitor, "hung up")
        elif len(visitor.said) > _MAX_BYTES:
            self._turn_away(visitor, f"said more than {_MAX_BYTES} bytes")

    def _judge(self, visitor: _Visitor, said: bytes, rest: bytes) -> None:
        """Take a process of ours in; a second one of its number is a fault of ours too."""
        try:
            found = _introduced(said, self._num_processes, self._token)
        except ValueError as reason:
            self._turn_away(visitor, str(reason))
            return
        self._forget(visitor)
        number = found["process"]
        line = Line(visitor.connection, rest)
        if number in self.lines:
            first = self.introductions[number]["host"]
            self.fault = (
                f"hosts: process {number} came twice, from {first} and {found['host']}; "
                "start each number once, and no second program on these hosts"
            )
            with contextlib.suppress(OSError), line:
                line.send({"fault": self.fault})
            return
        self.introductions[number], self.lines[number] = found, line

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


def _introduced(said: bytes, num_processes: int, token: str) -> dict[str, Any]:
    """An introduction that is one of ours, in form and by its token; ValueError says why it is none."""
    try:
        found = json.loads(said)
    except (ValueError, RecursionError):
        raise ValueError("said what is no introduction") from None
    if not isinstance(found, dict) or set(found) != {"process", "host", "versions", "token"}:
        raise ValueError("said what is no introduction")
    known = found.pop("token")
    if not isinstance(known, str) or not hmac.compare_digest(known.encode(errors="replace"), token.encode()):
        raise ValueError("has another token")
    number, host, versions = found["process"], found["host"], found["versions"]
    if type(number) is not int or not 1 <= number < num_processes:
        raise ValueError(f"is process {number!r:.20}, expected 1 to {num_processes - 1}")
    if not isinstance(host, str) or len(host) > 255:
        raise ValueError("names no host")
    if not isinstance(versions, dict) or not all(isinstance(version, str) for version in versions.values()):
        raise ValueError("names no versions")
    return found


def _missing(place: ProcessTopology, came: Mapping[int, Any], seconds: float, turned_away: list[str]) -> str:
    missing = [place.name(number) for number in range(place.num_processes) if number not in came]
    if not missing:
        return ""
    others = f" (turned away: {', '.join(turned_away[:_MAX_NAMED])})" if turned_away else ""
    return (
        f"hosts: {len(came)} of {place.num_processes} processes came within {seconds:g} s, missing: "
        f"{', '.join(missing)}{others}; start the same command on every host (launch/ does), and if hosts "
        "start far apart, set RADIT_JOIN_SECONDS"
    )


def _differing(came: Mapping[int, Mapping[str, Any]]) -> str:
    first = came[0]
    for number in sorted(came):
        other = came[number]
        for package, version in first["versions"].items():
            if other["versions"].get(package) != version:
                return (
                    f"hosts: expected {package} {version} everywhere, as on {first['host']}, got "
                    f"{other['versions'].get(package)} from {other['host']} (process {number}). Install the "
                    "same versions (-c constraints.txt)."
                )
    return ""


def _report(
    own: Mapping[str, Any], address: tuple[str, int], seconds: float, token: JoinToken, look: Look
) -> Line:
    """Any other process: report to process 0, and hear its verdict.

    Who is turned away, or finds nobody, tries again: process 0 may have just left another token.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        look()
        with contextlib.ExitStack() as undo, contextlib.suppress(OSError, _TurnedAway):
            line = undo.enter_context(Line(socket.create_connection(address, timeout=5)))
            line.send({**own, "token": token.read()})
            # Process 0 may have just begun to wait.
            fault = _verdict(line.receive(time.monotonic() + seconds + 10, look))
            if fault:
                raise ValueError(printable(fault))
            undo.pop_all()
            return line
        time.sleep(_LOOK_SECONDS)
    raise ValueError(
        f"hosts: process {own['process']} on {own['host']} came, missing for {seconds:g} s: process 0 at "
        f"{address[0]}:{address[1]}{_token_remedy(token)}; start the same command on every host (launch/ "
        "does), and let them reach that port"
    )


class _TurnedAway(Exception):
    """Process 0 knows another token, or had too many visitors."""


def _verdict(said: Any) -> str:
    """Process 0's fault, "" where all is well; what is no verdict is another program's."""
    if isinstance(said, dict) and isinstance(said.get("fault"), str):
        return said["fault"]
    raise _TurnedAway


def _token_remedy(token: JoinToken) -> str:
    if token.is_known and not token.read():
        remedy = f"(or set {TOKEN_VARIABLE} on all)"
        return f", with a {TOKEN_FILE} in the workdir, which all hosts have to see {remedy}"
    return ""
