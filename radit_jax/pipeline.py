"""The stages of RA-DIT in their order, what each depends on, and the runner that makes what is missing."""

import functools
import importlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from etils import epath

from radit_jax.config import (
    EvaluateConfig,
    Experiment,
    Folder,
    GeneratedWorld,
    Instructions,
    LmConfig,
    RetrieverConfig,
    checkpoint_folder,
)
from radit_jax.data.eval_tasks import registry
from radit_jax.data.eval_tasks.registry import find_task
from radit_jax.data.readers.kilt_pages import read_titles
from radit_jax.data.readers.questions import question_files
from radit_jax.data.sources import folder, instructions
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.pretrained import described, hub
from radit_jax.runtime.storage.stage_folder import StageFolder, Workdir, canonical, fingerprint

FilesRead = Mapping[str, Callable[[], Sequence[epath.Path] | None]]  # by source; None: all of it

# Settings that change memory and speed, and results by rounding at most.
NOT_IN_FINGERPRINT = {
    "embed": {"batch_size"},
    "lm_ft": {"accumulate_steps"},
    "score": {"batch_size"},
    "evaluate": {"batch_size", "prompts_per_batch"},
}
KINDS = ("corpus", "base", "embed", "index", "retrieve", "lm_ft", "score", "r_ft", "evaluate", "export")


@dataclass(frozen=True)
class Stage:
    """One step of the method: a function from its inputs' folders and its settings to its own folder.

    `name` is its kind, with a role behind a slash where a kind serves twice (`base/lm`, `base/retriever`).
    The kind, `version` (raised by hand when the meaning changes), the settings, the sources' hashes and the
    inputs' fingerprints make the fingerprint, so a stage that two roles would fill alike is made once.
    """

    name: str
    entry: str  # "module:function" in radit_jax.stages, imported only when it runs
    inputs: Mapping[str, str]  # what the function calls its input -> the name of the stage that makes it
    settings: Mapping[str, Any]
    version: int = 1
    sources: tuple[str, ...] = ()  # files and folders from outside the workdir
    files_read: FilesRead = field(default_factory=dict)  # of a source that is not here, all
    trains: bool = False  # it has a training loop, of which a trace may be asked for
    single_process: bool = False  # it needs no devices: of several processes the first makes it

    @property
    def kind(self) -> str:
        return self.name.partition("/")[0]

    @property
    def function(self) -> Callable[..., dict[str, Any]]:
        module, name = self.entry.split(":")
        return getattr(importlib.import_module(f"radit_jax.stages.{module}"), name)


