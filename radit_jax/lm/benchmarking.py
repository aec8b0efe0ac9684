"""Sitting a task: its questions and shots, a language model's answers, and their marks.

Evaluation asks every task of an experiment this way, and LM-ft, where it is told to, KILT's development tasks
to choose its checkpoint by.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from radit_jax.config import EvaluateConfig, MeshConfig, ScoreConfig
from radit_jax.data.benchmarks import KILT_DEVELOPMENT, Benchmark, Item, draw_shots, find_task, sample
from radit_jax.data.documents import document_id
from radit_jax.data.sequences import LmTokenizer
from radit_jax.data.shots import Shot
from radit_jax.lm.answering import Retrieval, generate
from radit_jax.lm.choosing import choose
from radit_jax.lm.scoring import NO_CHUNK, PairScorer
from radit_jax.runtime.mesh import make_mesh
from radit_jax.runtime.models import Model
from radit_jax.runtime.progress import Progress
from radit_jax.text.kilt import r_precision

Mark = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """A task's questions as they are asked: which of them, and behind which examples."""

    task: Benchmark
    items: Sequence[Item]
    shots: Sequence[Sequence[Item]]  # each item's own, the nearest last
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
    def shot_items(self) -> list[Item]:
        """Every example once."""
        return list({shot.id: shot for own in self.shots for shot in own}.values())


class Sat(NamedTuple):
    """A language model's marks in a trial, and how many prompts were cut or lost shots."""

    marks: list[Mark]
    counts: dict[str, int]


def load_trials(settings: EvaluateConfig, *, seed: int) -> list[Trial]:
    """The trials that `evaluate.tasks` names, each task once."""
    trials = [_load(find_task(name), settings, seed) for name in settings.tasks]
    names = Counter(trial.task.name for trial in trials)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"evaluate.tasks: {twice[0]} came twice, needed is each once; name it once")
    return trials


def load_kilt_development(folder: str, limit: int, *, seed: int) -> list[Trial]:
    """At most `limit` questions of each of KILT's development tasks, without shots."""
    settings = EvaluateConfig(
        split="dev", tasks=KILT_DEVELOPMENT, tasks_folder=folder, questions_per_task=limit
    )
    return load_trials(settings, seed=seed)


def _load(task: Benchmark, settings: EvaluateConfig, seed: int) -> Trial:
    counts = Counter[str]()
    items = task.load(settings.tasks_folder, settings.split, counts)
    if settings.questions_per_task:
        items = sample(items, settings.questions_per_task, seed=seed)
    part = task.describe(settings.tasks_folder, settings.split)
    return Trial(task, items, _draw(task, items, settings, seed), counts, settings.split, part)


def _draw(task: Benchmark, items: Sequence[Item], settings: EvaluateConfig, seed: int) -> list[list[Item]]:
    """Each item's shots; where they come from the questions themselves, none is a question's own."""
    if not settings.shots:
        return [[] for _ in items]
    pool = task.load(settings.tasks_folder, "train")
    spare = int(task.splits["train"] == task.splits[settings.split])
    drawn = {
        subject: draw_shots(pool, settings.shots + spare, seed=seed, subject=subject)
        for subject in {item.subject for item in items}
    }
    return [
        [shot for shot in drawn[item.subject] if not spare or shot.id != item.id][: settings.shots]
        for item in items
    ]


def check_fits(
    trial: Trial, tokenizer: LmTokenizer, settings: EvaluateConfig, section: str = "evaluate"
) -> None:
    """Refuse, before anything is decoded, a question that a row cannot hold even without a Background."""
    room = settings.sequence_length
    for item in trial.items:
        needed = 1 + _longest(trial.task, item, tokenizer, settings.max_new_tokens)
        if needed > room:
            raise ValueError(
                f"{section}: question {item.id} of {trial.task.name} has {needed} tokens with <bos> and its "
                f"answer, and {section}.sequence_length is {room}; raise it, or leave the question out"
            )


def _longest(task: Benchmark, item: Item, tokenizer: LmTokenizer, max_new_tokens: int) -> int:
    """Tokens of prompt and answer, of the longest choice where there are any."""
    if task.generates:
        return len(tokenizer.encode(tokenizer.opening + item.prompt)) + max_new_tokens
    prompts = {choice.prompt: 0 for choice in item.choices}
    for choice in item.choices:
        prompts[choice.prompt] = max(prompts[choice.prompt], len(tokenizer.encode(choice.scored)))
    return max(len(tokenizer.encode(tokenizer.opening + p)) + answer for p, answer in prompts.items())


