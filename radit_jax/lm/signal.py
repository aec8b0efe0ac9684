"""The diagnostics of LSR scores, gathered from what retrieve and score left."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from radit_jax.config import RFtConfig
from radit_jax.data.corpus import Corpus
from radit_jax.data.records import Question
from radit_jax.data.retrieved import Retrieved
from radit_jax.data.scores import Scores
from radit_jax.method.diagnostics import Diagnostics, Signal, diagnose, warnings
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


def _signal(corpus: Corpus, retrieved: Retrieved, scores: Scores) -> Signal:
    questions = {question.id: question for question in corpus.questions("train")}
    # An example that was cut from the corpus has no gold chunk, and its answer is in none but its source.
    asked = [questions.get(example.id, Question(example.id, "", ())) for example in retrieved.examples]
    judged = _judged(asked)
    holds = np.zeros(scores.chunk_rows.shape, bool)
    # Of the judged alone: most examples are text, whose passages would be read for nothing.
    some = [question for question, judge in zip(asked, judged, strict=True) if judge]
    holds[judged] = corpus.holds_answer(some, scores.chunk_rows[judged])
    return Signal(
        chunk_mask=scores.chunk_rows >= 0,
        retrieval_scores=scores.retrieval_scores,
        answer_log_probs=scores.answer_log_probs,
        no_chunk_log_probs=scores.no_chunk_log_probs,
        answer_token_counts=scores.answer_token_counts,
        token_counts=scores.token_counts,
        truncated=scores.truncated,
        holds_answer=holds,
        gold=corpus.is_gold(asked, scores.chunk_rows),
        judged=judged,
    )


def _judged(asked: Sequence[Question]) -> Any:
    return np.array([bool(question.answers) and not is_yes_no(question.answers) for question in asked])


def _number(value: float | int | None) -> str:
    return "–" if value is None else f"{value:.4g}"
