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
)
from radit_jax.text.metrics import is_yes_no
from radit_jax.text.words import words

Key = tuple[str, str]  # a task and a system
NUM_BINS = 10  # of probability, all as wide


def calibrations(asked: Sequence[AskedQuestion]) -> list[Calibration]:
    """Each task's and system's probability of its best answers against their scores, where both are known."""
    pairs: dict[Key, list[tuple[float, float]]] = defaultdict(list)
    for question in asked:
        for name, answer in question.answers().items():
            probability = answer.probability
            if probability is None or answer.score is None:
                continue
            pair = (probability, answer.score)
            pairs[question.task, name].append(pair)
    found = []
    for (task, name), values in pairs.items():
        found.append(_calibration(task, name, values))
    return found


def _calibration(
    task: str,
    system: str,
    pairs: Sequence[tuple[float, float]],
) -> Calibration:
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
    # 1) The texts, and whether each was cut. Nobody cut the gold ones.
    texts: dict[Key, list[str]] = defaultdict(list)
    cut: dict[Key, list[bool | None]] = defaultdict(list)
    for question in asked:
        texts[question.task, "gold"] += question.prediction["gold"][:1]
        for name, answer in question.answers().items():
            key = (question.task, name)
            texts[key].append(answer.text)
            cut[key].append(answer.is_cut)

    # 2) Their figures.
    lengths = []
    for key, of_system in texts.items():
        counts = Counter(len(words(text)) for text in of_system)
        num_cut = _num_cut(cut[key])
        lengths.append(AnswerLengths(*key, dict(counts), num_cut))
    return lengths


def _num_cut(cut: Sequence[bool | None]) -> int | None:
    """How many answers were cut; None where that was not kept of all."""
    if not cut or None in cut:
        return None
    return cut.count(True)


def recall_curves(questions: Sequence[QuestionRecord]) -> list[RecallCurve]:
    """Recall at every depth of both retrievers, of gold chunks and of chunks that hold an answer."""
    # 1) Which of each question's chunks are hits, where that means something.
    hits: dict[tuple[str, str, str], list[list[bool]]] = defaultdict(list)
    for question in questions:
        is_open = question.gold and not is_yes_no(question.gold)
        for name, chunks in question.chunks.items():
            if question.has_gold_chunk:
                is_gold = [chunk.is_gold for chunk in chunks]
                hits[question.task, name, "gold"].append(is_gold)
            if is_open:
                holds_answer = [chunk.holds_answer for chunk in chunks]
                hits[question.task, name, "answer"].append(holds_answer)

    # 2) A curve for each task, retriever and kind of hit.
    curves = []
    for key, rows in hits.items():
        # Where nothing is known of a question's chunks, it is not counted.
        known = [row for row in rows if row]
        if known:
            recall = _recall_by_depth(np.array(known, bool))
            curves.append(RecallCurve(*key, recall, len(known)))
    return curves


def _recall_by_depth(hits: Bool[np.ndarray, "Q K"]) -> list[float]:
    """The share of questions with a hit among their first k chunks, for k from 1 to K."""
    found = np.logical_or.accumulate(hits, axis=1)
    return found.mean(axis=0).tolist()
