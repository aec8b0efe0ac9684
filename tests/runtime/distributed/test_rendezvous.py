"""Roll calls over the loopback: honest processes meet, whatever strangers do at the door."""

import concurrent.futures
import contextlib
import json
import pathlib
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from ports import free_port

from radit_jax.errors import Stopped
from radit_jax.runtime.distributed import rendezvous as module
from radit_jax.runtime.distributed.connection import JsonConnection
from radit_jax.runtime.distributed.join_token import JoinToken
from radit_jax.runtime.distributed.rendezvous import introduction, rendezvous
from radit_jax.runtime.distributed.topology import ProcessTopology

SECRET = JoinToken(None, {"RADIT_JOIN_TOKEN": "the token of this program"})


@pytest.fixture
def coordinator() -> str:
    """An address whose port, and the roll call's next to it, are free."""
    return f"127.0.0.1:{free_port()}"


def call(place: ProcessTopology, seconds: float = 20.0, token: JoinToken = SECRET, **changes: str) -> str:
    """The fault that this process hears; '' where all came."""
    own = introduction(place.process_id)
    own = own | {"host": f"host-{place.process_id}", "versions": own["versions"] | changes}
    try:
        for line in rendezvous(place, own, seconds, token).values():
            with line:
                pass
    except ValueError as error:
        return str(error)
    return ""


def call_all(places: list[ProcessTopology], **options) -> list[str]:
    with concurrent.futures.ThreadPoolExecutor(len(places)) as pool:
        return [future.result() for future in [pool.submit(call, place, **options) for place in places]]


def test_all_who_come_go_on(coordinator) -> None:
    assert call_all([ProcessTopology(coordinator, 3, number) for number in (2, 0, 1)]) == ["", "", ""]


def test_a_missing_process_is_named_to_all_who_came(coordinator) -> None:
    places = [ProcessTopology(coordinator, 3, number, ("w-0", "w-1", "w-2")) for number in (0, 2)]
    faults = call_all(places, seconds=0.6)
    message = (
        "hosts: expected 3 processes within 0.6 s, got 2, without process 1 (w-1). Start the same command"
    )
    assert faults[0] == faults[1]
    assert faults[0].startswith(message)


def test_a_missing_first_process_is_named(coordinator) -> None:
    fault = call(ProcessTopology(coordinator, 2, 1), seconds=0.3)
    port = int(coordinator.split(":")[1]) + 1
    assert fault.startswith(
        f"hosts: expected process 0 at 127.0.0.1:{port} within 0.3 s, got no answer to process 1 on host-1."
    )


def test_other_versions_are_an_error_on_every_host(coordinator) -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(call, ProcessTopology(coordinator, 2, 0), jax="0.11.2")
        second = pool.submit(call, ProcessTopology(coordinator, 2, 1), jax="0.10.2")
        assert first.result() == second.result()
    message = "expected jax 0.11.2 everywhere, as on host-0, got 0.10.2 from host-1 (process 1). Install"
    assert message in first.result()


def test_a_number_that_comes_twice_is_refused(coordinator) -> None:
    faults = call_all([ProcessTopology(coordinator, 3, number) for number in (0, 1, 1)], seconds=5.0)
    assert {"got process 1 twice, from host-1 and host-1" in fault for fault in faults} == {True}


def test_a_taken_port_is_said(coordinator) -> None:
    with socket.create_server(("", int(coordinator.split(":")[1]) + 1)):
        fault = call(ProcessTopology(coordinator, 2, 0))
        assert "at which processes report to process 0, to be free, got 'Address already in use'" in fault


def test_a_wait_ends_where_the_program_is_asked_to_stop(coordinator) -> None:
    def look() -> None:
        raise Stopped("at the roll call", 15)

    for number in (0, 1):
        with pytest.raises(Stopped):
            rendezvous(ProcessTopology(coordinator, 2, number), introduction(number), 20.0, SECRET, look)


# ---- the token ----


