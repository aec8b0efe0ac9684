"""Evaluating a language model on a task: the chunks for its questions, the answers, and their metrics.

Evaluation asks every task of an experiment this way. With `lm_ft.select=kilt_dev` LM-ft asks KILT's
development tasks in the same way, to choose its checkpoint.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from radit_jax.config import EvaluateConfig, MeshConfig, ScoreConfig
from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.batches.few_shot import Shot
from radit_jax.data.eval_tasks.task import EvalExample
from radit_jax.data.readers.kilt_pages import PageOf
from radit_jax.data.records import Chunk
from radit_jax.evaluation.details import TaskDetail, add_chunks, chosen_detail, generated_detail
from radit_jax.evaluation.multiple_choice import choose
from radit_jax.evaluation.predictions import text_records
from radit_jax.evaluation.questions import LoadedTask
from radit_jax.lm.answering import ChunkSearch, Retrieval, generate_answers
from radit_jax.lm.prefix_sharing import round_up
from radit_jax.lm.scoring import NO_CHUNK, PairScorer
from radit_jax.models.frozen import cast_frozen
from radit_jax.runtime.distributed.answering_mesh import AnsweringModel, answering_mesh, tokens_at_once
from radit_jax.runtime.distributed.memory import bytes_per_device
from radit_jax.runtime.distributed.mesh import configure_attention, data_parallel_size, put_params
from radit_jax.runtime.monitoring.progress import Progress
from radit_jax.runtime.pretrained.model_io import Model, casts_frozen
from radit_jax.text.kilt import r_precision

COPIES_IN_TRAINING = 4  # of the parameters, at most: as they were and are, and Adam's two moments
ExampleResult = dict[str, Any]  # a question's id, answer and metrics


class TaskResult(NamedTuple):
    """A language model's results on a task's questions, and how many prompts were cut or lost shots."""

    results: list[ExampleResult]
    counts: dict[str, int]
    details: Sequence[TaskDetail] = ()  # a question's each; none where an earlier version answered

    def to_json(self) -> dict[str, Any]:
        """The object that the stage's file of these results holds."""
        # The key is part of the file format: files of earlier runs have it.
        return {"marks": self.results, "counts": self.counts, "details": list(self.details)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "TaskResult":
        """The results that `to_json` made an object of."""
        return cls(stored["marks"], stored["counts"], stored.get("details", ()))

    @classmethod
    def join(cls, parts: Sequence["TaskResult"]) -> "TaskResult":
        """The results of all questions, from those of their parts in order."""
        results: list[ExampleResult] = []
        details: list[TaskDetail] = []
        counts = Counter[str]()
        for part in parts:
            results += part.results
            details += part.details
            counts.update(part.counts)
        return cls(results, dict(counts), details)


class TaskChunks(NamedTuple):
    """The chunks retrieved for a task: those of its questions, and the Backgrounds of shots by their ids."""

    retrieval: Retrieval
    shot_passages: Mapping[str, str]

    def take(self, questions: slice) -> "TaskChunks":
        """The same for these questions only."""
        return TaskChunks(self.retrieval.part(questions), self.shot_passages)


def retrieve_for_task(
    loaded: LoadedTask,
    searcher: ChunkSearch,
    chunks: Chunks,
    settings: EvaluateConfig,
    temperature: float,
) -> TaskChunks:
    """Each question's k chunks with their weights p_R, and each shot's top one."""
    # A question gets k chunks.
    queries = [item.query for item in loaded.items]
    rows, log_probs = searcher.retrieve(
        queries,
        settings.chunks_per_answer,
        temperature,
    )
    retrieval = Retrieval(chunks, rows, log_probs)

    # A shot gets its best chunk only, so that several shots fit into a row.
    shots = loaded.shot_items if settings.shot_backgrounds else []
    if not shots:
        return TaskChunks(retrieval, {})
    top_rows, _ = searcher.search([shot.query for shot in shots], 1)
    top_chunks = chunks.take(top_rows[:, 0])
    passages = {shot.id: chunk.passage for shot, chunk in zip(shots, top_chunks, strict=True)}
    return TaskChunks(retrieval, passages)


def evaluate_task(
    loaded: LoadedTask,
    scorer: PairScorer,
    settings: EvaluateConfig,
    name: str,
    *,
    retrieved: TaskChunks | None = None,
    page_of: PageOf | None = None,
) -> TaskResult:
    """Every question's answer and metric, under the chunks `retrieved` for it, or without a Background.

    A result has the ids of the question's chunks. With `page_of`, which names a chunk's Wikipedia page, it
    has their `pages`. Where gold pages are known it also has `r_precision`, and `kilt_…`: the task's metric
    if R-precision is 1, else 0.
    """
    # 1) Ask.
    task = loaded.task
    retrieval, passages = retrieved or TaskChunks(Retrieval.none(len(loaded.items)), {})
    shots = [_with_passages(examples, passages) for examples in loaded.shots]
    settings = settings.answering(task.max_new_tokens)
    ask = _generated if task.generates else _chosen
    results, counts, details = ask(loaded, scorer, settings, name, retrieval, shots)

    # 2) Say what each answer was based on, and score that by KILT's rules.
    for item, result, chunks in zip(loaded.items, results, _chunks(retrieval), strict=True):
        result["chunks"] = [chunk.id for chunk in chunks]
        if page_of is None:
            continue
        pages = [page for page in map(page_of, chunks) if page]
        result["pages"] = pages
        if loaded.has_pages:
            precision = r_precision(pages, item.pages)
            result["r_precision"] = precision
            result[f"kilt_{task.metric}"] = result[task.metric] * (precision == 1)
    if retrieved is not None:
        add_chunks(details, retrieval)
    return TaskResult(results, counts, details)


def _with_passages(
    examples: Sequence[EvalExample],
    passages: Mapping[str, str],
) -> list[Shot]:
    """The examples as shots, each with its Background where one was retrieved."""
    return [Shot(passages.get(example.id), *example.shot) for example in examples]


def _generated(
    loaded: LoadedTask,
    scorer: PairScorer,
    settings: EvaluateConfig,
    name: str,
    retrieval: Retrieval,
    shots: Sequence[Sequence[Shot]],
) -> TaskResult:
    """Results of the answers that the language model writes; its other candidates are in `answers`."""
    task = loaded.task
    prompts = [item.prompt for item in loaded.items]
    with Progress(len(prompts), name, "questions") as bar:
        answers_of_items, counts = generate_answers(
            scorer.model,
            prompts,
            retrieval,
            settings,
            shots=shots,
            per_token=task.scoring_rule == "nll_token",
            bar=bar,
        )

    # The best answer counts; the others and their probabilities are stored for inspection.
    results = []
    for item, answers in zip(loaded.items, answers_of_items, strict=True):
        best = answers[0].text
        results.append(
            {
                "id": item.id,
                "answer": task.answer(best),
                task.metric: task.metric_value(item, best),
                "answers": text_records(answers),
            }
        )
    return TaskResult(results, dict(counts), list(map(generated_detail, answers_of_items)))


def _chosen(
    loaded: LoadedTask,
    scorer: PairScorer,
    settings: EvaluateConfig,
    name: str,
    retrieval: Retrieval,
    shots: Sequence[Sequence[Shot]],
) -> TaskResult:
    """Results of the choices that the language model makes, with the scores of all choices."""
    concatenate = settings.ensemble == "concatenate"
    prompts_per_choice = 1 if concatenate else retrieval.rows.shape[1]
    num_choices = sum(len(item.choices) for item in loaded.items)
    # Each choice is scored under every chunk, or under all chunks as one Background.
    with Progress(prompts_per_choice * num_choices, name, "choices") as bar:
        chosen, counts = choose(
            scorer,
            loaded.items,
            loaded.task.scoring_rule,
            retrieval=retrieval,
            concatenate=concatenate,
            shots=shots,
            bar=bar,
        )

    results = []
    for item, choice_result in zip(loaded.items, chosen, strict=True):
        choice = choice_result.choice
        results.append(
            {
                "id": item.id,
                "answer": item.choices[choice].answer,
                loaded.task.metric: float(choice == item.label),
                "scores": [float(score) for score in choice_result.scores],
            }
        )
    tokenizer = scorer.model.tokenizer
    details = []
    for item, choice_result in zip(loaded.items, chosen, strict=True):
        details.append(chosen_detail(item, choice_result, tokenizer))
    return TaskResult(results, dict(counts), details)


def _chunks(retrieval: Retrieval) -> list[list[Chunk]]:
    """The chunks of each question, the best first."""
    # Closed book.
    if retrieval.chunks is None:
        return [[] for _ in retrieval.rows]

    # Questions share chunks: each is read from the corpus once.
    is_chunk = retrieval.rows != NO_CHUNK
    distinct_rows = np.unique(retrieval.rows[is_chunk])
    distinct_chunks = retrieval.chunks.take(distinct_rows)
    chunk_at = dict(zip(distinct_rows.tolist(), distinct_chunks, strict=True))
    by_question = []
    for rows in retrieval.rows.tolist():
        chunks = [chunk_at[row] for row in rows if row != NO_CHUNK]
        by_question.append(chunks)
    return by_question


def mean_metric(
    tasks: Sequence[LoadedTask],
    chunks: Sequence[TaskChunks],
    scorer: PairScorer,
    settings: EvaluateConfig,
) -> float:
    """The mean over tasks of each task's mean metric."""
    # A task counts once, however many questions it has.
    means = []
    for loaded, retrieved in zip(tasks, chunks, strict=True):
        task = loaded.task
        result = evaluate_task(loaded, scorer, settings, task.name, retrieved=retrieved)
        values = [example[task.metric] for example in result.results]
        means.append(float(np.mean(values)))
    return float(np.mean(means))


def kilt_validation(
    tasks: Sequence[LoadedTask],
    chunks: Sequence[TaskChunks],
    model: Model,
    mesh: MeshConfig,
    settings: EvaluateConfig,
    *,
    batch_size: int,
) -> Callable[[Any], dict[str, float]]:
    """The function that `train_lm` validates with: from parameters to `kilt_dev`, the tasks' mean metric.

    `settings` are those of the evaluation that follows, so that it measures what the checkpoint is chosen by.
    `batch_size` are the rows that training reads at a time. The parameters that are validated are copied to
    `answering_mesh` in evaluation's dtype, while training's state waits where it is.
    """
    # 1) The mesh, and as many rows on each copy of the model.
    dtype = jnp.dtype(settings.dtype)

    def held(params: Any) -> Any:
        return cast_frozen(params, dtype) if casts_frozen() else params

    shapes = jax.eval_shape(held, model.params)
    devices = answering_mesh(
        mesh,
        AnsweringModel.of(model.module.config, shapes, dtype),
        num_tokens=tokens_at_once(settings),
        rows=batch_size,
        held=COPIES_IN_TRAINING * bytes_per_device(model.params),
    )
    score = ScoreConfig(
        batch_size=round_up(batch_size, data_parallel_size(devices)),
        sequence_length=settings.sequence_length,
        dtype=settings.dtype,
    )
    # 2) The network computes in evaluation's dtype, whatever training's is.
    module = model.module.clone(dtype=dtype)
    module = configure_attention(module, devices, mesh)

    def validate(params: Any) -> dict[str, float]:
        placed = put_params(held(params), devices)
        tuned = model._replace(module=module, params=placed)
        scorer = PairScorer(tuned, devices, score)
        return {"kilt_dev": mean_metric(tasks, chunks, scorer, settings)}

    return validate
