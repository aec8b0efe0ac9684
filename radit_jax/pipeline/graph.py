"""The stages of RA-DIT in their order, and what each depends on."""

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
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
    ScoreConfig,
)
from radit_jax.data.eval_tasks import registry
from radit_jax.data.eval_tasks.registry import find_task
from radit_jax.data.readers.questions import question_files
from radit_jax.data.sources import folder, instructions
from radit_jax.pipeline.stage import FilesRead, Stage

KINDS = ("corpus", "base", "embed", "index", "retrieve", "lm_ft", "score", "r_ft", "evaluate", "export")


def stages(experiment: Experiment) -> dict[str, Stage]:
    """The method in order: the stages of `experiment` by name, each after those that it reads."""
    # A file of scores may lack some: that is known before LM-ft, which takes long.
    lm_ft = _lm_ft_stage(experiment)
    score, *r_ft = _r_ft_stages(experiment)
    tuning = (score, lm_ft) if experiment.score.file else (lm_ft, score)
    table = (
        *_corpus_stages(experiment),
        *_base_stages(experiment),
        *_retrieve_stages(experiment),
        *tuning,
        *r_ft,
        _evaluate_stage(experiment),
        _export_stage(experiment),
    )
    return {stage.name: stage for stage in table}


# --- Corpus: where the data come from, to chunks and questions -------------------------------------


def _corpus_stages(e: Experiment) -> tuple[Stage, ...]:
    if isinstance(e.data, Instructions):
        return (_chunks_stage(e.data), _examples_stage(e, e.data))
    return (_whole_corpus_stage(e, e.data),)


def _whole_corpus_stage(e: Experiment, data: GeneratedWorld | Folder) -> Stage:
    """Chunks and questions together."""
    # A generated world is made of its settings and the seed.
    sources, files_read = (), {}
    if isinstance(data, Folder):
        sources = (data.folder,)
        files_read = {data.folder: functools.partial(folder.source_files, data)}
    return Stage(
        "corpus",
        "corpus:run",
        {},
        {"data": data, "seed": e.seed},
        version=3,
        sources=sources,
        files_read=files_read,
        single_process=True,
    )


def _chunks_stage(data: Instructions) -> Stage:
    """Chunks alone: other datasets of instructions leave their embeddings as they are."""
    passage_files = functools.partial(instructions.corpus_sources, data.passages, data.passages_format)
    return Stage(
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
        files_read={data.passages: passage_files},
        single_process=True,
    )


def _examples_stage(e: Experiment, data: Instructions) -> Stage:
    """The examples of the datasets, with the chunks."""
    return Stage(
        "corpus",
        "corpus:run_examples",
        {"chunks": "corpus/chunks"},
        {
            # Where the chunks come from is in their stage's fingerprint.
            "data": replace(data, corpus="", passages_file=""),
            "corpus_text_fraction": e.lm_ft.corpus_text_fraction,
            "instances_per_example": e.lm_ft.chunks_per_example if e.lm_ft.retrieved_background else 1,
            "seed": e.seed,
        },
        version=5,
        sources=(data.datasets,),
        files_read={data.datasets: functools.partial(instructions.dataset_sources, data)},
        single_process=True,
    )


def _chunks(e: Experiment) -> str:
    """The name of the stage that makes the chunks."""
    return "corpus/chunks" if isinstance(e.data, Instructions) else "corpus"


# --- Base: the language model, and each retriever with its index -----------------------------------


def _base_stages(e: Experiment) -> tuple[Stage, ...]:
    models = [_lm_stage(e, "lm", e.base.lm)]
    # Another model may label.
    if e.score.checkpoint:
        labeller = LmConfig(checkpoint=e.score.checkpoint, prompt=e.base.lm.prompt)
        models.append(_lm_stage(e, "labeller", labeller, e.score.dtype))
    retrievers = _retriever_stages(e, "retriever", e.base.retriever)
    # LM-ft may learn with the chunks of a retriever of its own.
    if e.lm_ft.retriever:
        retrievers += _retriever_stages(e, "lm_ft_retriever", e.lm_ft.retriever)
    return (*models, *retrievers)


