"""Runs side by side, with paired intervals on the questions that all of them asked.

A question is common to runs that asked the same text under the same id. Every figure is over such questions
alone, so that runs of different splits or samples can be compared. Gains are against the first run.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from radit_jax.report.run_records import QuestionRecord, RankedChunk, RunData
from radit_jax.text.metrics import is_yes_no
from radit_jax.text.results_table import RETRIEVER_TITLES, SYSTEM_TITLES
from radit_jax.text.statistics import Figure, bootstrap_interval, paired_gain

SAMPLES, SEED = 2000, 0  # of the bootstrap
ABSENT = "not there"

Key = tuple[str, str, str]  # of a question: its task, its id and its text
Value = Callable[[QuestionRecord], float | None]  # None: the question does not have it


@dataclass(frozen=True)
class ComparisonRow:
    """One figure of all runs."""

    task: str
    name: str  # of the system or the retriever, in words
    metric: str
    num_questions: int  # that are common, and have it in every run
    figures: Sequence[Figure]  # a run each
    gains: Sequence[Figure]  # a run each, on the first: its own is 0


@dataclass(frozen=True)
class Comparison:
    """Several runs on their common questions."""

    names: Sequence[str]  # of the runs
    num_common: int
    num_questions: Sequence[int]  # that each run asked
    rows: Sequence[ComparisonRow]
    settings: Mapping[str, Sequence[Any]]  # those that differ, by path: each run's value
    lacks: Sequence[str]  # a sentence each


def compare_runs(runs: Sequence[RunData]) -> Comparison:
    """Compare runs by all questions that each of them shows; read them without a sample.

    Raises ValueError where there are fewer than two runs, or where they have no common question.
    """
    if len(runs) < 2:
        raise ValueError("--compare: expected two workdirs or more, got one. Name another.")
    # 1) The questions of each run by key, in the first one's order.
    by_key = [_by_key(run) for run in runs]
    common = [key for key in by_key[0] if all(key in of_run for of_run in by_key)]
    names = _names(runs)
    if not common:
        raise ValueError(
            f"--compare: expected runs with common questions, got none in {' and '.join(names)}. "
            "Compare runs that were evaluated on the same data."
        )

    # 2) Every figure of each task.
    rows: list[ComparisonRow] = []
    for task in dict.fromkeys(task for task, _, _ in common):
        keys = [key for key in common if key[0] == task]
        questions = [[of_run[key] for key in keys] for of_run in by_key]
        rows += _task_rows(task, questions)
    return Comparison(
        names,
        len(common),
        [run.num_questions for run in runs],
        rows,
        _differing(runs),
        _lacks(runs, names),
    )


def _by_key(run: RunData) -> dict[Key, QuestionRecord]:
    """A run's questions by what makes them the same in another run."""
    return {(question.task, question.id, question.question): question for question in run.questions}


def _names(runs: Sequence[RunData]) -> list[str]:
    """Short names of workdirs: the last parts of their paths, as many as tell them apart."""
    parts = [PurePath(run.workdir).parts for run in runs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(of_run[-count:]) for of_run in parts]
        if len(set(names)) == len(names):
            return names
    # The same workdir twice.
    return [run.workdir for run in runs]


def _lacks(runs: Sequence[RunData], names: Sequence[str]) -> list[str]:
    """What could not be compared."""
    lacks = []
    for run, name in zip(runs, names, strict=True):
        lacks += [f"{name}: {sentence}" for sentence in run.lacks]
        if run.is_sample:
            lacks.append(f"{name}: {len(run.questions):,} of {run.num_questions:,} questions were read.")
    return lacks


# ---- figures ----


def _task_rows(
    task: str,
    questions: Sequence[Sequence[QuestionRecord]],
) -> list[ComparisonRow]:
    """The rows of a task; `questions[r]` are run r's, in the same order in all runs."""
    rows = []
    for system, title in SYSTEM_TITLES.items():
        rows.append(_row(task, title, "right answers", questions, _score(system)))
    # Rankings are compared to the depth that all runs have.
    for retriever, title in RETRIEVER_TITLES.items():
        depth = _depth(questions, retriever)
        if not depth:
            continue
        for metric, value in _ranking_values(retriever, depth).items():
            rows.append(_row(task, title, metric, questions, value))
    return [row for row in rows if row.num_questions]


def _row(
    task: str,
    name: str,
    metric: str,
    questions: Sequence[Sequence[QuestionRecord]],
    value: Value,
) -> ComparisonRow:
    """One figure of all runs, over the questions that have it in every one."""
    # 1) values[r][q], None where a question does not have it.
    values = [[value(question) for question in of_run] for of_run in questions]
    places = []
    for place, of_question in enumerate(zip(*values, strict=True)):
        if None not in of_question:
            places.append(place)
    counted = [np.array([of_run[place] for place in places], np.float64) for of_run in values]

    # 2) Means and gains, with questions of a group drawn together.
    groups = [_group(questions[0][place]) for place in places]
    figures, gains = [], []
    for of_run in counted:
        figures.append(bootstrap_interval(of_run, groups, samples=SAMPLES, seed=SEED))
        gains.append(paired_gain(of_run, counted[0], groups, samples=SAMPLES, seed=SEED))
    return ComparisonRow(task, name, metric, len(places), figures, gains)


def _group(question: QuestionRecord) -> str:
    """What is drawn together with a question."""
    return question.group or f"question {question.id}"


def _score(system: str) -> Value:
    """Whether a system's answer is right, in the task's metric."""
    return lambda question: question.systems[system].score


def _depth(questions: Sequence[Sequence[QuestionRecord]], retriever: str) -> int:
    """How many chunks every question has in every run that has any; 0 where a run has none."""
    depths = []
    for of_run in questions:
        lengths = [len(question.chunks.get(retriever, ())) for question in of_run]
        depths.append(min(filter(None, lengths), default=0))
    return min(depths)


def _ranking_values(retriever: str, depth: int) -> dict[str, Value]:
    """Recall of chunks that hold an answer, and the reciprocal rank of the first, by metric."""

    def rank(question: QuestionRecord) -> float | None:
        return _answer_rank(question, question.chunks.get(retriever, ()), depth)

    def recall(k: int) -> Value:
        def value(question: QuestionRecord) -> float | None:
            first = rank(question)
            return None if first is None else float(first <= k)

        return value

    def reciprocal(question: QuestionRecord) -> float | None:
        first = rank(question)
        return None if first is None else 1 / first

    return {
        "answer recall@1": recall(1),
        f"answer recall@{depth}": recall(depth),
        f"MRR@{depth}": reciprocal,
    }


def _answer_rank(
    question: QuestionRecord,
    chunks: Sequence[RankedChunk],
    depth: int,
) -> float | None:
    """The rank of the first chunk that holds an answer, infinite where none does.

    None where that means nothing: without gold answers, for yes and no, and without chunks.
    """
    if not chunks or not question.gold or is_yes_no(question.gold):
        return None
    for rank, chunk in enumerate(chunks[:depth], 1):
        if chunk.holds_answer:
            return float(rank)
    return math.inf


# ---- settings ----


def _differing(runs: Sequence[RunData]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs."""
    paths: dict[str, None] = {}
    for run in runs:
        paths |= dict.fromkeys(run.settings)
    differing = {}
    for path in paths:
        values = [run.settings.get(path, ABSENT) for run in runs]
        if any(value != values[0] for value in values):
            differing[path] = values
    return differing
