"""Evaluating a language model on a task: its questions and shots, the answers, and their marks.

Evaluation asks every task of an experiment this way. LM-ft, with `lm_ft.select=kilt_dev`, asks KILT's
development tasks to choose its checkpoint.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from radit_jax.config import OWN_ANSWERS, EvaluateConfig, MeshConfig, ScoreConfig
from radit_jax.data.artifacts.corpus import Chunks
from radit_jax.data.batches.few_shot import Shot
from radit_jax.data.batches.prefix_trees import LmTokenizer
from radit_jax.data.eval_tasks.registry import find_task
from radit_jax.data.eval_tasks.task import EvalExample, EvalTask, draw_shots, sample
from radit_jax.data.readers.kilt_pages import PageOf
from radit_jax.data.records import Chunk
from radit_jax.evaluation.multiple_choice import choose
from radit_jax.lm.answering import Retrieval, Retriever, generate_answers
from radit_jax.lm.scoring import NO_CHUNK, PairScorer
from radit_jax.runtime.distributed.mesh import make_mesh, row_layout
from radit_jax.runtime.monitoring.progress import Progress
from radit_jax.runtime.pretrained.model_io import Model
from radit_jax.text.kilt import r_precision

ExampleResult = dict[str, Any]
TOO_LONG = "skipped_too_long"  # among a task's counts


@dataclass(frozen=True)
class LoadedTask:
    """A task's questions as they are asked: which of them, and after which examples."""

    task: EvalTask
    items: Sequence[EvalExample]
    shots: Sequence[Sequence[EvalExample]]  # each item's own, the nearest last
    counts: Mapping[str, int] = field(default_factory=dict)  # of lines read and skipped
    split: str = "test"
    part: str = ""  # which questions the split has, in words

    @property
    def is_marked(self) -> bool:
        """Whether gold answers are known: KILT's hidden test questions get predictions only."""
        return any(item.answers for item in self.items)

    @property
    def retrieves(self) -> bool:
        """Whether chunks are retrieved: the commonsense tasks have no query."""
        return any(item.query for item in self.items)

    @property
    def has_pages(self) -> bool:
        """Whether gold Wikipedia pages are known, as in KILT's files."""
        return any(item.pages for item in self.items)

    @property
    def shot_items(self) -> list[EvalExample]:
        """Every example once."""
        all_shots = itertools.chain.from_iterable(self.shots)
        return list({shot.id: shot for shot in all_shots}.values())


class TaskResult(NamedTuple):
    """A language model's marks in a task, and how many prompts were cut or lost shots."""

    marks: list[ExampleResult]
    counts: dict[str, int]


def load_tasks(settings: EvaluateConfig, *, seed: int) -> list[LoadedTask]:
    """The tasks that `evaluate.tasks` names, none of them twice."""
    tasks = [_load(find_task(name), settings, seed) for name in settings.tasks]
    names = Counter(loaded.task.name for loaded in tasks)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"evaluate.tasks: expected each task once, got {twice[0]} twice. Name it once.")
    return tasks


def _load(task: EvalTask, settings: EvaluateConfig, seed: int) -> LoadedTask:
    counts = Counter[str]()
    items = task.load(settings.tasks_folder, settings.split, counts)
    if settings.questions_per_task:
        items = sample(items, settings.questions_per_task, seed=seed)
    part = task.describe(settings.tasks_folder, settings.split)
    return LoadedTask(task, items, _draw(task, items, settings, seed), counts, settings.split, part)


def _draw(
    task: EvalTask, items: Sequence[EvalExample], settings: EvaluateConfig, seed: int
) -> list[list[EvalExample]]:
    """Each item's shots; where they come from the questions themselves, none is a question's own."""
    if not settings.shots:
        return [[] for _ in items]
    pool = task.load(settings.tasks_folder, "train")
    spare = int(task.splits["train"] == task.splits[settings.split])
    drawn = {}
    for subject in {item.subject for item in items}:
        drawn[subject] = draw_shots(pool, settings.shots + spare, seed=seed, subject=subject)
    shots = []
    for item in items:
        others = [shot for shot in drawn[item.subject] if not spare or shot.id != item.id]
        shots.append(others[: settings.shots])
    return shots


