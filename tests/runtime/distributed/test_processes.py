"""Places by hand-written environments, and processes that keep step over sockets of the loopback."""

import concurrent.futures
import contextlib
import http.server
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ports import free_port

from radit_jax.runtime.distributed import processes, topology
from radit_jax.runtime.distributed.connection import JsonConnection
from radit_jax.runtime.distributed.processes import (
    ProcessGroup,
    ProcessTopology,
    Stopped,
    deferring_stops,
    handling_signals,
)
from radit_jax.runtime.distributed.topology import expand_nodes, find_topology

ROOT = pathlib.Path(__file__).parents[3]
SLURM = {
    "SLURM_JOB_ID": "4007",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "gpu[08-10]",
}
GKE = {"TPU_WORKER_HOSTNAMES": "job-0.svc,job-1.svc", "TPU_WORKER_ID": "1"}


@pytest.fixture
def coordinator() -> str:
    """An address whose port, and the roll call's behind it, are free."""
    return f"127.0.0.1:{free_port()}"


# ---- which place ----


def test_a_machine_by_itself_has_no_place() -> None:
    assert find_topology(environment={}) is None
    assert find_topology(environment={"SLURM_NTASKS": "1"}) is None
    assert find_topology(environment={"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}) is None


def test_the_command_names_a_place_whatever_the_environment() -> None:
    assert find_topology("h:1", 4, 3, environment=SLURM) == ProcessTopology("h:1", 4, 3)
    assert find_topology(num_processes=1, environment=SLURM) is None


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (("h:1", None, 0), "expected --coordinator=HOST:PORT, .*, got only a part of them. Give all three"),
        (("h:1", 2, 2), "got --coordinator=h:1 --num-processes=2 --process-id=2. Number"),
        (("h:65535", 2, 0), "--coordinator=h:65535 --num-processes=2"),
        (("h:0", 2, 0), "--coordinator=h:0 --num-processes=2"),
        (("h", 2, 0), "got --coordinator=h --num-processes=2 --process-id=0. Number"),
    ],
)
def test_a_place_that_is_none_is_refused(told, message) -> None:
    with pytest.raises(ValueError, match=message):
        find_topology(*told, environment={})


def test_slurm_gives_a_place_and_all_gpus_to_the_only_task_of_a_node() -> None:
    expected = ProcessTopology("gpu08:61007", 3, 2, ("gpu08", "gpu09", "gpu10"), None)
    assert find_topology(environment=SLURM) == expected
    assert expected.name(1) == "process 1 (gpu09)"


def test_slurm_gives_one_gpu_to_each_of_several_tasks_of_a_node() -> None:
    place = find_topology(environment=SLURM | {"SLURM_STEP_NODELIST": "gpu7", "SLURM_LOCALID": "2"})
    assert place == ProcessTopology("gpu7:61007", 3, 2, (), 2)
    assert place is not None and place.name(1) == "process 1"


def test_a_batch_script_without_srun_is_refused() -> None:
    with pytest.raises(
        ValueError, match="expected this process to be one of SLURM's 3 tasks, got .* Start it with srun"
    ):
        find_topology(environment={"SLURM_NTASKS": "3", "SLURM_JOB_ID": "1", "SLURM_PROCID": "0"})


def test_a_shell_of_salloc_runs_alone() -> None:
    assert find_topology(environment={"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2"}) is None
    interactive = SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "gpu08"}
    assert find_topology(environment=interactive) is None


def test_a_step_has_as_many_processes_as_its_own_tasks() -> None:
    step = SLURM | {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "3"}
    assert find_topology(environment=step) == find_topology(environment=SLURM)


def test_a_variable_of_slurms_that_is_no_number_is_named() -> None:
    with pytest.raises(ValueError, match="expected a number in SLURM's SLURM_PROCID, got 'x'. Start"):
        find_topology(environment=SLURM | {"SLURM_PROCID": "x"})


@pytest.mark.parametrize(
    ("short", "names"),
    [
        ("one", ("one",)),
        ("a1,b2", ("a1", "b2")),
        ("n[1,3],m[098-101]", ("n1", "n3", "m098", "m099", "m100", "m101")),
        ("r[1-2]-ib", ("r1-ib", "r2-ib")),
        ("r[1-2]n[08,10],s", ("r1n08", "r1n10", "r2n08", "r2n10", "s")),
    ],
)
def test_slurms_short_lists_of_nodes_are_expanded(short, names) -> None:
    assert expand_nodes(short) == names


def test_gke_gives_a_place() -> None:
    assert find_topology(environment=GKE) == ProcessTopology(
        "job-0.svc:8482", 2, 1, ("job-0.svc", "job-1.svc")
    )


def test_slices_are_one_program() -> None:
    several = {"MEGASCALE_NUM_SLICES": "3", "MEGASCALE_SLICE_ID": "2", "MEGASCALE_COORDINATOR_ADDRESS": "z:9"}
    assert find_topology(environment=GKE | several) == ProcessTopology("z:8482", 6, 5)


