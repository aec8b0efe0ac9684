"""Figures over questions: means and paired gains with their intervals, of answers and of rankings."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.records import Question
from radit_jax.text.metrics import is_yes_no, recall_at_k, reciprocal_ranks
from radit_jax.text.statistics import Figure, bootstrap_interval

CUTOFFS = (1, 5, 10)
QuestionResult = Mapping[str, Any]  # a question's answers, metrics and likelihood under one system


@dataclass(frozen=True)
class QuestionFigures:
    """Means over questions, with 95 % intervals from a bootstrap over the questions' groups."""

    questions: Sequence[Question]
    samples: int
    seed: int

    @functools.cached_property
    def with_gold(self) -> Bool[np.ndarray, " Q"]:
        """Which questions have a known gold chunk."""
        return np.array([bool(question.gold_chunks) for question in self.questions], bool)

    @functools.cached_property
    def open_ended(self) -> Bool[np.ndarray, " Q"]:
        """Which are no matter of yes or no: a "no" in a chunk answers nothing."""
        return np.array([not is_yes_no(question.answers) for question in self.questions], bool)

    def mean(
        self,
        values: Float[np.ndarray, " Q"],
        counted: Bool[np.ndarray, " Q"] | None = None,
        is_gain: bool = False,
    ) -> Figure:
        """The mean of the counted questions' values with its interval; all are counted if none are named."""
        if counted is None:
            counted = np.ones(len(self.questions), bool)
        places = np.flatnonzero(counted).tolist()
        return bootstrap_interval(
            np.asarray(values, np.float64)[counted],
            [self.questions[place].resampling_group for place in places],
            samples=self.samples,
            seed=self.seed,
            is_gain=is_gain,
        )

    def means(
        self,
        results: Sequence[QuestionResult],
        metrics: Sequence[str],
        counted: Bool[np.ndarray, " Q"] | None = None,
    ) -> dict[str, Figure]:
        """The means of several metrics."""
        return {metric: self.mean(_values(results, metric), counted) for metric in metrics}

    def gain(
        self,
        after: Sequence[QuestionResult],
        before: Sequence[QuestionResult],
        metric: str,
        counted: Bool[np.ndarray, " Q"] | None = None,
    ) -> Figure:
        """How much a metric grows from one system to another on the same questions."""
        return self.mean(_values(after, metric) - _values(before, metric), counted, is_gain=True)


def ranking_figures(
    corpus: Corpus,
    questions: QuestionFigures,
    rows: Mapping[str, Int[np.ndarray, "Q D"]],
) -> dict[str, dict[str, Any]]:
    """What retrievers find for questions, which costs no language model; `rows` is by retriever.

    `retrieval` has each retriever's figures, `retrieval_gains` what R-ft gains, question by question.
    """
    values = {}
    for name, of_retriever in rows.items():
        values[name] = _ranking_values(corpus, questions.questions, of_retriever)

    # Each metric is over the questions that it is defined for.
    retrieval: dict[str, dict[str, Figure]] = {name: {} for name in values}
    gains: dict[str, Figure] = {}
    for metric, before in values["base"].items():
        counted = questions.with_gold if metric.startswith("gold") else questions.open_ended
        for name, by_metric in values.items():
            retrieval[name][metric] = questions.mean(by_metric[metric], counted)
        after = values["r_ft"][metric]
        gains[metric] = questions.mean(after - before, counted, is_gain=True)
    return {"retrieval": retrieval, "retrieval_gains": gains}


def _ranking_values(
    corpus: Corpus,
    questions: Sequence[Question],
    rows: Int[np.ndarray, "Q D"],
) -> dict[str, Float[np.ndarray, " Q"]]:
    """Recall of gold chunks and of chunks that hold an answer, and the reciprocal rank of the latter."""
    is_gold = corpus.is_gold(questions, rows)
    holds_answer = corpus.holds_answer(questions, rows)
    values: dict[str, Any] = {}
    for cutoff in CUTOFFS:
        values[f"gold_recall@{cutoff}"] = recall_at_k(is_gold, cutoff)
    for cutoff in CUTOFFS:
        values[f"answer_recall@{cutoff}"] = recall_at_k(holds_answer, cutoff)
    values["mrr"] = reciprocal_ranks(holds_answer[:, :10])
    return {metric: np.asarray(value, np.float64) for metric, value in values.items()}


def _values(results: Sequence[QuestionResult], metric: str) -> Float[np.ndarray, " Q"]:
    return np.array([result[metric] for result in results], np.float64)
