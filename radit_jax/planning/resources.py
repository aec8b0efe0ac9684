"""From the programs of a stage to what it asks of a target."""

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax

from radit_jax.runtime.distributed.accelerators import GIB, Target
from radit_jax.runtime.distributed.memory import REMEDIES, bytes_per_device

Number = float | int


@dataclass(frozen=True)
class Call:
    """One jit-compiled function of a stage, and what it is called with."""

    function: Any
    arguments: Sequence[Any]  # shapes with shardings; what is static as it is
    options: Mapping[str, Any] = field(default_factory=dict)  # arguments that are static and named
    beside: Any = ()  # shapes of what lies on the devices meanwhile and is no argument
    results: int = 1  # how many of its results the devices hold at a time

    @functools.cached_property
    def compiled(self) -> Any:
        return self.function.lower(*self.arguments, **self.options).compile()

    @property
    def given(self) -> Any:
        """The shapes of its results, with the shardings that the compiler chose."""
        shapes = self.function.eval_shape(*self.arguments, **self.options)
        return jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
            shapes,
            self.compiled.output_shardings,
        )


@dataclass(frozen=True, kw_only=True)
class StageProgram:
    """What a stage computes again and again."""

    calls: Iterable[Call]
    held: Any  # shapes of what stays on the devices between them
    flops: Number  # of one turn, on all chips
    traffic: Number  # bytes that a chip must at least read and write in a turn
    activations: Number  # bytes of a chip beside what is held: an estimate, for where nothing is compiled
    times: Number  # turns


@dataclass(frozen=True)
class ResourceEstimate:
    """What a stage asks of the target, in bytes, operations and seconds."""

    stage: str
    params: int = 0
    held: Number = 0.0  # of a chip, between steps
    peak: Number = 0.0  # of a chip
    estimated: bool = False  # is `peak`
    flops: Number = 0.0  # of the whole stage
    traffic: Number = 0.0  # of the whole stage
    seconds: Number = 0.0  # of the whole stage, at least
    host: Number = 0.0  # of a host's memory
    disk: Number = 0.0  # of the workdir
    faults: tuple[str, ...] = ()


def estimate(
    stage: str, program: StageProgram, params: Any, target: Target, *, host: Number = 0, disk: Number = 0
) -> ResourceEstimate:
    """Compile the stage's program for the target, or estimate, and count its turns."""
    held, estimated = bytes_per_device(program.held), target.chip.kind != "tpu"
    peak = held + program.activations if estimated else compiled_peak(program.calls)
    flops, traffic = program.flops * program.times, program.traffic * program.times * target.num_chips
    seconds = max(flops / target.chip.flops, traffic / target.chip.bandwidth) / target.num_chips
    return ResourceEstimate(
        stage, num_parameters(params), held, peak, estimated, flops, traffic, seconds, host, disk
    )


def compiled_peak(calls: Iterable[Call]) -> float:
    """The bytes of a chip that the compiler gives the call that takes the most, or would have to.

    Arguments, temporaries and the results that are not written over arguments, and what lies beside. One that
    it refuses is the last that is tried: others may take its results.
    """
    most = 0.0
    for call in calls:
        try:
            memory = call.compiled.memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            asked = re.search(r"([0-9.]+)G[^0-9]*(exceeds|of|\()", str(error))
            return max(most, float(asked[1]) * GIB + bytes_per_device(call.beside) if asked else math.inf)
        results = call.results * (memory.output_size_in_bytes - memory.alias_size_in_bytes)
        own = memory.argument_size_in_bytes + memory.temp_size_in_bytes + results
        most = max(most, float(own + bytes_per_device(call.beside)))
    return most


def check_fits(need: ResourceEstimate, target: Target, *, on_disk: bool) -> ResourceEstimate:
    """`need` with what the target has too little of; a workdir in a bucket is on no disk."""
    chip = target.chip
    limits = (
        (need.peak, chip.memory, REMEDIES.get(need.stage, "")),
        (need.host, chip.host_memory, "a host has {:.0f} GiB of memory: take hosts that have more"),
        (need.disk * on_disk, chip.host_disk, "a host has {:.0f} GiB of disk: --workdir in a bucket"),
    )
    faults = (cure.format(most / GIB) for came, most, cure in limits if came > most)
    return replace(need, faults=tuple(faults))


def num_parameters(tree: Any) -> int:
    """Numbers in a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def num_bytes(tree: Any) -> float:
    """Bytes of a tree."""
    return float(sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)))