def test_a_tpu_vm_learns_its_place_from_the_metadata_server(monkeypatch, tmp_path) -> None:
    answers = {"worker-network-endpoints": "w0:1:10.0.0.7,w1:2:10.0.0.8", "agent-worker-number": "1"}

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/computeMetadata/v1/instance/attributes/")
            known = name in answers and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(answers.get(name, "").encode())

        def log_message(self, format: str, *_: object) -> None: ...

    (tmp_path / "accel0").touch()
    monkeypatch.setattr(topology, "_TPU_DEVICES", (str(tmp_path / "accel0"),))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
        assert find_topology(environment={}) == ProcessTopology(
            "10.0.0.7:8482", 2, 1, ("10.0.0.7", "10.0.0.8")
        )
        # A queued resource with several slices.
        answers["tpu-env"] = (
            "ZONE: 'z'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
            "MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.3:8080'\n"
        )
        assert find_topology(environment={}) == ProcessTopology("10.0.0.3:8482", 4, 3)
        answers.clear()  # a machine with a TPU that is no cloud's
        assert find_topology(environment={}) is None
        server.shutdown()


# ---- keeping step ----


@contextlib.contextmanager
def programs(count: int = 3) -> Iterator[list[ProcessGroup]]:
    """Processes that have met, process 0 first."""
    with contextlib.ExitStack() as connections:
        first, *others = (
            ProcessGroup(ProcessTopology("h:1", count, number, ("a", "b", "c"))) for number in range(count)
        )
        for number, other in enumerate(others, 1):
            first.connections[number], other.connections[0] = (
                connections.enter_context(JsonConnection(end)) for end in connected()
            )
        yield [first, *others]


def connected() -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection over the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one, server.accept()[0]


def all_do(processes: list[ProcessGroup], act: Callable[[ProcessGroup], Any]) -> list[Any]:
    """What each returns or raises."""

    def outcome(process: ProcessGroup) -> Any:
        try:
            return act(process)
        except (ValueError, Stopped) as error:
            return f"{type(error).__name__}: {error}"

    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(outcome, processes))


def test_the_first_works_and_all_know_what_it_found() -> None:
    calls = []
    with programs() as processes:
        found = all_do(
            processes, lambda p: p.on_process_zero("here", lambda: calls.append(1) or {"a": [0.1, None]})
        )
    assert found == [{"a": [0.1, None]}] * 3
    assert calls == [1]


def test_what_the_first_cannot_do_is_an_error_on_all() -> None:
    def fail() -> None:
        raise ValueError("lock: in use")

    with programs() as processes:
        assert (
            all_do(processes, lambda p: p.on_process_zero("here", fail)) == ["ValueError: lock: in use"] * 3
        )
        assert all_do(processes, lambda p: p.broadcast("there", 5)) == [5] * 3


def test_work_is_shared_by_all_but_what_the_first_does_by_itself() -> None:
    assert ProcessGroup().index_and_count == (0, 1)
    with programs() as processes:
        assert [process.index_and_count for process in processes] == [(0, 3), (1, 3), (2, 3)]
        assert (
            all_do(processes, lambda p: p.on_process_zero("here", lambda: list(p.index_and_count)))
            == [[0, 1]] * 3
        )


def test_each_does_its_share_apart_and_all_know_all_results() -> None:
    def work(process: ProcessGroup) -> list[list[int]]:
        index, count = process.index_and_count
        return process.on_each_process("here", lambda: [index, count, *process.index_and_count])

    with programs() as processes:
        # The last process was the first to join.
        joined = processes[0].connections
        processes[0].connections = dict(reversed(joined.items()))
        assert all_do(processes, work) == [[[0, 3, 0, 1], [1, 3, 0, 1], [2, 3, 0, 1]]] * 3


def test_what_one_of_all_cannot_do_is_an_error_on_all() -> None:
    def work(index: int) -> int:
        if index:
            raise ValueError(f"file {index}: damaged")
        return index

    def act(process: ProcessGroup) -> list[int]:
        index, _ = process.index_and_count
        return process.on_each_process("here", lambda: work(index))

    with programs() as processes:
        faults = all_do(processes, act)
        assert faults == ["ValueError: file 1: damaged"] * 3
        assert all_do(processes, lambda p: p.broadcast("there", 5)) == [5] * 3


def test_shares_come_back_in_the_order_of_their_items(monkeypatch) -> None:
    monkeypatch.setattr(processes, "_process_group", ProcessGroup())
    assert processes.in_shares("here", [3, 1, 2], lambda own: [2 * item for item in own]) == [6, 2, 4]
    group = ProcessGroup(ProcessTopology("h:1", 2, 1))
    monkeypatch.setattr(group, "_meet", lambda where, own: [{"value": ["a", "c"], "fault": ""}, own])
    monkeypatch.setattr(processes, "_process_group", group)
    assert processes.in_shares("here", "xbz", lambda own: list(own)) == ["a", "b", "c"]


