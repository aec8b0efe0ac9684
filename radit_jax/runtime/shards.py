"""Shards: work cut into files, each of which one process makes once.

How many shards there are follows from the work, never from the processes. Of those that no earlier run has
made, process p of N makes every N-th from the p-th on, on its own devices. It reads and writes nothing of the
others'. A process that is lost costs the shard that it was making, and the next run may have any number of
processes.

A model that does not fit a process's own devices lies on those of all. Then all make each shard together.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from radit_jax.errors import Stopped
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.memory import ROOM_OF_PARAMS, DoesNotFitError, check_room
from radit_jax.runtime.distributed.mesh import any_process
from radit_jax.runtime.monitoring.progress import Progress
from radit_jax.runtime.storage.stage_folder import StageFolder

T = TypeVar("T")


@dataclass(frozen=True)
class Shards:
    """The shards of some work in a stage's folder."""

    folder: StageFolder
    sizes: Mapping[str, int]  # the units of work in each shard, by its file
    missing: Sequence[str]  # the files that no run has made yet, in the order of `sizes`
    index: int = 0  # this process among those that make shards of their own
    count: int = 1  # how many these are; 1: all processes make each shard together

    @classmethod
    def find(cls, folder: StageFolder, sizes: Mapping[str, int], own: bool = True) -> "Shards":
        """The shards, and which are missing; with `own` each process makes its own."""
        missing = folder.missing(list(sizes))
        index, count = processes.process_index_and_count() if own else (0, 1)
        return cls(folder, sizes, missing, index, count)

    @property
    def own(self) -> Sequence[str]:
        """The missing shards that this process makes, in order."""
        return self.missing[self.index :: self.count]

    def progress(self, title: str, unit: str) -> Progress:
        """A bar for what this process makes; its part of what an earlier run has made counts as done."""
        missing = sum(self.sizes[name] for name in self.own)
        total = max(missing, sum(self.sizes.values()) // self.count)
        return Progress(total, title, unit, done=total - missing)

    def turns(self) -> Iterator[Sequence[str]]:
        """The missing shards, one for each process at a time: the p-th of a turn is process p's.

        In the last turn there may be fewer. After each turn all processes meet, and stop if one was asked to.
        """
        for start in range(0, len(self.missing), self.count):
            turn = self.missing[start : start + self.count]
            yield turn
            processes.barrier(f"{self.folder} {turn[0]}")

    def write_each(self, made: Iterable[T], write: Callable[[str, T], None]) -> None:
        """Write what `made` yields for each of `own`."""
        rest = iter(made)
        for turn in self.turns():
            with self.by_itself():
                if self.index < len(turn):
                    write(turn[self.index], next(rest))

    @contextlib.contextmanager
    def by_itself(self) -> Iterator[None]:
        """Inside, a process that makes shards of its own waits for nobody (`processes.apart`)."""
        if self.count == 1:
            yield
            return
        # What was asked to stop says so to the others at the end of the turn.
        with contextlib.suppress(Stopped), processes.apart():
            yield


def load_on_own_devices(
    load: Callable[[bool], T], params_of: Callable[[T], Any], num_models: int = 1
) -> tuple[T, bool]:
    """A model and whether it is on this process's own devices, as `load(True)` places it.

    Where the parameters of `num_models` such models take more than half of these, on any process,
    `load(False)` places it on all. A single process has all devices.
    """
    if not processes.is_multiprocess():
        return load(False), False
    loaded = None
    with contextlib.suppress(DoesNotFitError):
        model = load(True)
        check_room("the model", params_of(model), share=ROOM_OF_PARAMS / num_models)
        loaded = model
    # All do the same, also where one has smaller devices.
    if bool(any_process(loaded is None)) or loaded is None:
        return load(False), False
    return loaded, True