def _lm_stage(e: Experiment, role: str, lm: LmConfig, dtype: str = "float32") -> Stage:
    """A language model whose parameters are kept in `dtype`: in float32 where they are to be trained."""
    return Stage(
        f"base/{role}",
        "base:run_lm",
        _text_to_learn(lm),
        {"lm": lm, "seed": e.seed, **({"dtype": dtype} if dtype != "float32" else {})},
        version=2,
        sources=_checkpoints(lm),
        trains=True,
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
    # Embeddings depend on the chunks alone; the index is tuned on questions, which are the corpus'.
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


def _checkpoints(model: LmConfig | RetrieverConfig) -> tuple[str, ...]:
    """The checkpoints that a base model is read from."""
    paths = (model.checkpoint, getattr(model, "chunk_checkpoint", ""))
    return tuple(path for path in paths if path)


# --- The method: retrieve, LM-ft, score, R-ft -------------------------------------------------------


def _retrieve_stages(e: Experiment) -> tuple[Stage, ...]:
    """The examples of D_L and D_R with the chunks that an untuned retriever finds for them."""
    lm_ft_role = "lm_ft_retriever" if e.lm_ft.retriever else "retriever"
    return (
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
                "max_length": e.lm_ft.sequence_length,  # of the rows of the stage that reads the examples
                "seed": e.seed,
            },
            version=4,
        ),
        Stage(
            "retrieve/r_ft",
            "retrieve:run_r_ft",
            {
                "corpus": "corpus",
                "lm": "base/lm",
                # Examples that do not fit into the labeller's rows are left out.
                **({"labeller": "base/labeller"} if e.score.checkpoint else {}),
                **_search("retriever"),
            },
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
    )


def _lm_ft_stage(e: Experiment) -> Stage:
    """LM-ft, Eq. 3."""
    inputs = {"corpus": "corpus", "lm": "base/lm", "retrieved": "retrieve/lm_ft"}
    settings: dict[str, Any] = {"lm_ft": e.lm_ft, "seed": e.seed}
    # By default checkpoints are chosen by the development examples of D_L, which `retrieved` holds.
    sources, files_read = (), {}
    if e.lm_ft.select == "kilt_dev":
        # Checkpoints are chosen as evaluation would, on the dev part of KILT's tasks.
        evaluate = registry.development_tasks(e)
        inputs |= _search("retriever")
        settings |= {"evaluate": evaluate, "temperature": e.retrieve.temperature}
        sources, files_read = (e.lm_ft.select_folder,), _task_sources(evaluate)
    return Stage(
        "lm_ft",
        "lm_ft:run",
        inputs,
        settings,
        version=2,
        sources=sources,
        files_read=files_read,
        trains=True,
    )


def _r_ft_stages(e: Experiment) -> tuple[Stage, ...]:
    """LSR scores (Eq. 4), then R-ft on them (Eq. 5). A tuned chunk encoder embeds the corpus again."""
    # R-ft reads the same model as scoring. It scores candidates that are retrieved during training
    # (`r_ft.refresh_every`), and those of development examples.
    scoring_lm, score = _scoring(e)
    read_by_both = {"corpus": "corpus", "lm": scoring_lm, "retrieved": "retrieve/r_ft"}
    scores = Stage("score", "score:run", read_by_both, {"score": score}, version=2)
    if e.score.file:
        scores = _imported_scores_stage(e.score.file)
    return (
        scores,
        Stage(
            "r_ft",
            "r_ft:run",
            {**read_by_both, "scores": "score", **_search("retriever")},
            {"r_ft": e.r_ft, "score": score, "temperature": e.retrieve.temperature, "seed": e.seed},
            version=2,
            trains=True,
        ),
        *(_embedding_stages(e, "r_ft", "r_ft") if e.r_ft.train_chunk_encoder else ()),
    )


