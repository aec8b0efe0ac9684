"""`predictions.jsonl` of the corpus' own questions: each system's answer, and RA-DIT's evidence."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.records import Question
from radit_jax.evaluation.figures import QuestionResult
from radit_jax.evaluation.systems import RetrievedChunks
from radit_jax.lm.answering import Answer
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
    """RA-DIT's answers with the chunks that they are from, and each system's best answer."""
    # As a person reads it: the question, what RA-DIT answered on what evidence, and the others' answers.
    lines = []
    for index, question in enumerate(questions):
        best_answers = {}
        for name, results in by_system.items():
            best_answers[name] = results[index]["answers"][0]["answer"]
        lines.append(
            {
                "id": question.id,
                "group": question.group,
                "question": question.question,
                "gold": list(question.answers),
                "answers": by_system["radit"][index]["answers"],
                "chunks": _weighted_chunks(retrieved.rows[index], retrieved.log_probs[index], chunks),
                "systems": best_answers,
            }
        )
    return lines


def _weighted_chunks(
    rows: Int[np.ndarray, " D"],
    log_probs: Float[np.ndarray, " K"],
    chunks: Chunks,
) -> list[dict[str, Any]]:
    """The first K of a question's chunks with their p_R."""
    weighted = []
    records = chunks.take(rows[: len(log_probs)])
    for chunk, p in zip(records, np.exp(log_probs), strict=True):
        weighted.append({"id": chunk.id, "title": chunk.title, "text": chunk.text, "p_R": float(p)})
    return weighted
