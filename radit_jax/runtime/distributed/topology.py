"""Which process of how many this is: by the command line, SLURM, GKE or a TPU's metadata server."""

import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from radit_jax.runtime.distributed.rendezvous import (
    ProcessTopology,
)

_PORT = 8482  # of jax' coordinator on process 0's host; the roll call is at the next one
_TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")


# ---- which place ----


def find_topology(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> ProcessTopology | None:
    """This process's place by what the command says, else by SLURM's or the TPU's environment.

    None where the program is one process, which `num_processes=1` says of any machine.
    """
    told = (coordinator, num_processes, process_id)
    if num_processes == 1:
        return None
    if any(value is not None for value in told):
        return _told_topology(*told)
    place = _slurm_topology(environment) or _tpu_topology(environment)
    return place if place and place.num_processes > 1 else None


def _told_topology(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> ProcessTopology:
    wanted = "needed are --coordinator=HOST:PORT, --num-processes=N and --process-id=0 to N-1"
    if coordinator is None or num_processes is None or process_id is None:
        raise ValueError(f"hosts: a part of the process's place came, {wanted}; give all three, or none")
    found = re.fullmatch(r"[^\s:]+:(\d{1,5})", coordinator)
    if not found or not 0 < int(found[1]) < 65_535 or not 0 <= process_id < num_processes:
        came = f"--coordinator={coordinator} --num-processes={num_processes} --process-id={process_id}"
        raise ValueError(f"hosts: {came} came, {wanted}; correct them")
    return ProcessTopology(coordinator, num_processes, process_id)


def _slurm_topology(environment: Mapping[str, str]) -> ProcessTopology | None:
    """By srun's variables. The shell of `salloc` has none, or is a step of one task: it runs alone."""

    def number(name: str) -> int:
        text = environment.get(name, "")
        if not re.fullmatch(r"\d{1,9}", text):
            raise ValueError(
                f"hosts: expected a number in SLURM's {name}, got {text!r}. Start the program with srun, or "
                "give --num-processes=1 to use this host alone."
            )
        return int(text)

    if "SLURM_PROCID" not in environment:
        return None
    is_step = "SLURM_STEP_NODELIST" in environment
    # A step may have fewer tasks than the job.
    count = number(
        "SLURM_STEP_NUM_TASKS" if is_step and "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    )
    if count < 2:
        return None
    if not is_step:
        raise ValueError(
            f"hosts: SLURM gave {count} tasks, but this process is none of them; start it with srun, or give "
            "--num-processes=1 to use this host alone"
        )
    nodes = expand_nodes(environment["SLURM_STEP_NODELIST"])
    port = 61_000 + number("SLURM_JOB_ID") % 4_000  # two jobs on one node do not meet
    return ProcessTopology(
        f"{nodes[0]}:{port}",
        count,
        number("SLURM_PROCID"),
        nodes if len(nodes) == count else (),
        number("SLURM_LOCALID") if count > len(nodes) else None,
    )


def expand_nodes(node_list: str) -> tuple[str, ...]:
    """The names in SLURM's short form.

    >>> expand_nodes("gpu[08-10,20],big1,rack[1-2]node[3-4]")
    ('gpu08', 'gpu09', 'gpu10', 'gpu20', 'big1', 'rack1node3', 'rack1node4', 'rack2node3', 'rack2node4')
    """
    whole = re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", node_list)
    return tuple(name for names in whole for name in _expand(names))


def _expand(names: str) -> list[str]:
    """All names of one pattern, its first bracket before those behind it."""
    before, bracket, rest = names.partition("[")
    if not bracket:
        return [names]
    numbers, _, behind = rest.partition("]")
    found = []
    for part in numbers.split(","):
        first, _, last = part.partition("-")
        some = range(int(first), int(last or first) + 1)
        found += [f"{before}{n:0{len(first)}d}{end}" for n in some for end in _expand(behind)]
    return found


def _tpu_topology(environment: Mapping[str, str]) -> ProcessTopology | None:
    """By what GKE sets, or by what a TPU VM's metadata server says; several slices are one program."""
    names, worker = environment.get("TPU_WORKER_HOSTNAMES"), environment.get("TPU_WORKER_ID")
    if names is None and any(Path(device).exists() for device in _TPU_DEVICES):
        names, worker = _metadata("worker-network-endpoints"), _metadata("agent-worker-number")
    if not names or not worker:
        return None
    # A TPU VM gives hosts, or `name:number:address`.
    hosts = tuple(name.split(":")[-1].strip() for name in names.split(","))
    slices = int(environment.get("MEGASCALE_NUM_SLICES", "1"))
    first = environment.get("MEGASCALE_COORDINATOR_ADDRESS", hosts[0]).split(":")[0]
    number = int(environment.get("MEGASCALE_SLICE_ID", "0")) * len(hosts) + int(worker)
    return ProcessTopology(f"{first}:{_PORT}", len(hosts) * slices, number, hosts if slices == 1 else ())


def _metadata(key: str) -> str | None:
    """An attribute of this virtual machine; None where there is no such server or attribute."""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/{key}", headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode().strip()
    except (urllib.error.URLError, TimeoutError):
        return None
