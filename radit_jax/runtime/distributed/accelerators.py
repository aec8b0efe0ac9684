"""Chips and their hosts: peak FLOP/s, memory, the machines to plan for, and stand-ins for their devices."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from radit_jax.runtime.distributed.gpus import MEMORY_FRACTION


@dataclass(frozen=True)
class Chip:
    """One kind of chip, and the host that it is rented with."""

    kind: Literal["tpu", "gpu"]
    memory: float  # bytes that a program can use
    flops: float  # bfloat16 operations per second, dense
    bandwidth: float  # bytes per second between the chip and its memory
    chips_per_host: int
    host_memory: float  # bytes
    host_disk: float  # bytes; of a boot disk where nothing else comes with the host


GB, GIB, TERA = 1e9, float(1 << 30), 1e12

# Peak bfloat16 operations per second of one chip, dense. TPUs: Google's pages on Cloud TPU's versions. GPUs:
# NVIDIA's data sheets, half of what is printed there for sparse matrices.
PEAK_FLOPS = {
    "v4": 275 * TERA,
    "v5e": 197 * TERA,
    "v5p": 459 * TERA,
    "v6e": 918 * TERA,
    "a100": 312 * TERA,
    "h100": 989 * TERA,
    "h100-pcie": 756 * TERA,
    "h200": 989 * TERA,
    "gh200": 989 * TERA,
    "l4": 121 * TERA,
}
# What jax calls a device, as a pattern, and its chip. TPUs before v4 are left out: there a device is a core.
CHIP_OF_DEVICE_KIND = {
    r"TPU v4": "v4",
    r"TPU v5( lite|e)": "v5e",
    r"TPU v5p?": "v5p",
    r"TPU v6( lite|e)": "v6e",
    r"NVIDIA A100.*": "a100",
    r"NVIDIA H100 PCIe": "h100-pcie",
    r"NVIDIA H100 80GB HBM3": "h100",
    r"NVIDIA H200.*": "h200",
    r"NVIDIA GH200.*": "gh200",
    r"NVIDIA L4": "l4",
}

# Memory, bandwidth and hosts. TPUs: Google's pages on Cloud TPU's versions and machine types; hosts are those
# of a slice with several; the disk is a TPU VM's boot disk. GPUs: NVIDIA's data sheets, and Google's
# a2-ultragpu-8g, a3-highgpu-8g and a3-ultragpu-8g with their local disks. A TPU's memory is what its compiler
# lets a program use, and a GPU's is the share that commands let jax take.
CHIPS = {
    "v4": Chip("tpu", 31.75 * GIB, PEAK_FLOPS["v4"], 1228 * GB, 4, 407 * GB, 100 * GB),
    "v5e": Chip("tpu", 15.75 * GIB, PEAK_FLOPS["v5e"], 819 * GB, 4, 192 * GB, 100 * GB),
    "v5p": Chip("tpu", 95.74 * GIB, PEAK_FLOPS["v5p"], 2765 * GB, 4, 448 * GB, 100 * GB),
    "v6e": Chip("tpu", 31.25 * GIB, PEAK_FLOPS["v6e"], 1640 * GB, 4, 720 * GB, 100 * GB),
    "a100": Chip("gpu", MEMORY_FRACTION * 80 * GB, PEAK_FLOPS["a100"], 2039 * GB, 8, 1360 * GB, 3000 * GB),
    "h100": Chip("gpu", MEMORY_FRACTION * 80 * GB, PEAK_FLOPS["h100"], 3350 * GB, 8, 1872 * GB, 6000 * GB),
    "h200": Chip("gpu", MEMORY_FRACTION * 141 * GB, PEAK_FLOPS["h200"], 4800 * GB, 8, 2952 * GB, 12_000 * GB),
}
# Bytes of memory of hosts that are a whole slice, by kind and number of chips: Google's ct5lp-hightpu-1t and
# -8t, ct6e-standard-1t and -8t. Elsewhere a host has the four chips of `CHIPS`.
WHOLE_SLICE_HOSTS = {
    ("v5e", 1): 48 * GB,
    ("v5e", 8): 384 * GB,
    ("v6e", 1): 176 * GB,
    ("v6e", 8): 1440 * GB,
}
# Virtual CPUs of a host, by the same pages; of hosts that are a whole slice where they have other numbers.
HOST_CPUS = {"v4": 240, "v5e": 112, "v5p": 208, "v6e": 180, "a100": 96, "h100": 208, "h200": 224}
WHOLE_SLICE_CPUS = {("v5e", 1): 24, ("v5e", 8): 224, ("v6e", 1): 44}


class Links(NamedTuple):
    """Bytes a second that a chip can receive: from the others of its slice or node, and from other hosts."""

    ici: float
    dcn: float


# TPUs: Google's pages, half of what is said for both directions; GPUs: NVLink by NVIDIA's data sheets,
# likewise, and the network of the same machine types, divided by their eight GPUs.
LINKS = {
    "v4": Links(300 * GB, 6.25 * GB),
    "v5e": Links(200 * GB, 3.125 * GB),
    "v5p": Links(600 * GB, 6.25 * GB),
    "v6e": Links(400 * GB, 12.5 * GB),
    "a100": Links(300 * GB, 1.5625 * GB),
    "h100": Links(450 * GB, 12.5 * GB),
    "h200": Links(450 * GB, 50 * GB),
}
CORES_PER_CHIP = {"v4": 2, "v5p": 2}  # of TPUs whose slices are named by cores: v5p-16 has 8 chips
# Chips of a slice, and its topology as libtpu names it.
SQUARES = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBES = {
    1: "1x1x1",
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
}
SHAPES = {"v4": CUBES, "v5p": CUBES, "v5e": SQUARES, "v6e": SQUARES}


def peak_flops(device_kind: str) -> float | None:
    """Peak operations per second of a device by jax's name for its kind; None where it is not listed.

    >>> peak_flops("TPU v5 lite"), peak_flops("cpu")
    (197000000000000.0, None)
    """
    for pattern, chip in CHIP_OF_DEVICE_KIND.items():
        if re.fullmatch(pattern, device_kind):
            return PEAK_FLOPS[chip]
    return None


@dataclass(frozen=True)
class Target:
    """A number of chips of one kind, which a run can be planned for."""

    name: str  # as it is rented
    chip: Chip
    num_chips: int  # of all slices
    topology: str = ""  # of one TPU slice, as libtpu names it
    num_slices: int = 1  # TPU slices, or nodes of GPUs
    kind: str = ""  # of its chips, as `CHIPS` names it
    cpus: int = 1  # of a host

    @property
    def num_hosts(self) -> int:
        """Hosts with these chips; a slice has whole hosts, and its last one may be partly used."""
        chips_per_slice = self.num_chips // self.num_slices
        hosts_per_slice = -(-chips_per_slice // self.chip.chips_per_host)
        return self.num_slices * hosts_per_slice


def find_target(name: str, slices: int = 1, hosts: int = 0) -> Target:
    """The target of that name: TPU slices by their accelerator type, or GPUs by kind and number.

    GPUs are in nodes, which the slower network joins, as it joins `slices` of a TPU. With `hosts` the name is
    a kind, and the target has all chips of so many hosts.

    >>> find_target("v5p-16").num_chips, find_target("v5e-256").topology, find_target("h100-16").num_slices
    (8, 'v5e:16x16', 2)
    >>> find_target("v5e", hosts=64).name, find_target("h100", hosts=8).name
    ('v5e-256', 'h100-64')
    """
    if hosts:
        name = _name_with_hosts(name, slices, hosts)
    match = re.fullmatch(r"(\w+)-(\d+)", name)
    if not match or match[1] not in CHIPS:
        raise ValueError(
            f"--target: expected KIND-NUMBER of a kind among {', '.join(CHIPS)}, got {name!r}. "
            "Write it like v5e-256 or h100-8."
        )
    kind, number = match[1], int(match[2])
    # GPUs come in any number.
    topologies = SHAPES.get(kind)
    if topologies is None:
        if number == 0:
            raise ValueError(f"--target: expected at least one chip, got {name!r}. Name {kind}-1 or more.")
        return _gpu_target(name, kind, number, slices)
    # A TPU comes in slices of certain sizes only.
    cores_per_chip = CORES_PER_CHIP.get(kind, 1)
    num_chips = number // cores_per_chip
    if number % cores_per_chip or num_chips not in topologies:
        known = ", ".join(f"{kind}-{size * cores_per_chip}" for size in topologies)
        raise ValueError(f"--target: expected one of the slices {known}, got {name}. Name one of them.")
    if slices < 1:
        raise ValueError(f"--slices: expected 1 or more, got {slices}. Leave it out for one slice.")
    chip = CHIPS[kind]
    host_memory = WHOLE_SLICE_HOSTS.get((kind, num_chips))
    if host_memory is not None:
        chip = replace(chip, chips_per_host=num_chips, host_memory=host_memory)
    topology = f"{kind}:{topologies[num_chips]}"
    title = name if slices == 1 else f"{slices} × {name}"
    cpus = WHOLE_SLICE_CPUS.get((kind, num_chips), HOST_CPUS[kind])
    return Target(title, chip, slices * num_chips, topology, slices, kind, cpus)


def _name_with_hosts(kind: str, slices: int, hosts: int) -> str:
    """The name of the target of `kind` that has so many hosts, in all slices together."""
    if hosts < 1 or kind not in CHIPS:
        raise ValueError(
            f"--hosts: expected 1 or more with a kind alone among {', '.join(CHIPS)}, got --hosts={hosts} "
            f"with --target={kind}. Write it like --target=v5e --hosts=64."
        )
    if kind not in SHAPES:
        return f"{kind}-{hosts * CHIPS[kind].chips_per_host}"
    # Of several slices with as many hosts, the largest.
    by_hosts = {}
    for num_chips in SHAPES[kind]:
        slice_name = f"{kind}-{num_chips * CORES_PER_CHIP.get(kind, 1)}"
        by_hosts[slices * find_target(slice_name).num_hosts] = slice_name
    if hosts not in by_hosts:
        known = ", ".join(map(str, by_hosts))
        raise ValueError(f"--hosts: expected one of {known} with {kind}, got {hosts}. Name one of them.")
    return by_hosts[hosts]


def _gpu_target(name: str, kind: str, number: int, slices: int) -> Target:
    """GPUs of one node, or of several whole ones."""
    chip = CHIPS[kind]
    if slices != 1:
        raise ValueError(
            f"--slices: expected it for a TPU only, got {slices} with {name}. Name all GPUs, for "
            "example h100-16 for two nodes."
        )
    per_node = chip.chips_per_host
    num_nodes = -(-number // per_node)
    if num_nodes > 1 and number % per_node:
        raise ValueError(
            f"--target: expected up to {per_node} GPUs or whole nodes of {per_node}, got {name}. Take as "
            "many GPUs of every node."
        )
    return Target(name, chip, number, num_slices=num_nodes, kind=kind, cpus=HOST_CPUS[kind])


def one_host(target: Target) -> Target:
    """The chips of one of the target's hosts."""
    num_chips = min(target.num_chips, target.chip.chips_per_host)
    if num_chips == target.num_chips:
        return target
    topology = f"{target.kind}:{SHAPES[target.kind][num_chips]}" if target.topology else ""
    return replace(target, num_chips=num_chips, topology=topology, num_slices=1)


@functools.cache
def stand_in_devices(topology: str, num_slices: int = 1) -> Sequence[Any]:
    """Devices of TPU slices to compile for, by libtpu and without a TPU.

    Raises ValueError where libtpu is missing or cannot make them.
    """
    from jax.experimental import topologies

    # libtpu makes other devices where it is told how many slices there are.
    options = {"num_slices": num_slices} if num_slices > 1 else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except Exception as error:  # libtpu's own, of many kinds
        raise ValueError(
            f"plan: expected libtpu, to compile for {topology}, got {str(error).splitlines()[0]}. "
            "pip install 'radit_jax[tpu]', and let one program at a time use it."
        ) from error
