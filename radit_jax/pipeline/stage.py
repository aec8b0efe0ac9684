"""What a stage of the method is: a function, what it reads, and what its fingerprint covers."""

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from etils import epath

FilesRead = Mapping[str, Callable[[], Sequence[epath.Path] | None]]  # by source; None: all of it


@dataclass(frozen=True)
class Stage:
    """One step of the method: a function from its inputs' folders and its settings to its own folder.

    `name` is its kind, with a role behind a slash where a kind serves twice (`base/lm`, `base/retriever`).
    The kind, `version` (raised by hand when the meaning changes), the settings, the sources' hashes and the
    inputs' fingerprints make the fingerprint, so a stage that two roles would fill alike is made once.
    """

    name: str
    entry: str  # "module:function" in radit_jax.stages, imported only when it runs
    inputs: Mapping[str, str]  # what the function calls an input -> the name of the stage that makes it
    settings: Mapping[str, Any]  # the function's other arguments
    version: int = 1
    sources: tuple[str, ...] = ()  # files and folders from outside the workdir
    files_read: FilesRead = field(default_factory=dict)  # of a source without an entry all files are read
    trains: bool = False  # it has a training loop, so `profile` may ask for a trace of it
    single_process: bool = False  # it needs no devices, so process 0 alone runs it

    @property
    def kind(self) -> str:
        """The name without a role: one of `graph.KINDS`."""
        return self.name.partition("/")[0]

    @property
    def function(self) -> Callable[..., dict[str, Any]]:
        """What `entry` names: from folders and settings to facts for the manifest."""
        module, name = self.entry.split(":")
        return getattr(importlib.import_module(f"radit_jax.stages.{module}"), name)


def reads_by_kind(stages: Iterable[Stage]) -> dict[str, list[list[str]]]:
    """By kind: of each such stage, the names of the stages whose files it is given."""
    reads: dict[str, list[list[str]]] = {}
    for stage in stages:
        reads.setdefault(stage.kind, []).append(list(stage.inputs.values()))
    return reads
