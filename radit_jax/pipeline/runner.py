"""The runner: fingerprints, which stages are current, what is missing and why, and making it."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from radit_jax.config import Experiment, Instructions, checkpoint_folder
from radit_jax.config.renamed_settings import with_new_names, with_old_names
from radit_jax.data.eval_tasks import registry
from radit_jax.data.readers.kilt_pages import read_titles
from radit_jax.data.sources import instructions
from radit_jax.pipeline.graph import KINDS, Stage, stages
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.pretrained import checkpoint_info, hub
from radit_jax.runtime.storage.fingerprints import canonical, fingerprint
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.runtime.storage.workdir import Workdir

# Settings that change memory and speed, and results by rounding at most.
NOT_IN_FINGERPRINT = {
    "embed": {"batch_size"},
    "lm_ft": {"accumulate_steps"},
    "score": {"batch_size"},
    "evaluate": {"batch_size", "prompts_per_batch"},
}


@dataclass(frozen=True)
class Run:
    """An experiment in a workdir: where each stage's output lies, and which outputs are there."""

    experiment: Experiment
    workdir: Workdir
    plan_only: bool = False  # sources that are not there become `absent`, not an error
    stages: dict[str, Stage] = field(init=False)
    folders: dict[str, StageFolder] = field(init=False)
    absent: dict[str, str] = field(init=False, default_factory=dict)  # sources, and what is wrong with them

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", stages(self.experiment))
        object.__setattr__(self, "folders", {})
        for stage in self.stages.values():
            make = self.workdir.published if stage.kind == "export" else self.workdir.folder
            self.folders[stage.name] = make(stage.kind, self._fingerprint(stage))

    def _fingerprint(self, stage: Stage) -> str:
        parents = {role: self.folders[name].fingerprint for role, name in stage.inputs.items()}
        sources = {path: self._known_identity(stage, path) for path in stage.sources}
        # A source is its content: the same checkpoint in another folder is the same checkpoint.
        hashes = {str(number): sources[path] for number, path in enumerate(stage.sources)}
        settings = _without_paths(_fingerprinted(with_old_names(canonical(stage.settings))), sources)
        return fingerprint(stage.kind, stage.version, settings, parents, hashes)

    def _known_identity(self, stage: Stage, source: str) -> str:
        try:
            return "absent" if source in self.absent else self._identity(stage, source)
        except ValueError as error:
            if not self.plan_only:
                raise
            self.absent[source] = str(error)
            return "absent"

    def _identity(self, stage: Stage, source: str) -> str:
        def identity() -> str:
            commit = hub.identity(source) if stage.kind == "base" else None
            files = stage.files_read[source]() if source in stage.files_read else None
            folder = checkpoint_folder(source)
            folder = os.path.expanduser(folder) if stage.kind == "base" else folder  # as hub.find
            return commit or self.workdir.source_hash(folder, files)

        return processes.on_process_zero(f"the identity of {source}", identity)

    def needed(self, kind: str) -> list[Stage]:
        """The stages of `kind` ('all': every stage) and all that they read, in order."""
        if kind not in (*KINDS, "all"):
            raise ValueError(f"--stage: no stage {kind!r}; there are {', '.join(KINDS)} and all")
        wanted = {stage.name for stage in self.stages.values() if kind in (stage.kind, "all")}
        for stage in reversed(self.stages.values()):
            if stage.name in wanted:
                wanted.update(stage.inputs.values())
        return [stage for stage in self.stages.values() if stage.name in wanted]

    def missing(self, kind: str) -> Iterator[Stage]:
        made: set[str] = set()
        for stage in self.needed(kind):
            path = str(self.folders[stage.name].home)
            if not self.folders[stage.name].complete and path not in made:
                made.add(path)
                yield stage

    def check_checkpoints(self) -> None:
        """Refuse checkpoints that the settings do not fit, by what their small files say; absent ones are not
        asked."""
        named = {path for stage in self.stages.values() if stage.kind == "base" for path in stage.sources}
        if not named & self.absent.keys():
            checkpoint_info.check_checkpoints(self.experiment)

    def check_tasks(self, stages: Iterable[Stage]) -> None:
        """Refuse what these stages could not ask, before one of them runs; absent files are not asked."""
        for stage in stages:
            asked = stage.settings.get("evaluate")
            if stage.kind in ("lm_ft", "evaluate") and asked and not self.absent.keys() & set(stage.sources):
                registry.check_tasks(asked)
                if asked.tasks and asked.kilt_titles:
                    read_titles(asked.kilt_titles)

    def check_corpus(self) -> None:
        """Refuse to go on, before anything is trained, without the datasets or with too few chunks."""
        e = self.experiment
        if isinstance(e.data, Instructions) and not self.folders["corpus"].complete:
            instructions.check_files(e.data)
        asked = {
            "lm_ft.chunks_per_example": e.lm_ft.chunks_per_example,
            "retrieve.num_chunks": e.retrieve.num_chunks,
            "evaluate.chunks_per_answer": e.evaluate.chunks_per_answer,
            "recall@10 and MRR@10": 10,
        }
        if not self.folders["corpus"].complete:
            return
        # An example cut from the corpus must not retrieve its own chunk, which leaves one fewer.
        available = self.folders["corpus"].manifest["chunks"] - 1
        for name, number in asked.items():
            if number > available:
                raise ValueError(
                    f"{name}: {number} chunks are asked for, but the corpus has {available} beside an "
                    "example's own; lower the setting or add passages"
                )

    def why(self, stage: Stage) -> str:
        """Why `stage` has to run, in words for a person."""
        folder = self.folders[stage.name]
        if folder.half_written:
            return "was interrupted; resumes"
        recorded = [manifest.get("settings") for manifest in self.workdir.manifests(stage.kind)]
        known = [with_new_names(settings) for settings in recorded if isinstance(settings, dict)]
        earlier = [settings for settings in known if settings.keys() == stage.settings.keys()]
        if not earlier:
            return "was never run"
        changes = differences(earlier[-1], canonical(stage.settings))
        return "changed: " + "; ".join(changes) if changes else "what it reads has changed"

    def make(self, stage: Stage) -> None:
        """Run one stage and commit what it made."""
        output = self.folders[stage.name]
        inputs = {role: self.folders[name] for role, name in stage.inputs.items()}
        print(f"── {stage.name}: {self.why(stage)}", flush=True)
        start = time.monotonic()
        output.fetch_logs()
        how: dict[str, Any] = {"mesh": self.experiment.mesh}  # it runs, which no fingerprint knows of
        if stage.trains:
            how["profile"] = self.experiment.profile
        facts = self._run(stage, inputs, output, how)
        output.finish(settings=canonical(stage.settings), **facts)
        self.drop_checkpoints(stage)
        summary = ", ".join(
            f"{key} {value}" for key, value in facts.items() if isinstance(value, int | float | str)
        )
        print(f"   {stage.name}: done in {time.monotonic() - start:.1f} s; {summary}", flush=True)

    def drop_checkpoints(self, stage: Stage) -> None:
        """Delete the training state of a stage that has finished; a kill may have left it."""
        if stage.trains and not self.experiment.keep_checkpoints:
            self.folders[stage.name].drop("checkpoints")

    @staticmethod
    def _run(
        stage: Stage, inputs: Mapping[str, StageFolder], output: StageFolder, how: Mapping[str, Any]
    ) -> dict[str, Any]:
        from radit_jax.runtime.distributed.memory import naming_remedy  # jax, which a dry run does without

        def run() -> dict[str, Any]:
            with naming_remedy(stage.kind):
                return stage.function(inputs, output, **how, **stage.settings)

        return processes.on_process_zero(stage.name, run) if stage.single_process else run()


def _fingerprinted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's settings without what changes no result, by sections."""
    seen = dict(settings)
    for section, names in NOT_IN_FINGERPRINT.items():
        if isinstance(own := seen.get(section), dict):
            seen[section] = {name: value for name, value in own.items() if name not in names}
    return seen


def _without_paths(settings: Any, sources: Mapping[str, str]) -> Any:
    if isinstance(settings, dict):
        return {key: _without_paths(value, sources) for key, value in settings.items()}
    if isinstance(settings, list):
        return [_without_paths(value, sources) for value in settings]
    return "source" if isinstance(settings, str) and settings in sources else settings


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """The settings in which two canonical settings differ, as `path before → after`."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted({*before, *after})
        return [
            d
            for key in keys
            for d in differences(before.get(key), after.get(key), f"{path}.{key}".strip("."))
        ]
    return [] if before == after else [f"{path} {before} → {after}"]