def test_processes_know_each_other_by_a_file_in_the_workdir(coordinator, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run" / "join-token"
    path.parent.mkdir()
    path.write_text("left by a run that was killed")
    seen: list[int] = []

    class Watched(JoinToken):
        def read(self) -> str:
            seen.append(stat.S_IMODE(path.stat().st_mode) if path.exists() else 0)
            return super().read()

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        late = pool.submit(call, ProcessTopology(coordinator, 2, 1), token=Watched(path, {}))
        time.sleep(0.3)
        assert call(ProcessTopology(coordinator, 2, 0), token=JoinToken(path, {})) == ""
        assert late.result() == ""
    assert seen[-1] == 0o600
    assert not path.parent.exists()  # nothing else was in it


def test_nobody_reaches_the_first_process_before_its_token_can_be_read(
    coordinator, tmp_path: pathlib.Path, monkeypatch
) -> None:
    port, publish = int(coordinator.split(":")[1]) + 1, JoinToken.publish

    def knock(token: JoinToken) -> str:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
        return publish(token)

    monkeypatch.setattr(JoinToken, "publish", knock)
    token = JoinToken(tmp_path / "join-token", {})
    assert call_all([ProcessTopology(coordinator, 2, number) for number in (0, 1)], token=token) == ["", ""]


def test_hosts_that_do_not_see_the_workdir_are_told(coordinator, tmp_path: pathlib.Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(
            call, ProcessTopology(coordinator, 2, 0), 1.0, JoinToken(tmp_path / "a" / "join-token", {})
        )
        second = pool.submit(
            call, ProcessTopology(coordinator, 2, 1), 0.6, JoinToken(tmp_path / "b" / "join-token", {})
        )
        assert (
            "Name a workdir that all hosts see, for its file join-token, or set RADIT_JOIN_TOKEN on"
            in second.result()
        )
        assert "without process 1 (turned away: 127.0.0.1:" in first.result()


def test_a_program_without_a_token_says_that_it_trusts_its_network(coordinator, capsys) -> None:
    trusting = JoinToken(None, {})
    assert call_all([ProcessTopology(coordinator, 2, number) for number in (0, 1)], token=trusting) == [
        "",
        "",
    ]
    assert (
        "hosts: no RADIT_JOIN_TOKEN and no workdir that all see: whoever reaches" in capsys.readouterr().err
    )


# ---- strangers ----


@contextlib.contextmanager
def door(coordinator: str) -> Iterator[Callable[[], socket.socket]]:
    """Process 0 of two waits; inside, strangers may connect to it; then process 1 comes, and both go on."""
    port = int(coordinator.split(":")[1]) + 1
    with concurrent.futures.ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as strangers:
        first = pool.submit(call, ProcessTopology(coordinator, 2, 0))

        def knock() -> socket.socket:
            deadline = time.monotonic() + 5
            while True:
                try:
                    return strangers.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
                except OSError:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)

        yield knock
        started = time.monotonic()
        assert call(ProcessTopology(coordinator, 2, 1)) == ""
        assert first.result() == ""
        assert time.monotonic() - started < 2


def introduced(**changes: object) -> bytes:
    known = {"token": "the token of this program", "host": "x", "versions": {}, "process": 1}
    return json.dumps(known | changes).encode() + b"\n"


SAID = {
    "another protocol": (b"GET / HTTP/1.1\r\n\r\n", "said what is no introduction"),
    "nothing": (b"\n", "said what is no introduction"),
    "no object": (b"[]\n", "said what is no introduction"),
    "an empty object": (b"{}\n", "said what is no introduction"),
    "no UTF-8": (b"\xff\xfe\n", "said what is no introduction"),
    "deep JSON": (b"[" * 9_000 + b"\n", "said what is no introduction"),
    "digits without end": (b"1" * 9_000 + b"\n", "said what is no introduction"),
    "a line without end": (b"x" * 20_000, "said more than 16384 bytes"),
    "no token": (introduced(token=""), "has another token"),
    "a token of another type": (introduced(token=["x"]), "has another token"),
    "half of a pair": (introduced(token="\ud800"), "has another token"),
    "process 99": (introduced(process=99), "is process 99, expected 1 to 1"),
    "process 0": (introduced(process=0), "is process 0, expected 1 to 1"),
    "process -1": (introduced(process=-1), "is process -1, expected 1 to 1"),
    "process 1.0": (introduced(process=1.0), "is process 1.0, expected 1 to 1"),
    "process true": (introduced(process=True), "is process True, expected 1 to 1"),
    "process []": (introduced(process=[]), "is process [], expected 1 to 1"),
    "versions of another type": (introduced(versions=[1]), "names no versions"),
    "a version of another type": (introduced(versions={"jax": {}}), "names no versions"),
    "a host of another type": (introduced(host={}), "names no host"),
    "a host without end": (introduced(host="x" * 300), "names no host"),
}


def test_a_stranger_is_named_and_turned_away_whatever_it_says(coordinator, capsys, monkeypatch) -> None:
    monkeypatch.setattr(module, "_MAX_NAMED", 99)
    with door(coordinator) as knock:
        for said, _ in SAID.values():
            with contextlib.suppress(OSError), knock() as stranger:
                stranger.sendall(said)
                assert json.loads(stranger.makefile("rb").readline() or "{}") in ({}, {"turned_away": True})
    named = capsys.readouterr().err.splitlines()
    assert [line.partition(" (")[2] for line in named] == [f"{reason})" for _, reason in SAID.values()]
    assert all(line.startswith("hosts: turned away 127.0.0.1:") for line in named)


def test_who_says_nothing_or_a_letter_at_a_time_keeps_nobody_waiting(
    coordinator, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(module, "_SECONDS_TO_SPEAK", 0.4)
    with door(coordinator) as knock:
        silent, slow = knock(), knock()
        for _ in range(8):
            time.sleep(0.1)
            with contextlib.suppress(OSError):
                slow.sendall(b"{")
        assert silent.recv(99) == b'{"turned_away": true}\n'
        knock()  # and one more that is silent while ours comes
    assert capsys.readouterr().err.count("said nothing whole within 0.4 s") == 2


def test_a_flood_keeps_nobody_out(coordinator, capsys) -> None:
    with door(coordinator) as knock:
        for _ in range(3 * module._MAX_VISITORS):
            knock()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == module._MAX_NAMED + 1
    assert "was one of too many at once" in said[0] and said[-1].startswith("hosts: turned away 12")


def test_control_characters_of_a_stranger_are_shown_escaped(coordinator, capsys) -> None:
    with door(coordinator) as knock:
        stranger = knock()
        stranger.sendall(introduced(process="\x1b[2J"))
        stranger.recv(99)
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("said", [b'"HTTP/1.1 400"\n', b"HTTP/1.1 400 Bad Request\r\n", b"\xff\n"])
def test_one_who_answers_in_the_place_of_the_first_process_is_none(coordinator, said) -> None:
    """Another program at the port: process 1 goes on looking for its own, and then says who is missing."""
    port = int(coordinator.split(":")[1]) + 1
    with socket.create_server(("127.0.0.1", port)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = server.accept()[0]
                    connection.sendall(said)
                    connection.close()

        threading.Thread(target=answer, daemon=True).start()
        assert "within 0.5 s, got no answer to process 1" in call(
            ProcessTopology(coordinator, 2, 1), seconds=0.5
        )


# ---- lines ----


def test_what_is_sent_in_pieces_is_received_whole() -> None:
    one, other = connected()
    with JsonConnection(one) as line, other:
        threading.Thread(
            target=lambda: [other.sendall(piece) for piece in (b'{"a"', b": 1}\n[2", b"]\n")]
        ).start()
        assert [line.receive(), line.receive()] == [{"a": 1}, [2]]
        with pytest.raises(TimeoutError):
            line.receive(time.monotonic() + 0.05)
        other.close()
        with pytest.raises(ConnectionError):
            line.receive()


def connected() -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection over the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one, server.accept()[0]