def _scoring(e: Experiment) -> tuple[str, ScoreConfig]:
    """The stage whose language model scores, and the settings, in which no path stands.

    The paper scores with the base language model, and so is what a file of scores lacks.
    """
    if e.score.language_model == "lm_ft":
        return "lm_ft", e.score
    if e.score.checkpoint:
        # Which one it is, is in the fingerprint of its stage.
        return "base/labeller", replace(e.score, language_model="labeller")
    return "base/lm", replace(e.score, language_model="base")


def _imported_scores_stage(file: str) -> Stage:
    """Scores from a file, in the place of those that a language model gives."""
    return Stage(
        "score",
        "score:run_imported",
        {"corpus": "corpus", "retrieved": "retrieve/r_ft"},
        {"file": file},
        sources=(file,),
        single_process=True,
    )


def _search(role: str) -> dict[str, str]:
    """The inputs that a stage needs to retrieve."""
    return {"retriever": f"base/{role}", "embeddings": f"embed/{role}", "index": f"index/{role}"}


def _tuned_search(e: Experiment) -> dict[str, str]:
    """The inputs that a stage needs as well, where R-ft tunes the chunk encoder too."""
    if not e.r_ft.train_chunk_encoder:
        return {}
    return {"r_ft_embeddings": "embed/r_ft", "r_ft_index": "index/r_ft"}


# --- The ablation and the export -------------------------------------------------------------------


def _evaluate_stage(e: Experiment) -> Stage:
    """The five systems, or both retrievers alone."""
    language_models = {"base_lm": "base/lm", "lm_ft": "lm_ft"} if e.evaluate.answers else {}
    return Stage(
        "evaluate",
        "evaluate:run",
        {
            "corpus": "corpus",
            **language_models,
            "r_ft": "r_ft",
            **_search("retriever"),
            **_tuned_search(e),
        },
        {"evaluate": e.evaluate, "temperature": e.retrieve.temperature, "seed": e.seed},
        version=2,
        sources=_task_files(e.evaluate),
        files_read=_task_sources(e.evaluate),
    )


def _export_stage(e: Experiment) -> Stage:
    return Stage(
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
            # How to answer, not what: other tasks make no other export.
            "evaluate": replace(e.evaluate, tasks=(), tasks_folder="", kilt_titles=""),
            "temperature": e.retrieve.temperature,
            "lm_score": e.r_ft.lm_score,
            "tau": e.r_ft.tau,
            "export": e.export,
        },
        # Since version 2 the file of scores can be imported.
        version=2 if e.export.lsr_scores else 1,
    )


def _task_files(evaluate: EvaluateConfig) -> tuple[str, ...]:
    """The folder of official files, and files of questions from elsewhere; an unknown task is an error."""
    if not evaluate.tasks:
        return ()
    shared = [path for path in (evaluate.tasks_folder, evaluate.kilt_titles) if path]
    # A relative path lies in the folder, where there is one.
    elsewhere = [name for name in _files_of_questions(evaluate) if os.path.isabs(name) or not shared]
    return (*shared, *elsewhere)


def _task_sources(evaluate: EvaluateConfig) -> FilesRead:
    """What the tasks read of their folder, and the files that belong to each file of questions."""
    files_read: dict[str, Callable[[], Sequence[epath.Path] | None]] = {}
    for name in _files_of_questions(evaluate):
        files_read[name] = functools.partial(question_files, epath.Path(name))
    files_read[evaluate.tasks_folder] = functools.partial(registry.task_files, evaluate)
    return files_read


def _files_of_questions(evaluate: EvaluateConfig) -> list[str]:
    """The tasks that are files people bring."""
    return [name for name in evaluate.tasks if not find_task(name).is_official]
