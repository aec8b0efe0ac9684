"""`predictions.jsonl` of the corpus' own questions: each system's answer, and RA-DIT's evidence."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.records import Chunk, Question
from radit_jax.evaluation.figures import QuestionResult
from radit_jax.evaluation.systems import RetrievedChunks
from radit_jax.lm.answering import Answer
from radit_jax.runtime.distributed import processes
from radit_jax.text.metrics import exact_match, f1


def text_records(answers: Iterable[Answer]) -> list[dict[str, Any]]:
    """Answers as results and predictions have them."""
    return [{"answer": answer.text, "probability": answer.probability} for answer in answers]


def question_result(question: Question, answers: Sequence[Answer]) -> dict[str, Any]:
    """A question's answers with their metrics, which judge the most probable one."""
    best = answers[0].text
    return {
        "answers": text_records(answers),
        "exact_match": exact_match(best, question.answers),
        "f1": f1(best, question.answers),
    }


def prediction_lines(
    questions: Sequence[Question],
    by_system: Mapping[str, Sequence[QuestionResult]],
    retrieved: RetrievedChunks,
    chunks: Chunks,
) -> list[dict[str, Any]]:
    """RA-DIT's answers with the chunks that they are from, and each system's best answer.

    All processes call it, and each reads the chunks of some questions.
    """
    log_probs = retrieved.log_probs
    _, k = log_probs.shape
    rows = retrieved.rows[:, :k]

    # As a person reads it: the question, what RA-DIT answered on what evidence, and the others' answers.
    def make(places: Sequence[int]) -> list[dict[str, Any]]:
        chunk_of = chunks.by_row(rows[places])
        lines = []
        for place in places:
            question = questions[place]
            tuned = by_system["radit"][place]
            rows_of_question = rows[place].tolist()
            evidence = [chunk_of[row] for row in rows_of_question]
            lines.append(
                {
                    "id": question.id,
                    "group": question.group,
                    "question": question.question,
                    "gold": list(question.answers),
                    "answers": tuned["answers"],
                    "chunks": _weighted_chunks(evidence, log_probs[place]),
                    "systems": _best_answers(by_system, place),
                }
            )
        return lines

    places = range(len(questions))
    return processes.in_shares("predictions", places, make)


def _best_answers(by_system: Mapping[str, Sequence[QuestionResult]], place: int) -> dict[str, str]:
    """Each system's best answer to a question."""
    best = {}
    for name, results in by_system.items():
        answers = results[place]["answers"]
        best[name] = answers[0]["answer"]
    return best


def _weighted_chunks(
    evidence: Sequence[Chunk],
    log_probs: Float[np.ndarray, " K"],
) -> list[dict[str, Any]]:
    """A question's chunks with their p_R."""
    weighted = []
    for chunk, p in zip(evidence, np.exp(log_probs), strict=True):
        weighted.append({"id": chunk.id, "title": chunk.title, "text": chunk.text, "p_R": float(p)})
    return weighted
