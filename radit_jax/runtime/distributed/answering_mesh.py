"""The mesh of a language model that answers: whole copies of it, each on as few devices as have room.

In training the parameters are cut over `fsdp`, and each layer's are gathered when thousands of tokens reach
it. A model that answers reads one token of each prompt at a time, and would gather all its parameters for it.
So here they are cut over `tensor` alone: a kernel stays where it is, and what crosses between devices are
sums of activations. Prompts are spread over the copies, which are the mesh's `replica`.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from radit_jax.config import DecoderConfig, EvaluateConfig, MeshConfig
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.memory import (
    ROOM_OF_PARAMS,
    DoesNotFitError,
    bytes_per_device,
    device_memory,
)
from radit_jax.runtime.distributed.mesh import AXES, abstract_sharded, gather_hosts, make_mesh
from radit_jax.runtime.distributed.slices import count_slices

Number = float | int
PROMPT_COPIES = 4  # of prompts' keys and values: as read, as decoded, and as much for a forward pass


class AnsweringModel(NamedTuple):
    """What the layout of a model that answers depends on."""

    params: Any  # arrays or shapes, in the dtype that they are kept in
    num_kv_heads: int
    token_bytes: int = 0  # of the keys and values of a prompt's token

    @classmethod
    def of(cls, config: DecoderConfig, params: Any, dtype: Any) -> "AnsweringModel":
        """A model of that shape which computes in `dtype`, in which it also keeps keys and values."""
        numbers = 2 * config.num_layers * config.num_kv_heads * config.head_size
        return cls(params, config.num_kv_heads, numbers * np.dtype(dtype).itemsize)


class Room(NamedTuple):
    """Bytes of a device for its part of a model."""

    with_prompts: float = math.inf  # beside the prompts that are answered together
    without_prompts: float = math.inf

    @classmethod
    def of(cls, memory: Number, *, prompts: float, num_models: int = 1, held: Number = 0) -> "Room":
        """The room for one of `num_models` models on a device that holds `held` bytes of other things.

        `prompts` are the bytes of the keys and values of the prompts.
        """
        free = memory - held
        most = ROOM_OF_PARAMS * free
        beside_prompts = min(most, free - PROMPT_COPIES * prompts)
        return cls(beside_prompts / num_models, most / num_models)


def for_each_process(settings: EvaluateConfig, num_processes: int) -> EvaluateConfig:
    """The settings of one of so many processes that answer by themselves: its part of the prompts at once.

    A question's prompts are together in any case.
    """
    return replace(settings, prompts_per_batch=max(1, settings.prompts_per_batch // num_processes))


def tokens_at_once(settings: EvaluateConfig) -> int:
    """Tokens of the prompts that are answered at once, at most, with their answers."""
    num_prompts = max(settings.prompts_per_batch, settings.chunks_per_answer)
    return num_prompts * settings.sequence_length


def answering_mesh(
    config: MeshConfig,
    model: AnsweringModel,
    *,
    num_tokens: int = 0,
    rows: int = 0,
    num_models: int = 1,
    held: int = 0,
    own: bool = False,
) -> Mesh:
    """The mesh for a model that answers prompts of `num_tokens` tokens together, whatever their number.

    It is over all devices, or with `own` over this process's. These hold `num_models` such models, and `held`
    bytes each of other things. Where no slice has room for a copy, the mesh is the one that other work has,
    for batches of `rows`; with `own` that raises DoesNotFitError.
    """
    # 1) What a device has room for.
    devices = jax.local_devices() if own else jax.devices()
    if own and len(devices) % config.answering_tensor:
        raise DoesNotFitError(f"a copy on {config.answering_tensor} devices, of which a process has fewer")
    memory = device_memory() if own else _smallest_memory()
    room = Room()
    if memory is not None:
        prompts = model.token_bytes * num_tokens / len(devices)
        room = Room.of(memory, prompts=prompts, num_models=num_models, held=held)
    # 2) The mesh. A process whose own devices have too little room shares those of all.
    if own:
        room = room._replace(without_prompts=room.with_prompts)
    num_slices = count_slices(devices)
    sizes = answering_sizes(config, model, num_devices=len(devices), num_slices=num_slices, room=room)
    if sizes is not None:
        return make_mesh(sizes, devices)
    if own:
        raise DoesNotFitError("a copy of the model with the prompts that it answers")
    return make_mesh(config, rows=rows)


def answering_sizes(
    config: MeshConfig,
    model: AnsweringModel,
    *,
    num_devices: int,
    num_slices: int = 1,
    room: Room,
) -> MeshConfig | None:
    """`config` with the sizes for a model that answers; None where it has no room in a slice.

    A copy is on the fewest devices that have room for it, preferably on as many as divide the heads of keys,
    so that each has whole heads of the cache. If prompts leave too little, it is on all of a slice. With
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
        part = _part_of(model.params, sizes)
        is_largest = tensor == per_slice
        if part <= (room.without_prompts if is_largest else room.with_prompts):
            fitting.append(sizes)
    # 3) The smallest, with whole heads if one has them.
    by_heads = [sizes for sizes in fitting if model.num_kv_heads % sizes.tensor == 0]
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