def sit(
    trial: Trial,
    scorer: PairScorer,
    settings: EvaluateConfig,
    name: str,
    *,
    retrieval: Retrieval | None = None,
    shot_passages: Mapping[str, str] | None = None,
) -> Sat:
    """Every question's answer and mark; `shot_passages` are the Backgrounds of examples by their ids.

    A mark has the task's metric and the ids of its chunks; where gold pages are known also `r_precision` and
    `kilt_…`, the metric where that is 1 and else 0.
    """
    passages = shot_passages or {}
    shots = [[Shot(passages.get(shot.id), *shot.shot) for shot in own] for own in trial.shots]
    retrieval = retrieval or Retrieval.none(len(trial.items))
    ask = _generated if trial.task.generates else _chosen
    marks, counts = ask(trial, scorer, settings, name, retrieval, shots)
    for item, mark, chunks in zip(trial.items, marks, _chunk_ids(retrieval), strict=True):
        mark["chunks"] = chunks
        if trial.has_pages:
            precision = r_precision(pages(mark), item.pages)
            kilt = {f"kilt_{trial.task.metric}": mark[trial.task.metric] * (precision == 1)}
            mark.update(r_precision=precision, **kilt)
    return Sat(marks, dict(counts))


def _generated(
    trial: Trial,
    scorer: PairScorer,
    settings: EvaluateConfig,
    name: str,
    retrieval: Retrieval,
    shots: Sequence[Sequence[Shot]],
) -> tuple[list[Mark], Counter[str]]:
    prompts = [item.prompt for item in trial.items]
    with Progress(len(prompts), name, "questions") as bar:
        found, counts = generate(scorer.model, prompts, retrieval, settings, shots=shots, bar=bar)
    marks = [
        {
            "id": item.id,
            "answer": trial.task.answer(answers[0].text),
            trial.task.metric: trial.task.mark(item, answers[0].text),
            "answers": [{"answer": text, "probability": probability} for text, probability in answers],
        }
        for item, answers in zip(trial.items, found, strict=True)
    ]
    return marks, counts


def _chosen(
    trial: Trial,
    scorer: PairScorer,
    settings: EvaluateConfig,
    name: str,
    retrieval: Retrieval,
    shots: Sequence[Sequence[Shot]],
) -> tuple[list[Mark], Counter[str]]:
    concatenate = settings.ensemble == "concatenate"
    prompts = 1 if concatenate else retrieval.rows.shape[1]
    with Progress(prompts * sum(len(item.choices) for item in trial.items), name, "choices") as bar:
        found, counts = choose(
            scorer,
            trial.items,
            trial.task.scoring_rule,
            retrieval=retrieval,
            concatenate=concatenate,
            shots=shots,
            bar=bar,
        )
    marks = [
        {
            "id": item.id,
            "answer": item.choices[chosen.choice].answer,
            trial.task.metric: float(chosen.choice == item.label),
            "scores": [float(score) for score in chosen.scores],
        }
        for item, chosen in zip(trial.items, found, strict=True)
    ]
    return marks, counts


def pages(mark: Mark) -> list[str]:
    """The pages of an answer's chunks, the best first: documents, where the corpus is KILT's Wikipedia."""
    return [document_id(chunk) for chunk in mark["chunks"]]


def _chunk_ids(retrieval: Retrieval) -> list[list[str]]:
    """Of each question, the best first."""
    if retrieval.chunks is None:
        return [[] for _ in retrieval.rows]
    wanted = np.unique(retrieval.rows[retrieval.rows != NO_CHUNK])
    id_of = dict(zip(wanted.tolist(), (chunk.id for chunk in retrieval.chunks.take(wanted)), strict=True))
    return [[id_of[row] for row in rows if row != NO_CHUNK] for rows in retrieval.rows.tolist()]


def mean_metric(
    trials: Sequence[Trial], retrievals: Sequence[Retrieval], scorer: PairScorer, settings: EvaluateConfig
) -> float:
    """The mean over trials of their metrics' means."""
    means = []
    for trial, retrieval in zip(trials, retrievals, strict=True):
        sat = sit(trial, scorer, settings, trial.task.name, retrieval=retrieval)
        means.append(float(np.mean([mark[trial.task.metric] for mark in sat.marks])))
    return float(np.mean(means))


def kilt_validation(
    trials: Sequence[Trial],
    retrievals: Sequence[Retrieval],
    model: Model,
    mesh: MeshConfig,
    *,
    batch_size: int,
    sequence_length: int,
) -> Callable[[Any], dict[str, float]]:
    """What `train_lm` validates with: parameters to `kilt_dev`, the mean metric of the trials.

    Rows come in batches of the training's size, so that they are read where the parameters are.
    """
    settings = EvaluateConfig(sequence_length=sequence_length)
    score = ScoreConfig(batch_size=batch_size, sequence_length=sequence_length)
    devices = make_mesh(mesh, rows=batch_size)
    for trial in trials:
        check_fits(trial, model.tokenizer, settings, section="lm_ft")

    def validate(params: Any) -> dict[str, float]:
        scorer = PairScorer(model._replace(params=params), devices, score)
        return {"kilt_dev": mean_metric(trials, retrievals, scorer, settings)}

    return validate