def test_what_the_first_does_by_itself_waits_for_nobody() -> None:
    with programs() as processes:
        inner = all_do(
            processes,
            lambda p: p.on_process_zero("out", lambda: p.on_process_zero("in", lambda: p.broadcast("x", 7))),
        )
    assert inner == [7] * 3


def test_all_stop_where_one_was_asked_to() -> None:
    with programs() as processes:
        processes[2].note_signal(signal.SIGTERM)
        stopped = all_do(processes, lambda p: p.broadcast("embed/ab"))
    assert stopped == ["Stopped: at embed/ab; what was finished is kept"] * 3


def test_the_first_stops_between_units_of_its_own_work_and_all_with_it() -> None:
    done = []

    def work() -> None:
        for unit in range(3):
            processes[0].stop_if_asked("corpus")
            done.append(unit)
            processes[0].note_signal(signal.SIGTERM)

    with programs() as processes:
        stopped = all_do(processes, lambda p: p.on_process_zero("corpus", work))
    assert stopped == ["Stopped: at corpus; what was finished is kept"] * 3
    assert done == [0]


def test_a_process_among_others_stops_only_where_all_meet() -> None:
    with programs() as processes:
        processes[1].note_signal(signal.SIGTERM)
        processes[1].stop_if_asked("its own shard")
        assert {said.partition(":")[0] for said in all_do(processes, lambda p: p.broadcast("x"))} == {
            "Stopped"
        }


def test_what_the_system_refuses_the_first_is_a_line_on_all() -> None:
    with programs() as processes:
        said = all_do(processes, lambda p: p.on_process_zero("here", lambda: open("/no/such/file").close()))
    assert said == ["ValueError: /no/such/file: No such file or directory. Name a path that is there."] * 3


def test_a_process_that_is_gone_is_named_by_who_waits_for_it() -> None:
    with programs(2) as (first, second):
        second.connections[0].close()
        [fault] = all_do([first], lambda p: p.broadcast("here"))
    assert fault.startswith(
        "ValueError: hosts: expected all 2 processes, got no answer from process 1, which is gone. Look"
    )


def test_a_signal_stops_a_process_by_itself_where_it_looks() -> None:
    done = []
    with pytest.raises(Stopped, match="at embed; what was finished is kept") as stop, handling_signals():
        for unit in range(3):
            processes.stop_if_asked("embed")
            done.append(unit)
            signal.raise_signal(signal.SIGTERM)
    assert done == [0] and stop.value.code == 75
    assert not processes.stop_asked() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_write_looks_too_and_a_training_loop_keeps_its_state_first() -> None:
    with pytest.raises(Stopped), handling_signals():
        signal.raise_signal(signal.SIGTERM)
        with deferring_stops():
            assert processes.stop_asked()
            assert processes.on_process_zero("a checkpoint", lambda: "kept") == "kept"
        processes.on_process_zero("a shard", lambda: pytest.fail("a write after a stop"))


def test_a_download_ends_where_a_signal_finds_it() -> None:
    where = "the download of a/b"
    with (
        pytest.raises(Stopped, match=f"^at {where};"),
        handling_signals(),
        processes.stopping_at_once(where),
    ):
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("it went on")


def test_ctrl_c_says_that_the_same_command_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in a script's background
    with pytest.raises(Stopped) as stop, handling_signals():
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL  # the second ends the process at once
        processes.barrier("embed")
    assert stop.value.code == 130
    assert stop.value.line == (
        "stopped by Ctrl-C at embed; what was finished is kept. The same command goes on."
    )
    assert "the same command goes on. Ctrl-C again ends it at once." in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) == before


# ---- real processes ----

PROGRAM = """
import pathlib, sys
from radit_jax.runtime.distributed.processes import join_processes
from radit_jax.runtime.distributed.topology import find_topology
place = find_topology(sys.argv[1], 2, int(sys.argv[2]))
assert "jax" not in sys.modules
join_processes(place)
import jax
from jax.experimental import multihost_utils
total = multihost_utils.process_allgather(jax.numpy.float32(jax.process_index() + 1)).sum()
pathlib.Path(sys.argv[3]).write_text(f"{jax.process_count()} {jax.device_count()} {int(total)}")
"""


def test_two_processes_compute_as_one_program(coordinator, tmp_path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, coordinator, str(number), str(tmp_path / str(number))],
            env=environment | {"JAX_PLATFORMS": "cpu"},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in (0, 1)
    ]
    for number, (printed, _) in enumerate([process.communicate(timeout=120) for process in started]):
        assert started[number].returncode == 0, printed
        assert (tmp_path / str(number)).read_text() == "2 4 3"
