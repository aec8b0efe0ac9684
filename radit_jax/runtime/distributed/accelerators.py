"""Machines that a run can be planned for: what a chip and its host have, and stand-ins for their devices."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal


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

# Google's pages on Cloud TPU's versions and machine types (v4, v5e, v5p, v6e; hosts of a slice with several),
# the 100 GB of a TPU VM's boot disk; NVIDIA's data sheets (dense), Google's a2-ultragpu-8g, a3-highgpu-8g and
# a3-ultragpu-8g with their local disks. What a program can use of a TPU's memory is what its compiler allows.
CHIPS = {
    "v4": Chip("tpu", 31.75 * GIB, 275 * TERA, 1228 * GB, 4, 407 * GB, 100 * GB),
    "v5e": Chip("tpu", 15.75 * GIB, 197 * TERA, 819 * GB, 4, 192 * GB, 100 * GB),
    "v5p": Chip("tpu", 95.74 * GIB, 459 * TERA, 2765 * GB, 4, 448 * GB, 100 * GB),
    "v6e": Chip("tpu", 31.25 * GIB, 918 * TERA, 1640 * GB, 4, 720 * GB, 100 * GB),
    "a100": Chip("gpu", 0.92 * 80 * GB, 312 * TERA, 2039 * GB, 8, 1360 * GB, 3000 * GB),
    "h100": Chip("gpu", 0.92 * 80 * GB, 989 * TERA, 3350 * GB, 8, 1872 * GB, 6000 * GB),
    "h200": Chip("gpu", 0.92 * 141 * GB, 989 * TERA, 4800 * GB, 8, 2952 * GB, 12_000 * GB),
}
CORES_PER_CHIP = {"v4": 2, "v5p": 2}  # whose names count cores: v5p-16 has 8 chips
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


@dataclass(frozen=True)
class Target:
    """So many chips of one kind."""

    name: str
    chip: Chip
    num_chips: int
    topology: str = ""  # of a TPU slice, as libtpu names it

    @property
    def num_hosts(self) -> int:
        return -(-self.num_chips // self.chip.chips_per_host)


def find_target(name: str) -> Target:
    """The target that `name` says: a TPU slice by its accelerator type, or GPUs by kind and number.

    >>> find_target("v5p-16").num_chips, find_target("v5e-256").topology, find_target("h100-8").num_hosts
    (8, 'v5e:16x16', 1)
    """
    match = re.fullmatch(r"(\w+)-(\d+)", name)
    if not match or match[1] not in CHIPS:
        raise ValueError(
            f"--target: {name!r} came, needed is KIND-NUMBER such as v5e-256 or h100-8; kinds are "
            f"{', '.join(CHIPS)}"
        )
    kind, number = match[1], int(match[2])
    cores = CORES_PER_CHIP.get(kind, 1)
    num_chips, shapes = number // cores, SHAPES.get(kind)
    if shapes is None:
        if not number:
            raise ValueError(f"--target: {name!r} has no chips; name one or more")
        return Target(name, CHIPS[kind], num_chips)
    if number % cores or num_chips not in shapes:
        sizes = ", ".join(f"{kind}-{size * cores}" for size in shapes)
        raise ValueError(f"--target: there is no slice {name}; needed is one of {sizes}")
    return Target(name, CHIPS[kind], num_chips, f"{kind}:{shapes[num_chips]}")


@functools.cache
def stand_in_devices(topology: str) -> Sequence[Any]:
    """Devices of a TPU slice to compile for, by libtpu and without a TPU.

    Raises ValueError where libtpu is missing or cannot make them.
    """
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # libtpu's own, of many kinds
        raise ValueError(
            f"plan: compiling for {topology} needs libtpu, which gave {str(error).splitlines()[0]}; pip "
            "install 'radit_jax[tpu]', and let one program at a time use it"
        ) from error