def stages(experiment: Experiment) -> dict[str, Stage]:
    """The stages of `experiment` by name; every stage stands behind those that it reads."""
    e = experiment
    lm_ft_role = "lm_ft_retriever" if e.lm_ft.retriever else "retriever"
    on_kilt = e.lm_ft.select == "kilt_dev"
    scoring_lm = "lm_ft" if e.score.language_model == "lm_ft" else "base/lm"
    table = [
        *_corpus_stages(e),
        Stage(
            "base/lm",
            "base:run_lm",
            _text_to_learn(e.base.lm),
            {"lm": e.base.lm, "seed": e.seed},
            version=2,
            sources=_checkpoints(e.base.lm),
            trains=True,
        ),
        *_retriever_stages(e, "retriever", e.base.retriever),
        *(_retriever_stages(e, "lm_ft_retriever", e.lm_ft.retriever) if e.lm_ft.retriever else ()),
        Stage(
            "retrieve/lm_ft",
            "retrieve:run_lm_ft",
            {"corpus": "corpus", "lm": "base/lm", **_search(lm_ft_role)},
            {
                "chunks_per_example": e.lm_ft.chunks_per_example,
                "text_fraction": e.lm_ft.text_fraction,
                "reading_fraction": e.lm_ft.reading_fraction,
                "force_gold": e.lm_ft.force_gold,
                "retrieved_background": e.lm_ft.retrieved_background,
                "max_length": e.lm_ft.sequence_length,
                "seed": e.seed,
            },
            version=4,
        ),
        Stage(
            "retrieve/r_ft",
            "retrieve:run_r_ft",
            {"corpus": "corpus", "lm": "base/lm", **_search("retriever")},
            {
                "num_chunks": e.retrieve.num_chunks,
                "text_fraction": e.r_ft.text_fraction,
                "text_tokens": e.r_ft.text_tokens,
                "num_examples": e.r_ft.num_examples,
                "max_length": e.score.sequence_length,
                "seed": e.seed,
            },
            version=4,
        ),
        Stage(
            "lm_ft",
            "lm_ft:run",
            {
                "corpus": "corpus",
                "lm": "base/lm",
                "retrieved": "retrieve/lm_ft",
                **(_search("retriever") if on_kilt else {}),
            },
            {"lm_ft": e.lm_ft, "seed": e.seed, **(_selection(e) if on_kilt else {})},
            version=2,
            sources=(e.lm_ft.select_folder,) if on_kilt else (),
            files_read=_task_sources(registry.development_tasks(e)) if on_kilt else {},
            trains=True,
        ),
        Stage(
            "score",
            "score:run",
            {"corpus": "corpus", "lm": scoring_lm, "retrieved": "retrieve/r_ft"},
            {"score": e.score},
            version=2,
        ),
        Stage(
            "r_ft",
            "r_ft:run",
            {
                "corpus": "corpus",
                "lm": scoring_lm,
                "retrieved": "retrieve/r_ft",
                "scores": "score",
                **_search("retriever"),
            },
            {"r_ft": e.r_ft, "score": e.score, "seed": e.seed},
            version=2,
            trains=True,
        ),
        *(_embedding_stages(e, "r_ft", "r_ft") if e.r_ft.train_chunk_encoder else ()),
        Stage(
            "evaluate",
            "evaluate:run",
            {
                "corpus": "corpus",
                "base_lm": "base/lm",
                "lm_ft": "lm_ft",
                "r_ft": "r_ft",
                **_search("retriever"),
                **_tuned_search(e),
            },
            {"evaluate": e.evaluate, "temperature": e.r_ft.temperature, "seed": e.seed},
            version=2,
            sources=_task_files(e.evaluate),
            files_read=_task_sources(e.evaluate),
        ),
        Stage(
            "export",
            "export:run",
            {
                "corpus": "corpus",
                "base_lm": "base/lm",
                "lm_ft": "lm_ft",
                "retrieved": "retrieve/r_ft",
                "scores": "score",
                "r_ft": "r_ft",
                **({"evaluated": "evaluate"} if e.export.measured else {}),
                **_search("retriever"),
                **_tuned_search(e),
            },
            {
                # How to answer, not what.
                "evaluate": replace(e.evaluate, tasks=(), tasks_folder="", kilt_titles=""),
                "temperature": e.r_ft.temperature,
                "lm_score": e.r_ft.lm_score,
                "tau": e.r_ft.tau,
                "export": e.export,
            },
        ),
    ]
    return {stage.name: stage for stage in table}


def _selection(e: Experiment) -> dict[str, Any]:
    """What judges LM-ft's checkpoints on KILT: evaluation's settings, on the dev part of KILT's tasks."""
    return {"evaluate": registry.development_tasks(e), "temperature": e.r_ft.temperature}


def _corpus_stages(e: Experiment) -> tuple[Stage, ...]:
    """From where the data come from to chunks and questions."""
    data = e.data
    if isinstance(data, GeneratedWorld | Folder):
        of_folder = isinstance(data, Folder)
        return (
            Stage(
                "corpus",
                "corpus:run",
                {},
                {"data": data, "seed": e.seed},
                version=3,
                sources=(data.folder,) if of_folder else (),
                files_read={data.folder: functools.partial(folder.source_files, data)} if of_folder else {},
                single_process=True,
            ),
        )
    return (
        Stage(
            "corpus/chunks",
            "corpus:run_chunks",
            {},
            {
                "passages": data.passages,
                "format": data.passages_format,
                "quoting": data.quoting,
                "max_words": data.max_words,
            },
            version=2,
            sources=(data.passages,),
            files_read={
                data.passages: functools.partial(
                    instructions.corpus_sources, data.passages, data.passages_format
                )
            },
            single_process=True,
        ),
        Stage(
            "corpus",
            "corpus:run_examples",
            {"chunks": "corpus/chunks"},
            {
                "data": replace(data, corpus="", passages_file=""),
                "text_fraction": e.lm_ft.text_fraction,
                "instances_per_example": e.lm_ft.chunks_per_example if e.lm_ft.retrieved_background else 1,
                "seed": e.seed,
            },
            version=5,
            sources=(data.datasets,),
            files_read={data.datasets: functools.partial(instructions.dataset_sources, data)},
            single_process=True,
        ),
    )


