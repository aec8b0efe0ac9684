"""The diagnostics of LSR scores, gathered from what retrieve and score left."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from radit_jax.config import RFtConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.artifacts.lsr_scores import Scores
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.data.records import Question
from radit_jax.method.diagnostics import Diagnostics, LsrStatistics, diagnose, warnings
from radit_jax.text.metrics import is_yes_no


def report(corpus: Corpus, retrieved: Retrieved, scores: Scores, settings: RFtConfig) -> Diagnostics:
    """Diagnose `scores` under R-ft's settings and print what was found, warnings last."""
    diagnostics = diagnose(_signal(corpus, retrieved, scores), settings)
    print(
        "   signal: " + ", ".join(f"{name} {_number(value)}" for name, value in diagnostics.items()),
        flush=True,
    )
    for warning in warnings(diagnostics, settings):
        print(f"   warning: {warning}", flush=True)
    return diagnostics


def _signal(corpus: Corpus, retrieved: Retrieved, scores: Scores) -> LsrStatistics:
    questions = {question.id: question for question in corpus.questions("train")}
    # An example that was cut from the corpus has no gold chunk, and its answer is in none but its source.
    asked = [questions.get(example.id, Question(example.id, "", ())) for example in retrieved.examples]
    judged = _judged(asked)
    return LsrStatistics(
        chunk_mask=scores.chunk_rows >= 0,
        retrieval_scores=scores.retrieval_scores,
        answer_log_probs=scores.answer_log_probs,
        no_chunk_log_probs=scores.no_chunk_log_probs,
        answer_token_counts=scores.answer_token_counts,
        token_counts=scores.token_counts,
        truncated=scores.truncated,
        holds_answer=_holds_answer(corpus, asked, scores.chunk_rows, judged),
        gold=corpus.is_gold(asked, scores.chunk_rows),
        judged=judged,
    )


def _holds_answer(
    corpus: Corpus,
    asked: Sequence[Question],
    rows: Int[np.ndarray, "E K"],
    judged: Bool[np.ndarray, " E"],
) -> Bool[np.ndarray, "E K"]:
    """Which chunks hold an answer, of the judged questions alone: for the others none is read."""
    found = np.zeros(rows.shape, bool)
    found[judged] = corpus.holds_answer(
        [question for question, is_judged in zip(asked, judged, strict=True) if is_judged], rows[judged]
    )
    return found


def _judged(asked: Sequence[Question]) -> Bool[np.ndarray, " E"]:
    return np.array([bool(q.answers) and not is_yes_no(q.answers) for q in asked], bool)


def _number(value: float | int | None) -> str:
    return "–" if value is None else f"{value:.4g}"
