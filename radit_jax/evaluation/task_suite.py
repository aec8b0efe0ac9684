"""Evaluating a language model on a task: its questions and shots, the answers, and their metrics.

Evaluation asks every task of an experiment this way. With `lm_ft.select=kilt_dev` LM-ft asks KILT's
development tasks in the same way, to choose its checkpoint.
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

ExampleResult = dict[str, Any]  # a question's id, answer and metrics
TOO_LONG = "skipped_too_long"  # among a task's counts


@dataclass(frozen=True)
class LoadedTask:
    """A task's questions as they are asked: which of them, and after which examples."""

    task: EvalTask
    items: Sequence[EvalExample]
    shots: Sequence[Sequence[EvalExample]]  # the examples before each item, the nearest last
    counts: Mapping[str, int] = field(default_factory=dict)  # of lines read and skipped
    split: str = "test"
    part: str = ""  # which questions the split has, in words

    @property
    def has_answers(self) -> bool:
        """Whether gold answers are known: KILT's hidden test questions get predictions only."""
        return any(item.answers for item in self.items)

    @property
    def retrieves(self) -> bool:
        """Whether chunks are retrieved, which the commonsense tasks have no query for."""
        return any(item.query for item in self.items)

    @property
    def has_pages(self) -> bool:
        """Whether gold Wikipedia pages are known, as in KILT's files."""
        return any(item.pages for item in self.items)

    @property
    def shot_items(self) -> list[EvalExample]:
        """Every example that any question is asked after, once."""
        all_shots = itertools.chain.from_iterable(self.shots)
        by_id = {shot.id: shot for shot in all_shots}
        return list(by_id.values())


class TaskResult(NamedTuple):
    """A language model's results on a task's questions, and how many prompts were cut or lost shots."""

    results: list[ExampleResult]
    counts: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """The object that the stage's file of these results holds."""
        # The key is part of the file format: files of earlier runs have it.
        return {"marks": self.results, "counts": self.counts}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "TaskResult":
        """The results that `to_json` made an object of."""
        return cls(stored["marks"], stored["counts"])


def load_tasks(settings: EvaluateConfig, *, seed: int) -> list[LoadedTask]:
    """The tasks that `evaluate.tasks` names, none of them twice."""
    tasks = [_load(find_task(name), settings, seed) for name in settings.tasks]

    # Two files may have one name; results are stored by the task's name.
    seen = set()
    for loaded in tasks:
        name = loaded.task.name
        if name in seen:
            raise ValueError(f"evaluate.tasks: expected each task once, got {name} twice. Name it once.")
        seen.add(name)
    return tasks


def _load(
    task: EvalTask,
    settings: EvaluateConfig,
    seed: int,
) -> LoadedTask:
    """A task's questions, or a sample of them, and the shots of each."""
    folder, split = settings.tasks_folder, settings.split
    # The whole split is read, so that a sample is one of all its questions.
    counts = Counter[str]()
    items = task.load(folder, split, counts)
    if settings.questions_per_task:
        items = sample(items, settings.questions_per_task, seed=seed)
    shots = _draw_for_items(task, items, settings, seed)
    part = task.describe(folder, split)
    return LoadedTask(task, items, shots, counts, split, part)


def _draw_for_items(
    task: EvalTask,
    items: Sequence[EvalExample],
    settings: EvaluateConfig,
    seed: int,
) -> list[list[EvalExample]]:
    """The shots of each item, all from the train split; no item is among its own shots."""
    if not settings.shots:
        return [[] for _ in items]

    # Where questions and shots are from one split, one more is drawn in place of the item itself.
    pool = task.load(settings.tasks_folder, "train")
    shares_split = task.splits["train"] == task.splits[settings.split]
    num_drawn = settings.shots + int(shares_split)
    by_subject = {}
    for subject in {item.subject for item in items}:
        by_subject[subject] = draw_shots(pool, num_drawn, seed=seed, subject=subject)

    # All questions of a subject have the same shots, except the one that is a shot itself.
    shots = []
    for item in items:
        drawn = by_subject[item.subject]
        if shares_split:
            drawn = [shot for shot in drawn if shot.id != item.id]
        shots.append(drawn[: settings.shots])
    return shots


def longest_answer(settings: EvaluateConfig) -> int:
    """The most tokens of any answer that `settings` ask for, which is at least 1."""
    # Without tasks the corpus' own questions are asked.
    longest = OWN_ANSWERS
    if settings.tasks:
        longest = max(find_task(name).max_new_tokens for name in settings.tasks)
    return settings.answering(max(1, longest)).max_new_tokens


