"""A connection between two processes of the program, over which JSON values go both ways."""

import json
import selectors
import socket
import time
from collections.abc import Callable
from typing import Any

LOOK_SECONDS = 0.2  # how often a wait looks whether the program was asked to stop
_KEEPALIVE_SECONDS = 60

Look = Callable[[], None]  # called while a process waits; it may raise to end the wait


class JsonConnection:
    """A TCP connection that carries one JSON value a line. It is closed at the end of a `with` block.

    `received` holds bytes that were read from the socket before.
    """

    def __init__(self, connection: socket.socket, received: bytes = b""):
        self.socket = connection
        self._received = bytearray(received)
        connection.settimeout(None)
        # A process may wait for hours and send nothing, and networks drop silent connections.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_SECONDS)

    def __enter__(self) -> "JsonConnection":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; the other process sees the end of the connection."""
        self.socket.close()

    def send(self, value: Any) -> None:
        """Send a JSON value; OSError where the other process is gone."""
        self.socket.sendall(json.dumps(value).encode() + b"\n")

    def receive(self, deadline: float | None = None, look: Look | None = None) -> Any:
        """The next value from the other process.

        Raises OSError where that process is gone, sends no JSON, or sends nothing by `deadline`
        (`time.monotonic`).
        """
        line = self._receive_line(deadline, look)
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            raise ConnectionError("expected JSON, got another program's bytes") from None

    def _receive_line(self, deadline: float | None, look: Look | None) -> bytes:
        # A line may come in pieces, and several lines at once.
        searched = 0  # bytes that hold no newline
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            if deadline is not None and not _wait_readable(self.socket, deadline, look):
                raise TimeoutError("expected a value in time, got none")
            block = self.socket.recv(1 << 16)
            if not block:
                raise ConnectionError("expected a value, got the end of the connection")
            self._received += block
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line


def _wait_readable(connection: socket.socket, deadline: float, look: Look | None) -> bool:
    """Whether something can be read before the deadline; waits for it."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        while (seconds_left := deadline - time.monotonic()) > 0:
            if selector.select(min(seconds_left, LOOK_SECONDS)):
                return True
            if look is not None:
                look()
    return False