def longest_answer(settings: EvaluateConfig) -> int:
    """The most tokens of any answer that `settings` ask for, which is at least 1."""
    longest = [find_task(name).max_new_tokens for name in settings.tasks] or [OWN_ANSWERS]
    return settings.answering(max(1, *longest)).max_new_tokens


def without_too_long(loaded: LoadedTask, tokenizer: LmTokenizer, settings: EvaluateConfig) -> LoadedTask:
    """The task without the questions that do not fit into a row even without a Background.

    They are counted, and a warning is printed.

    `settings` are those of `evaluate`, whichever stage asks.
    """
    longest = settings.answering(loaded.task.max_new_tokens).max_new_tokens
    fitting, sizes = [], {}
    for number, item in enumerate(loaded.items):
        sizes[item.id] = 1 + _longest(loaded.task, item, tokenizer, longest)
        if sizes[item.id] <= settings.sequence_length:
            fitting.append(number)
    if len(fitting) == len(loaded.items):
        return loaded
    left_out, worst = len(loaded.items) - len(fitting), max(sizes, key=sizes.__getitem__)
    message = (
        f"questions too long for the row of evaluate.sequence_length {settings.sequence_length}: {left_out}; "
        f"{worst} has {sizes[worst]} tokens with <bos> and its answer"
    )
    if not fitting:
        raise ValueError(f"{loaded.task.name}: expected questions that fit, got none. {message}. Raise it.")
    print(f"   warning: {loaded.task.name}: {message}; left out", flush=True)
    counts = {**loaded.counts, TOO_LONG: left_out}
    items, shots = [loaded.items[n] for n in fitting], [loaded.shots[n] for n in fitting]
    return replace(loaded, items=items, shots=shots, counts=counts)


def _longest(task: EvalTask, item: EvalExample, tokenizer: LmTokenizer, max_new_tokens: int) -> int:
    """Tokens of prompt and answer, of the longest choice where there are any."""
    if task.generates:
        return len(tokenizer.encode(tokenizer.opening + item.prompt)) + max_new_tokens
    prompts = {choice.prompt: 0 for choice in item.choices}
    for choice in item.choices:
        prompts[choice.prompt] = max(prompts[choice.prompt], len(tokenizer.encode(choice.scored)))
    return max(len(tokenizer.encode(tokenizer.opening + p)) + answer for p, answer in prompts.items())


class TaskChunks(NamedTuple):
    """What was retrieved for a task: chunks of its questions, and the Backgrounds of shots by their ids."""

    retrieval: Retrieval
    shot_passages: Mapping[str, str]


def retrieve_for_task(
    loaded: LoadedTask, searcher: Retriever, chunks: Chunks, settings: EvaluateConfig, temperature: float
) -> TaskChunks:
    """Each question's k chunks with their weights p_R, and each shot's top one."""
    queries = [item.query for item in loaded.items]
    rows, log_probs = searcher.retrieve(queries, settings.chunks_per_answer, temperature)
    shots = loaded.shot_items if settings.shot_backgrounds else []
    passages = {}
    if shots:
        top, _ = searcher.search([shot.query for shot in shots], 1)
        found = chunks.take(top[:, 0])
        passages = {shot.id: chunk.passage for shot, chunk in zip(shots, found, strict=True)}
    return TaskChunks(Retrieval(chunks, rows, log_probs), passages)


def evaluate_task(
    loaded: LoadedTask,
    scorer: PairScorer,
    settings: EvaluateConfig,
    name: str,
    *,
    retrieved: TaskChunks | None = None,
    page_of: PageOf | None = None,
) -> TaskResult:
    """Every question's answer and mark, under the chunks `retrieved` for it, or without a Background.

    A mark has the task's metric and the ids of its chunks. Where a chunk's page is known it has the `pages`;
    with gold ones also `r_precision` and `kilt_…`, the metric where that is 1 and else 0.
    """
    retrieval, passages = retrieved or TaskChunks(Retrieval.none(len(loaded.items)), {})
    shots = [_with_passages(examples, passages) for examples in loaded.shots]
    settings = settings.answering(loaded.task.max_new_tokens)
    ask = _generated if loaded.task.generates else _chosen
    marks, counts = ask(loaded, scorer, settings, name, retrieval, shots)
    for item, mark, chunks in zip(loaded.items, marks, _chunks(retrieval), strict=True):
        mark["chunks"] = [chunk.id for chunk in chunks]
        if page_of is None:
            continue
        mark["pages"] = [page for page in map(page_of, chunks) if page]
        if loaded.has_pages:
            precision = r_precision(mark["pages"], item.pages)
            kilt = {f"kilt_{loaded.task.metric}": mark[loaded.task.metric] * (precision == 1)}
            mark.update(r_precision=precision, **kilt)
    return TaskResult(marks, dict(counts))