def without_too_long(
    loaded: LoadedTask,
    tokenizer: LmTokenizer,
    settings: EvaluateConfig,
) -> LoadedTask:
    """The task without the questions that do not fit into a row even without a Background.

    They are counted, and a warning is printed; if no question fits, that is an error. `settings` are those of
    `evaluate`, whichever stage asks.
    """
    # The prompt and the answer have to fit; a Background is cut to the room that remains.
    task, row_length = loaded.task, settings.sequence_length
    max_new_tokens = settings.answering(task.max_new_tokens).max_new_tokens
    # `fitting` has places in `loaded.items`, `sizes` tokens by id.
    fitting, sizes = [], {}
    for index, item in enumerate(loaded.items):
        size = 1 + _num_tokens(task, item, tokenizer, max_new_tokens)  # one for <bos>
        sizes[item.id] = size
        if size <= row_length:
            fitting.append(index)
    left_out = len(loaded.items) - len(fitting)
    if not left_out:
        return loaded

    # Say how many are too long, and how long the longest is: that tells by how much to raise the setting.
    longest = max(sizes, key=sizes.__getitem__)
    message = (
        f"questions too long for the row of evaluate.sequence_length {row_length}: {left_out}; "
        f"{longest} has {sizes[longest]} tokens with <bos> and its answer"
    )
    if not fitting:
        raise ValueError(f"{task.name}: expected questions that fit, got none. {message}. Raise it.")
    print(f"   warning: {task.name}: {message}; left out", flush=True)
    return replace(
        loaded,
        items=[loaded.items[index] for index in fitting],
        shots=[loaded.shots[index] for index in fitting],
        counts={**loaded.counts, TOO_LONG: left_out},
    )


def _num_tokens(
    task: EvalTask,
    item: EvalExample,
    tokenizer: LmTokenizer,
    max_new_tokens: int,
) -> int:
    """Tokens of prompt and answer; where there are choices, the most of any of them."""
    if task.generates:
        prompt = tokenizer.encode(tokenizer.opening + item.prompt)
        return len(prompt) + max_new_tokens

    # Most choices share their prompt, which is long: each prompt is tokenised once.
    longest_scored = {choice.prompt: 0 for choice in item.choices}
    for choice in item.choices:
        num_scored = len(tokenizer.encode(choice.scored))
        longest_scored[choice.prompt] = max(longest_scored[choice.prompt], num_scored)
    sizes = []
    for prompt, num_scored in longest_scored.items():
        prompt_tokens = tokenizer.encode(tokenizer.opening + prompt)
        sizes.append(len(prompt_tokens) + num_scored)
    return max(sizes)


class TaskChunks(NamedTuple):
    """The chunks retrieved for a task: those of its questions, and the Backgrounds of shots by their ids."""

    retrieval: Retrieval
    shot_passages: Mapping[str, str]


def retrieve_for_task(
    loaded: LoadedTask,
    searcher: Retriever,
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
    results, counts = ask(loaded, scorer, settings, name, retrieval, shots)

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
    return TaskResult(results, dict(counts))


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
) -> tuple[list[ExampleResult], Counter[str]]:
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
                "answers": [{"answer": text, "probability": probability} for text, probability in answers],
            }
        )
    return results, counts


def _chosen(
    loaded: LoadedTask,
    scorer: PairScorer,
    settings: EvaluateConfig,
    name: str,
    retrieval: Retrieval,
    shots: Sequence[Sequence[Shot]],
) -> tuple[list[ExampleResult], Counter[str]]:
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
    return results, counts


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

    `settings` are evaluation's, which will judge the checkpoint. Batches have the size of training's, so that
    rows are on the same devices as the parameters.
    """
    score = ScoreConfig(
        batch_size=batch_size,
        sequence_length=settings.sequence_length,
        dtype=settings.dtype,
    )
    devices = make_mesh(mesh, rows=batch_size)
    # The network computes in evaluation's dtype, whatever training's is.
    module = model.module.clone(dtype=jnp.dtype(settings.dtype), layout=row_layout(devices))

    def validate(params: Any) -> dict[str, float]:
        tuned = model._replace(module=module, params=params)
        scorer = PairScorer(tuned, devices, score)
        return {"kilt_dev": mean_metric(tasks, chunks, scorer, settings)}

    return validate
