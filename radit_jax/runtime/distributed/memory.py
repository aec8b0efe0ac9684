"""The devices' memory: the bytes that a tree takes, and errors that say what to set where they do not fit."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax

from radit_jax.runtime.distributed.accelerators import GIB

# By stage or command: what takes less of a device's memory.
REMEDIES = {
    "base": "take more devices",
    "embed": "lower embed.batch_size",
    "lm_ft": "raise lm_ft.accumulate_steps, set mesh.remat=full or lm_ft.lora.rank, lower "
    "evaluate.prompts_per_batch if lm_ft.select=kilt_dev, or take more devices",
    "retrieve": "take more devices",
    "score": "lower score.batch_size or take more devices",
    "r_ft": "lower r_ft.batch_size, or score.batch_size if it was scoring, or take more devices",
    "evaluate": "raise mesh.answering_tensor, lower evaluate.prompts_per_batch or evaluate.sequence_length, "
    "or take more devices",
    "export": "take hosts with more or larger devices, or set export.hf=false",
    "answering": "take more devices, or the CPU with JAX_PLATFORMS=cpu",
    "lm_eval": "lower --batch_size or --model_args max_length=…, take more devices, or the CPU with "
    "JAX_PLATFORMS=cpu",
}


ROOM_OF_PARAMS = 0.5  # of a device's memory; the rest is for what they compute


class DoesNotFitError(ValueError):
    """A tree takes more of a device than its whole memory."""


def bytes_per_device(tree: Any) -> int:
    """The bytes that one device holds of a tree of arrays, or of shapes, with shardings."""
    # A device has one shard of each array.
    total = 0
    for leaf in jax.tree.leaves(tree):
        shard_shape = leaf.sharding.shard_shape(leaf.shape)
        total += math.prod(shard_shape) * leaf.dtype.itemsize
    return total


def device_memory() -> int | None:
    """The bytes of the smallest of this process's devices; None where they do not tell, such as CPUs."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    limits = [one.get("bytes_limit") for one in stats]
    known_limits = [limit for limit in limits if limit]
    return min(known_limits, default=None)


def check_room(what: str, shapes: Any, share: float = 1.0) -> None:
    """Refuse a tree whose part for a device is more than a share of the device's memory.

    Devices that do not tell their memory, such as CPUs, are not checked.
    """
    memory = device_memory()
    if memory is None:
        return
    num_bytes, limit = bytes_per_device(shapes), share * memory
    if num_bytes > limit:
        raise DoesNotFitError(
            f"{what} takes {num_bytes / GIB:.2f} GiB of each device, which has {limit / GIB:.2f} GiB"
        )


@contextlib.contextmanager
def naming_remedy(stage: str) -> Iterator[None]:
    """Turn a lack of device memory inside into a ValueError that says what to set.

    A TPU's compiler refuses a program that does not fit, and a GPU refuses its memory when its first run
    begins. So a training loop fails before its first step is done.
    """
    try:
        yield
    except (DoesNotFitError, jax.errors.JaxRuntimeError) as error:
        # jax has one class for all faults of a device.
        if not isinstance(error, DoesNotFitError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        fault = str(error).strip().splitlines()[0]
        remedy = REMEDIES.get(stage, "take more devices")
        raise ValueError(
            f"{stage}: expected a program that fits the devices' memory, got one that does not ({fault}). "
            f"{remedy[0].upper()}{remedy[1:]}."
        ) from error
