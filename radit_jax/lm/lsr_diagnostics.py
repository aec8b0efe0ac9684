"""The diagnostics of LSR scores, from the files that the stages retrieve and score have written."""

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


def report(
    corpus: Corpus, retrieved: Retrieved, scores: Scores, settings: RFtConfig, temperature: float
) -> Diagnostics:
    """Diagnose `scores` under R-ft's settings and p_R's temperature; print the figures, then the warnings."""
    # The figures depend on the settings, so they are not stored with the scores.
    diagnostics = diagnose(_statistics(corpus, retrieved, scores), settings, temperature)
    figures = [f"{name} {_format(value)}" for name, value in diagnostics.items()]
    print(f"   signal: {', '.join(figures)}", flush=True)
    for warning in warnings(diagnostics, settings, temperature):
        print(f"   warning: {warning}", flush=True)
    return diagnostics


def _statistics(corpus: Corpus, retrieved: Retrieved, scores: Scores) -> LsrStatistics:
    """The scores with what the corpus knows of the examples: gold chunks, and chunks that hold an answer."""
    # An example that was cut from the corpus is not one of its questions. It has no gold chunk, and no chunk
    # but its source holds its answer, so it is represented by a question without answers.
    question_of = {question.id: question for question in corpus.questions("train")}
    questions = []
    for example in retrieved.examples:
        no_answers = Question(example.id, "", ())
        questions.append(question_of.get(example.id, no_answers))
    judged = np.array([_is_judged(question) for question in questions], bool)
    return LsrStatistics(
        chunk_mask=scores.chunk_rows >= 0,
        retrieval_scores=scores.retrieval_scores,
        answer_log_probs=scores.answer_log_probs,
        no_chunk_log_probs=scores.no_chunk_log_probs,
        answer_token_counts=scores.answer_token_counts,
        token_counts=scores.token_counts,
        truncated=scores.truncated,
        holds_answer=_holds_answer(corpus, questions, scores.chunk_rows, judged),
        gold=corpus.is_gold(questions, scores.chunk_rows),
        judged=judged,
    )


def _is_judged(question: Question) -> bool:
    """Whether a chunk can be said to hold the answer: there is one, and it is more than yes or no."""
    return bool(question.answers) and not is_yes_no(question.answers)


def _holds_answer(
    corpus: Corpus,
    questions: Sequence[Question],
    rows: Int[np.ndarray, "E K"],
    judged: Bool[np.ndarray, " E"],
) -> Bool[np.ndarray, "E K"]:
    """Which chunks hold an answer; False for questions that are not judged."""
    # Only the judged questions' chunks are read.
    holds_answer = np.zeros(rows.shape, bool)
    judged_questions = [question for question, is_judged in zip(questions, judged, strict=True) if is_judged]
    holds_answer[judged] = corpus.holds_answer(judged_questions, rows[judged])
    return holds_answer


def _format(value: float | int | None) -> str:
    """Four digits, or a dash where there is no value."""
    return "–" if value is None else f"{value:.4g}"
