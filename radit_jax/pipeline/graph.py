"""The stages of RA-DIT in their order, and what each depends on."""

import functools
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
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
)
from radit_jax.data.eval_tasks import registry
from radit_jax.data.eval_tasks.registry import find_task
from radit_jax.data.readers.questions import question_files
from radit_jax.data.sources import folder, instructions

FilesRead = Mapping[str, Callable[[], Sequence[epath.Path] | None]]  # by source; None: all of it
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
                "corpus_text_fraction": e.lm_ft.corpus_text_fraction,
                "gold_context_fraction": e.lm_ft.gold_context_fraction,
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
                "corpus_text_fraction": e.r_ft.corpus_text_fraction,
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
            {"r_ft": e.r_ft, "score": e.score, "temperature": e.retrieve.temperature, "seed": e.seed},
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
            {"evaluate": e.evaluate, "temperature": e.retrieve.temperature, "seed": e.seed},
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
                "temperature": e.retrieve.temperature,
                "lm_score": e.r_ft.lm_score,
                "tau": e.r_ft.tau,
                "export": e.export,
            },
        ),
    ]
    return {stage.name: stage for stage in table}


def _selection(e: Experiment) -> dict[str, Any]:
    """What judges LM-ft's checkpoints on KILT: evaluation's settings, on the dev part of KILT's tasks."""
    return {"evaluate": registry.development_tasks(e), "temperature": e.retrieve.temperature}


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
                "corpus_text_fraction": e.lm_ft.corpus_text_fraction,
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
