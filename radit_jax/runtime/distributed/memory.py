"""The devices' memory: what a tree takes of it, and errors that say what to set where it is too small."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax

from radit_jax.runtime.distributed.accelerators import GIB

REMEDIES = {  # of each stage and command: what takes less of a device
    "base": "take more devices",
    "embed": "lower embed.batch_size",
    "lm_ft": "raise lm_ft.accumulate_steps, set mesh.remat=full or lm_ft.lora.rank, or take more devices",
    "retrieve": "take more devices",
    "score": "lower score.batch_size or take more devices",
    "r_ft": "lower r_ft.batch_size, or score.batch_size if it was scoring, or take more devices",
    "evaluate": "lower evaluate.prompts_per_batch or evaluate.sequence_length, or take more devices",
    "export": "take hosts with more or larger devices, or set export.hf=false",
    "ask": "take more devices, or the CPU with JAX_PLATFORMS=cpu",
    "harness": "lower --batch_size or --model_args max_length=…, take more devices, or the CPU with "
    "JAX_PLATFORMS=cpu",
}


class DoesNotFit(ValueError):
    """What is to be put on the devices is more than one of them holds."""


def bytes_per_device(tree: Any) -> int:
    """The bytes that one device holds of a tree of arrays, or of shapes, with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def check_room(what: str, shapes: Any) -> None:
    """Refuse, before any of it is allocated, a tree of which a device's part is more than its whole memory.

    A device that does not say how much it has, as a CPU, is not asked.
    """
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    known = [limit for limit in limits if limit]
    if known and (needed := bytes_per_device(shapes)) > min(known):
        raise DoesNotFit(
            f"{what} takes {needed / GIB:.2f} GiB of each device, which has {min(known) / GIB:.2f} GiB"
        )


@contextlib.contextmanager
def naming_remedy(stage: str) -> Iterator[None]:
    """Turns a lack of the devices' memory, whoever sees it, into a ValueError that says what to set.

    A TPU's compiler refuses a program that does not fit; a GPU refuses the program's memory as its first run
    begins. So in a training loop the error comes before the first step is done.
    """
    try:
        yield
    except (DoesNotFit, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, DoesNotFit) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        fault = str(error).strip().splitlines()[0]
        remedy = REMEDIES.get(stage, "take more devices")
        raise ValueError(f"{stage}: the devices' memory is too small: {fault}; {remedy}") from error