def _text_to_learn(model: LmConfig | RetrieverConfig) -> dict[str, str]:
    """What a base model reads: the corpus, or nothing where it is a checkpoint."""
    return {} if model.checkpoint else {"corpus": "corpus"}


def _retriever_stages(e: Experiment, role: str, retriever: RetrieverConfig) -> tuple[Stage, ...]:
    """From a dual encoder's settings to an index of the corpus that can be searched with it."""
    return (
        Stage(
            f"base/{role}",
            "base:run_retriever",
            _text_to_learn(retriever),
            {"retriever": retriever, "seed": e.seed},
            version=2,
            sources=_checkpoints(retriever),
            trains=True,
        ),
        *_embedding_stages(e, role, f"base/{role}"),
    )


def _embedding_stages(e: Experiment, role: str, encoders: str) -> tuple[Stage, ...]:
    """The corpus embedded and indexed with the encoders that the stage `encoders` leaves."""
    return (
        Stage(
            f"embed/{role}", "embed:run", {"corpus": _chunks(e), "retriever": encoders}, {"embed": e.embed}
        ),
        Stage(
            f"index/{role}",
            "index:run",
            {"corpus": "corpus", "retriever": encoders, "embeddings": f"embed/{role}"},
            {"index": e.index},
        ),
    )


def _chunks(e: Experiment) -> str:
    """The stage that makes the chunks."""
    return "corpus/chunks" if isinstance(e.data, Instructions) else "corpus"


def _search(role: str) -> dict[str, str]:
    """The inputs that a stage needs to retrieve."""
    return {"retriever": f"base/{role}", "embeddings": f"embed/{role}", "index": f"index/{role}"}


def _task_files(evaluate: EvaluateConfig) -> tuple[str, ...]:
    """The folder of official files, and files of questions from elsewhere; an unknown task is an error."""
    own = [name for name in evaluate.tasks if not find_task(name).is_official]
    folder = [evaluate.tasks_folder] if evaluate.tasks and evaluate.tasks_folder else []
    folder += [evaluate.kilt_titles] if evaluate.tasks and evaluate.kilt_titles else []
    return (*folder, *(name for name in own if os.path.isabs(name) or not folder))


def _task_sources(evaluate: EvaluateConfig) -> FilesRead:
    """What tasks read of their folder, and of a file of judgements the queries too."""
    own = [name for name in evaluate.tasks if not find_task(name).is_official]
    return {
        **{name: functools.partial(question_files, epath.Path(name)) for name in own},
        evaluate.tasks_folder: functools.partial(registry.task_files, evaluate),
    }


def _tuned_search(e: Experiment) -> dict[str, str]:
    """What a stage needs beside, where R-ft tuned the chunk encoder too."""
    return {"r_ft_embeddings": "embed/r_ft", "r_ft_index": "index/r_ft"} if e.r_ft.train_chunk_encoder else {}


def _checkpoints(model: LmConfig | RetrieverConfig) -> tuple[str, ...]:
    return tuple(path for path in (model.checkpoint, getattr(model, "chunk_checkpoint", "")) if path)


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
        settings = _without_paths(_fingerprinted(canonical(stage.settings)), sources)
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
            described.check_checkpoints(self.experiment)

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
        known = [manifest.get("settings") for manifest in self.workdir.manifests(stage.kind)]
        earlier = [
            settings
            for settings in known
            if isinstance(settings, dict) and settings.keys() == stage.settings.keys()
        ]
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
