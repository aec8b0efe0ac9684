"""The mesh of a language model that answers: whole copies of it, each on as few devices as have room.

In training the parameters are cut over `fsdp`, and each layer's are gathered when thousands of tokens reach
it. A model that answers reads one token of each prompt at a time, and would gather all its parameters for it.
So here they are cut over `tensor` alone: a kernel stays where it is, and what crosses between devices are
sums of activations. Prompts are spread over the copies, which are the mesh's `replica`.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from radit_jax.config import MeshConfig
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.memory import (
    ROOM_OF_PARAMS,
    DoesNotFitError,
    bytes_per_device,
    device_memory,
)
from radit_jax.runtime.distributed.mesh import AXES, abstract_sharded, gather_hosts, make_mesh, own_mesh
from radit_jax.runtime.distributed.slices import count_slices


def answering_mesh(
    config: MeshConfig,
    params: Any,
    num_kv_heads: int,
    *,
    rows: int = 0,
    num_models: int = 1,
    held: int = 0,
    own: bool = False,
) -> Mesh:
    """The mesh for a model with `params` (arrays or shapes) that answers.

    It is over all devices, or with `own` over this process's. These hold `num_models` such models, and `held`
    bytes each of other things. Where the parts of a slice have no room for a copy, the mesh is the one that
    other work has, for batches of `rows`.
    """
    devices = jax.local_devices() if own else jax.devices()
    if own and len(devices) % config.answering_tensor:
        raise DoesNotFitError(f"a copy on {config.answering_tensor} devices, of which a process has fewer")
    memory = device_memory() if own else _smallest_memory()
    room = math.inf if memory is None else ROOM_OF_PARAMS * (memory - held) / num_models
    sizes = answering_sizes(
        config,
        params,
        num_kv_heads,
        num_devices=len(devices),
        num_slices=count_slices(devices),
        room=room,
    )
    if sizes is not None:
        return make_mesh(sizes, devices)
    return own_mesh(config) if own else make_mesh(config, rows=rows)


def answering_sizes(
    config: MeshConfig,
    params: Any,
    num_kv_heads: int,
    *,
    num_devices: int,
    num_slices: int = 1,
    room: float = math.inf,
) -> MeshConfig | None:
    """`config` with the sizes for a model that answers; None where it has no room in a slice.

    A device has `room` bytes for its part of `params`. A copy is on the fewest devices, preferably on as many
    as divide the `num_kv_heads` heads of keys, so that each has whole heads of the cache. With
    `config.answering_tensor` it is on so many.
    """
    per_slice = num_devices // num_slices
    tensor = config.answering_tensor
    # 1) What the settings say.
    if tensor != -1:
        if per_slice % tensor:
            raise ValueError(
                f"mesh.answering_tensor: expected a divisor of the {per_slice} devices of a slice or host, "
                f"got {tensor}. Set -1 to have it chosen."
            )
        return _with_copies(config, tensor, num_devices)

    # 2) The sizes that have room.
    fitting = []
    for tensor in _divisors(per_slice):
        sizes = _with_copies(config, tensor, num_devices)
        if _part_of(params, sizes) <= room:
            fitting.append(sizes)
    # 3) The smallest, with whole heads if one has them.
    by_heads = [sizes for sizes in fitting if num_kv_heads % sizes.tensor == 0]
    return next(iter(by_heads + fitting), None)


def _divisors(number: int) -> Iterable[int]:
    return (size for size in range(1, number + 1) if number % size == 0)


def _with_copies(config: MeshConfig, tensor: int, num_devices: int) -> MeshConfig:
    """`config` with whole copies of `tensor` devices each."""
    return replace(config, replica=num_devices // tensor, fsdp=1, tensor=tensor)


def _part_of(params: Any, sizes: MeshConfig) -> int:
    """The bytes of a device's part of the parameters."""
    shape = (sizes.replica, sizes.fsdp, sizes.tensor)
    mesh = AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return bytes_per_device(abstract_sharded(params, mesh))


def _smallest_memory() -> int | None:
    """`device_memory` of all processes: they have to choose one mesh."""
    memory = device_memory()
    if not processes.is_multiprocess():
        return memory
    smallest = gather_hosts(np.array(memory or 0, np.float32)).min()
    return int(smallest) or None
