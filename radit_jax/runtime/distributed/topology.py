"""This process's number among the program's: from the command line, SLURM, GKE or a TPU's metadata server."""

import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

_PORT = 8482  # of jax's coordinator on process 0's host; the rendezvous is at the port after it
_SLURM_FIRST_PORT, _SLURM_PORTS = 61_000, 4_000
_TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")
_METADATA_TIMEOUT_SECONDS = 5


class ProcessTopology(NamedTuple):
    """One process's place among those of the program."""

    coordinator: str  # host:port of process 0
    num_processes: int
    process_id: int
    hosts: tuple[str, ...] = ()  # by process, where each host runs one process and names are known
    local_device: int | None = None  # the only device of this process; None: all of its host's

    def name(self, process_id: int) -> str:
        """For example `process 3 (worker-3)`."""
        # Only where every process has a host of its own.
        if len(self.hosts) != self.num_processes:
            return f"process {process_id}"
        return f"process {process_id} ({self.hosts[process_id]})"


def on_tpu_host() -> bool:
    """Whether this machine has a TPU's devices."""
    return any(Path(device).exists() for device in _TPU_DEVICES)


def find_topology(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> ProcessTopology | None:
    """This process's topology from the command's options, else from SLURM's or the TPU's environment.

    None where the program is one process; `num_processes=1` makes it one on any machine.
    """
    if num_processes == 1:
        return None
    options = (coordinator, num_processes, process_id)
    if any(option is not None for option in options):
        return _topology_from_options(*options)
    topology = _slurm_topology(environment) or _tpu_topology(environment)
    return topology if topology and topology.num_processes > 1 else None


# ---- the command line ----


def _topology_from_options(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> ProcessTopology:
    expected = "expected --coordinator=HOST:PORT, --num-processes=N and --process-id=0 to N-1"
    if coordinator is None or num_processes is None or process_id is None:
        raise ValueError(f"hosts: {expected}, got only a part of them. Give all three, or none.")
    address = re.fullmatch(r"[^\s:]+:(\d{1,5})", coordinator)
    # The port after the coordinator's has to be one, too.
    is_port = address is not None and 0 < int(address[1]) < 65_535
    if not is_port or not 0 <= process_id < num_processes:
        raise ValueError(
            f"hosts: {expected}, got --coordinator={coordinator} --num-processes={num_processes} "
            f"--process-id={process_id}. Number the processes from 0, and name one port for all."
        )
    return ProcessTopology(coordinator, num_processes, process_id)


# ---- SLURM ----


def _slurm_topology(environment: Mapping[str, str]) -> ProcessTopology | None:
    """The topology in srun's variables.

    None in the shell of `salloc`, which sets no task number or is a step of one task: it runs alone.
    """
    if "SLURM_PROCID" not in environment:
        return None
    # A step may have fewer tasks than its job.
    is_step = "SLURM_STEP_NODELIST" in environment
    has_step_tasks = is_step and "SLURM_STEP_NUM_TASKS" in environment
    num_tasks = _slurm_number(environment, "SLURM_STEP_NUM_TASKS" if has_step_tasks else "SLURM_NTASKS")
    if num_tasks < 2:
        return None
    if not is_step:
        raise ValueError(
            f"hosts: expected this process to be one of SLURM's {num_tasks} tasks, got a process outside of "
            "them. Start it with srun, or give --num-processes=1 to use this host alone."
        )
    nodes = expand_nodes(environment["SLURM_STEP_NODELIST"])
    # Two jobs on one node have different ports.
    port = _SLURM_FIRST_PORT + _slurm_number(environment, "SLURM_JOB_ID") % _SLURM_PORTS
    # With several tasks a node, each task has the GPU of its number on the node.
    shares_nodes = num_tasks > len(nodes)
    return ProcessTopology(
        coordinator=f"{nodes[0]}:{port}",
        num_processes=num_tasks,
        process_id=_slurm_number(environment, "SLURM_PROCID"),
        hosts=nodes if len(nodes) == num_tasks else (),
        local_device=_slurm_number(environment, "SLURM_LOCALID") if shares_nodes else None,
    )


def _slurm_number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not re.fullmatch(r"\d{1,9}", text):
        raise ValueError(
            f"hosts: expected a number in SLURM's {name}, got {text!r}. Start the program with srun, or "
            "give --num-processes=1 to use this host alone."
        )
    return int(text)


def expand_nodes(node_list: str) -> tuple[str, ...]:
    """The names in SLURM's short form of a list of nodes.

    >>> expand_nodes("gpu[08-10,20],big1,rack[1-2]node[3-4]")
    ('gpu08', 'gpu09', 'gpu10', 'gpu20', 'big1', 'rack1node3', 'rack1node4', 'rack2node3', 'rack2node4')
    """
    patterns = re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", node_list)
    names: list[str] = []
    for pattern in patterns:
        names += _expand_pattern(pattern)
    return tuple(names)


def _expand_pattern(pattern: str) -> list[str]:
    """All names of one pattern; the first bracket varies slowest."""
    prefix, bracket, rest = pattern.partition("[")
    if not bracket:
        return [pattern]
    ranges, _, suffix = rest.partition("]")
    suffixes = _expand_pattern(suffix)
    names = []
    for span in ranges.split(","):
        first, _, last = span.partition("-")
        width = len(first)  # numbers keep their leading zeros
        for number in range(int(first), int(last or first) + 1):
            names += [f"{prefix}{number:0{width}d}{end}" for end in suffixes]
    return names


# ---- TPUs ----


def _tpu_topology(environment: Mapping[str, str]) -> ProcessTopology | None:
    """The topology that GKE sets, or a TPU VM's metadata server gives; several slices are one program."""
    names = environment.get("TPU_WORKER_HOSTNAMES")
    worker = environment.get("TPU_WORKER_ID")
    has_tpu = on_tpu_host()
    if names is None and has_tpu:
        names = _read_metadata("worker-network-endpoints")
        worker = _read_metadata("agent-worker-number")
        environment = _tpu_environment() | dict(environment)
    if not names or not worker:
        return None
    # GKE gives hosts; a TPU VM gives `name:number:address`.
    addresses = [name.split(":")[-1] for name in names.split(",")]
    hosts = tuple(address.strip() for address in addresses)
    num_slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1)
    slice_id = int(environment.get("MEGASCALE_SLICE_ID") or 0)
    first_address = environment.get("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]
    first_host = first_address.split(":")[0]
    return ProcessTopology(
        coordinator=f"{first_host}:{_PORT}",
        num_processes=len(hosts) * num_slices,
        process_id=slice_id * len(hosts) + int(worker),
        hosts=hosts if num_slices == 1 else (),  # the other slices' hosts are not known here
    )


def _tpu_environment() -> dict[str, str]:
    """What a TPU VM's metadata server would have in its environment: the slices of a queued resource, too."""
    # A line is NAME: 'VALUE'.
    lines = (_read_metadata("tpu-env") or "").splitlines()
    variables = {}
    for line in lines:
        name, _, value = line.partition(":")
        variables[name.strip()] = value.strip().strip("'")
    return variables


def _read_metadata(key: str) -> str | None:
    """An attribute of this virtual machine; None where there is no such server or attribute."""
    # The variable is that of Google's own client libraries.
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/{key}", headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_METADATA_TIMEOUT_SECONDS) as answer:
            return answer.read().decode().strip()
    except (urllib.error.URLError, TimeoutError):
        return None
