"""From the programs of a stage to what it asks of a target."""

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax

from radit_jax.planning.deployment import Deployment
from radit_jax.runtime.distributed.accelerators import GIB, LINKS, Target
from radit_jax.runtime.distributed.memory import REMEDIES, bytes_per_device

Number = float | int


@dataclass(frozen=True)
class Call:
    """One jit-compiled function of a stage, and what it is called with."""

    function: Any
    arguments: Sequence[Any]  # shapes with shardings, and static arguments as they are
    options: Mapping[str, Any] = field(default_factory=dict)  # static keyword arguments
    resident: Any = ()  # shapes of what else is on the devices during the call
    results: int = 1  # how many of its results the devices hold at a time

    @functools.cached_property
    def compiled(self) -> Any:
        """The function compiled for the arguments."""
        lowered = self.function.lower(*self.arguments, **self.options)
        return lowered.compile()

    @property
    def given(self) -> Any:
        """The shapes of its results, with the shardings that the compiler chose."""
        shapes = self.function.eval_shape(*self.arguments, **self.options)

        def with_sharding(shape: Any, sharding: Any) -> Any:
            return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

        return jax.tree.map(with_sharding, shapes, self.compiled.output_shardings)


@dataclass(frozen=True, kw_only=True)
class StageProgram:
    """What a stage computes again and again: one turn of it, and the number of turns."""

    calls: Iterable[Call]
    held: Any  # shapes of what stays on the devices between calls
    flops: Number  # of one turn, on all chips
    traffic: Number  # bytes that a chip must at least read and write in a turn
    activations: Number  # bytes of a chip besides `held`, estimated: used where nothing is compiled
    times: Number  # turns
    dcn: Number = 0.0  # bytes that a slice at least receives from the others in a turn
    ici: Number = 0.0  # bytes that a chip at least receives from the others of its copy in a turn
    host_seconds: Number = 0.0  # a host's own work for all turns, which the chips wait for at worst


@dataclass(frozen=True)
class ResourceEstimate:
    """What a stage asks of the target, in bytes, operations and seconds."""

    stage: str
    params: int = 0  # how many parameters
    held: Number = 0.0  # bytes of a chip, between steps
    peak: Number = 0.0  # bytes of a chip
    estimated: bool = False  # whether `peak` is an estimate and not the compiler's figure
    flops: Number = 0.0  # of the whole stage
    traffic: Number = 0.0  # bytes, of the whole stage
    seconds: Number = 0.0  # of the whole stage, at least
    realistic: Number = 0.0  # seconds, about, by the plan's assumptions
    limit: str = ""  # what takes these seconds
    dcn: Number = 0.0  # bytes of a step that every slice receives from the others, at least
    host: Number = 0.0  # bytes of a host's memory
    disk: Number = 0.0  # bytes of the workdir that this stage adds
    linked: Number = 0.0  # bytes of further names of other stages' files
    read: Number = 0.0  # bytes of files that the first host reads
    written: Number = 0.0  # bytes of files that it writes
    faults: tuple[str, ...] = ()  # what the target has too little of, with the remedies


def estimate(
    stage: str,
    program: StageProgram,
    params: Any,
    deployment: Deployment,
    *,
    host: Number = 0,
    disk: Number = 0,
) -> ResourceEstimate:
    """What `program` asks of the target: compiled where there is a compiler for it, and estimated elsewhere.

    The seconds are those below which no chip of the kind can do the arithmetic, or move the bytes.
    """
    target = deployment.target
    chip = target.chip
    limit, realistic = slowest(program, deployment)
    held = bytes_per_device(program.held)
    is_estimated = not target.topology
    peak = held + program.activations if is_estimated else compiled_peak(program.calls)
    flops = program.flops * program.times
    traffic = program.traffic * program.times * target.num_chips
    computing = flops / chip.flops
    moving = traffic / chip.bandwidth
    seconds = max(computing, moving) / target.num_chips
    return ResourceEstimate(
        stage,
        params=num_parameters(params),
        held=held,
        peak=peak,
        estimated=is_estimated,
        flops=flops,
        traffic=traffic,
        seconds=seconds,
        realistic=realistic,
        limit=limit,
        dcn=program.dcn,
        host=host,
        disk=disk,
    )