def _with_passages(examples: Sequence[EvalExample], passages: Mapping[str, str]) -> list[Shot]:
    """The examples as shots, each with its Background where one was retrieved."""
    return [Shot(passages.get(example.id), *example.shot) for example in examples]


def _generated(
    loaded: LoadedTask,
    scorer: PairScorer,
    settings: EvaluateConfig,
    name: str,
    retrieval: Retrieval,
    shots: Sequence[Sequence[Shot]],
) -> tuple[list[ExampleResult], Counter[str]]:
    prompts = [item.prompt for item in loaded.items]
    with Progress(len(prompts), name, "questions") as bar:
        per_token = loaded.task.scoring_rule == "nll_token"
        answers_of, counts = generate_answers(
            scorer.model, prompts, retrieval, settings, shots=shots, per_token=per_token, bar=bar
        )
    marks = []
    for item, answers in zip(loaded.items, answers_of, strict=True):
        best = answers[0].text
        marks.append(
            {
                "id": item.id,
                "answer": loaded.task.answer(best),
                loaded.task.metric: loaded.task.mark(item, best),
                "answers": [{"answer": text, "probability": probability} for text, probability in answers],
            }
        )
    return marks, counts


def _chosen(
    loaded: LoadedTask,
    scorer: PairScorer,
    settings: EvaluateConfig,
    name: str,
    retrieval: Retrieval,
    shots: Sequence[Sequence[Shot]],
) -> tuple[list[ExampleResult], Counter[str]]:
    concatenate = settings.ensemble == "concatenate"
    prompts = 1 if concatenate else retrieval.rows.shape[1]
    with Progress(prompts * sum(len(item.choices) for item in loaded.items), name, "choices") as bar:
        results, counts = choose(
            scorer,
            loaded.items,
            loaded.task.scoring_rule,
            retrieval=retrieval,
            concatenate=concatenate,
            shots=shots,
            bar=bar,
        )
    marks = []
    for item, result in zip(loaded.items, results, strict=True):
        marks.append(
            {
                "id": item.id,
                "answer": item.choices[result.choice].answer,
                loaded.task.metric: float(result.choice == item.label),
                "scores": [float(score) for score in result.scores],
            }
        )
    return marks, counts


def _chunks(retrieval: Retrieval) -> list[list[Chunk]]:
    """The chunks of each question, the best first."""
    if retrieval.chunks is None:
        return [[] for _ in retrieval.rows]
    distinct = np.unique(retrieval.rows[retrieval.rows != NO_CHUNK])
    chunk_at = dict(zip(distinct.tolist(), retrieval.chunks.take(distinct), strict=True))
    by_question = []
    for rows in retrieval.rows.tolist():
        by_question.append([chunk_at[row] for row in rows if row != NO_CHUNK])
    return by_question


def mean_metric(
    tasks: Sequence[LoadedTask], chunks: Sequence[TaskChunks], scorer: PairScorer, settings: EvaluateConfig
) -> float:
    """The mean over tasks of each task's mean metric."""
    means = []
    for loaded, retrieved in zip(tasks, chunks, strict=True):
        result = evaluate_task(loaded, scorer, settings, loaded.task.name, retrieved=retrieved)
        means.append(float(np.mean([mark[loaded.task.metric] for mark in result.marks])))
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
    """What `train_lm` validates with: parameters to `kilt_dev`, the mean metric of the tasks.

    `settings` are evaluation's, which will judge the checkpoint. Rows come in batches of the training's size,
    so that they are read where the parameters are.
    """
    score = ScoreConfig(batch_size=batch_size, sequence_length=settings.sequence_length, dtype=settings.dtype)
    devices = make_mesh(mesh, rows=batch_size)
    module = model.module.clone(dtype=jnp.dtype(settings.dtype), layout=row_layout(devices))

    def validate(params: Any) -> dict[str, float]:
        scorer = PairScorer(model._replace(module=module, params=params), devices, score)
        return {"kilt_dev": mean_metric(tasks, chunks, scorer, settings)}

    return validate
