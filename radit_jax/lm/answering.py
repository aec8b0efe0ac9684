"""Answering with Eq. 2: questions, their chunks and their weights in, answers by probability out."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from radit_jax.config import EvaluateConfig
from radit_jax.data.corpus import Chunks
from radit_jax.data.sequences import prompt_tokens
from radit_jax.lm.scoring import NO_CHUNK
from radit_jax.method.decode import answer_questions
from radit_jax.runtime.models import Model
from radit_jax.runtime.progress import Progress
from radit_jax.text.prompts import question_prompt

BLOCK = 160  # questions between two reports of progress


class Answer(NamedTuple):
    """A generated answer with its probability in the mixture over the chunks."""

    text: str
    probability: float


def answer(
    model: Model,
    questions: Sequence[str],
    chunk_rows: Int[np.ndarray, "Q K"],
    retrieval_log_probs: Float[np.ndarray, "Q K"],
    chunks: Chunks,
    settings: EvaluateConfig,
    name: str,
) -> list[list[Answer]]:
    """Each question's distinct greedy answers under its chunks (NO_CHUNK: closed book), best first."""
    prompts = _prompts(model, questions, chunk_rows, chunks, settings)
    answers: list[list[Answer]] = []
    with Progress(len(questions), name, "questions") as bar:
        for start in range(0, len(questions), BLOCK):
            found = answer_questions(
                model.module,
                model.params,
                prompts[start : start + BLOCK],
                retrieval_log_probs[start : start + BLOCK].tolist(),
                max_new_tokens=settings.max_new_tokens,
                stop_ids=model.tokenizer.stop_ids,
                questions_per_batch=max(1, settings.prompts_per_batch // chunk_rows.shape[1]),
            )
            for candidates in found:
                texts = [
                    (model.tokenizer.decode(c.tokens).strip(), float(np.exp(c.log_prob))) for c in candidates
                ]
                answers.append([Answer(*pair) for pair in texts])
            bar.advance(len(found))
    return answers


def _prompts(
    model: Model,
    questions: Sequence[str],
    chunk_rows: Int[np.ndarray, "Q K"],
    chunks: Chunks,
    settings: EvaluateConfig,
) -> list[list[list[int]]]:
    """The token ids of each question behind each of its chunks."""
    wanted = np.unique(chunk_rows[chunk_rows != NO_CHUNK])
    passages: dict[int, str | None] = {NO_CHUNK: None}
    passages |= zip(wanted.tolist(), (chunk.passage for chunk in chunks.take(wanted)), strict=True)
    room = settings.sequence_length - settings.max_new_tokens
    return [
        [
            prompt_tokens(model.tokenizer, passages[row], question_prompt(question), max_length=room)[0]
            for row in rows
        ]
        for question, rows in zip(questions, chunk_rows.tolist(), strict=True)
    ]