def slowest(program: StageProgram, deployment: Deployment) -> tuple[str, float]:
    """What takes the most time of all turns, by the assumptions, and its seconds, which hide the rest."""
    target, assumed = deployment.target, deployment.assumptions
    chip = target.chip
    links = LINKS[target.kind]
    # Of one turn: a slice receives over the links of all its chips.
    chips_per_slice = target.num_chips / target.num_slices
    seconds = {
        "arithmetic": program.flops / (target.num_chips * chip.flops * assumed.mfu),
        "chip memory": program.traffic / (chip.bandwidth * assumed.memory_share),
        "ICI": program.ici / (links.ici * assumed.network_share),
        "DCN": program.dcn / (chips_per_slice * links.dcn * assumed.network_share),
        "host": program.host_seconds / program.times,
    }
    limit = max(seconds, key=lambda name: seconds[name])
    return limit, seconds[limit] * program.times


def in_parts(program: StageProgram, num_parts: int) -> StageProgram:
    """The program of one host, as one that so many hosts run at once: in a turn each has a batch."""
    return replace(program, flops=num_parts * program.flops)


def in_turn(first: ResourceEstimate, second: ResourceEstimate) -> ResourceEstimate:
    """A stage that does both, one after the other; parameters, `held`, disk and `dcn` are the first's."""
    return replace(
        first,
        peak=max(first.peak, second.peak),
        flops=first.flops + second.flops,
        traffic=first.traffic + second.traffic,
        seconds=first.seconds + second.seconds,
        realistic=first.realistic + second.realistic,
        limit=max(first, second, key=lambda part: part.realistic).limit,
        host=max(first.host, second.host),
    )


def compiled_peak(calls: Iterable[Call]) -> float:
    """Peak bytes of a chip over `calls`, as the compiler reports it.

    A call takes its arguments, its temporaries, the results that are not written over arguments, and what
    else is resident. If the compiler refuses a call for lack of memory, the bytes that it names count, or
    infinitely many where it names none. No later call is tried then: it may take the results of this one.
    """
    peak = 0.0
    for call in calls:
        resident = bytes_per_device(call.resident)
        try:
            memory = call.compiled.memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return max(peak, _refused_bytes(str(error)) + resident)
        result = memory.output_size_in_bytes - memory.alias_size_in_bytes
        taken = memory.argument_size_in_bytes + memory.temp_size_in_bytes + call.results * result
        peak = max(peak, float(taken + resident))
    return peak


def _refused_bytes(message: str) -> float:
    """The bytes that a program would need, from the compiler's refusal; infinite where it does not say."""
    match = re.search(r"([0-9.]+)G[^0-9]*(exceeds|of|\()", message)
    return float(match[1]) * GIB if match else math.inf


def check_fits(need: ResourceEstimate, target: Target) -> ResourceEstimate:
    """`need` with its faults: what the target has too little of. Disks are judged for all stages together."""
    chip = target.chip
    limits = (
        (need.peak, chip.memory, REMEDIES.get(need.stage, "")),
        (need.host, chip.host_memory, "a host has {:.0f} GiB of memory: take hosts that have more"),
    )
    faults = []
    for asked, limit, remedy in limits:
        if asked > limit:
            faults.append(remedy.format(limit / GIB))
    return replace(need, faults=tuple(faults))


def num_parameters(tree: Any) -> int:
    """How many numbers the arrays of a tree have."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def num_bytes(tree: Any) -> float:
    """Bytes of the arrays of a tree, on all chips together."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        total += math.prod(leaf.shape) * leaf.dtype.itemsize
    return float(total)
