"""Figures that a report makes of the questions: calibration, lengths of answers, recall by depth."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from radit_jax.report.asked_questions import AskedQuestion
from radit_jax.report.run_records import (
    AnswerLengths,
    Calibration,
    CalibrationBin,
    QuestionRecord,
    RecallCurve,
    SystemAnswer,
)
from radit_jax.text.metrics import is_yes_no
from radit_jax.text.words import words

NUM_BINS = 10  # of probability, all as wide


def calibrations(asked: Sequence[AskedQuestion]) -> list[Calibration]:
    """Each task's and system's probability of its best answers against their scores, where both are known."""
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for question in asked:
        for name, answer in question.answers().items():
            probability = answer.candidates[0].probability if answer.candidates else None
            if probability is not None and answer.score is not None:
                pairs[question.task, name].append((probability, answer.score))
    return [_calibration(task, name, values) for (task, name), values in pairs.items()]


def _calibration(task: str, system: str, pairs: Sequence[tuple[float, float]]) -> Calibration:
    """Bins of equal width, and the error expected of the probability of an answer."""
    probabilities, scores = np.array(pairs).T
    # A probability of 1 is in the last bin.
    places = np.minimum((probabilities * NUM_BINS).astype(int), NUM_BINS - 1)
    bins = []
    for place in np.unique(places).tolist():
        in_bin = places == place
        bins.append(
            CalibrationBin(
                low=place / NUM_BINS,
                high=(place + 1) / NUM_BINS,
                count=int(in_bin.sum()),
                probability=float(probabilities[in_bin].mean()),
                score=float(scores[in_bin].mean()),
            )
        )
    gaps = [one.count * abs(one.probability - one.score) for one in bins]
    return Calibration(task, system, bins, sum(gaps) / len(pairs))


def answer_lengths(asked: Sequence[AskedQuestion]) -> list[AnswerLengths]:
    """Lengths in words of each task's gold answers and of each system's, and how many were cut."""
    counts: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    answers: dict[tuple[str, str], list[SystemAnswer]] = defaultdict(list)
    for question in asked:
        for gold in question.prediction["gold"][:1]:
            counts[question.task, "gold"][len(words(gold))] += 1
        for name, answer in question.answers().items():
            counts[question.task, name][len(words(answer.text))] += 1
            answers[question.task, name].append(answer)
    lengths = []
    for (task, name), of_system in counts.items():
        lengths.append(AnswerLengths(task, name, dict(of_system), _num_cut(answers[task, name])))
    return lengths


def _num_cut(answers: Sequence[SystemAnswer]) -> int | None:
    """How many answers were cut; None where that was not kept of all, and of gold ones."""
    if not answers or any(answer.is_cut is None for answer in answers):
        return None
    return sum(answer.is_cut is True for answer in answers)


def recall_curves(questions: Sequence[QuestionRecord]) -> list[RecallCurve]:
    """Recall at every depth of both retrievers, of gold chunks and of chunks that hold an answer."""
    hits: dict[tuple[str, str, str], list[list[bool]]] = defaultdict(list)
    for question in questions:
        for name, chunks in question.chunks.items():
            if not chunks:
                continue
            if question.has_gold_chunk:
                hits[question.task, name, "gold"].append([chunk.is_gold for chunk in chunks])
            if question.gold and not is_yes_no(question.gold):
                hits[question.task, name, "answer"].append([chunk.holds_answer for chunk in chunks])
    curves = []
    for (task, name, of), rows in hits.items():
        recall = _recall_by_depth(np.array(rows, bool))
        curves.append(RecallCurve(task, name, of, recall, len(rows)))
    return curves


def _recall_by_depth(hits: Bool[np.ndarray, "Q K"]) -> list[float]:
    """The share of questions with a hit among their first k chunks, for k from 1 to K."""
    found = np.logical_or.accumulate(hits, axis=1)
    return found.mean(axis=0).tolist()
