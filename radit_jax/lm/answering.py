"""Answering with Eq. 2: a language model, a question, its chunks with their weights; answers by probability."""

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
    passages = {
        row: None if row == NO_CHUNK else chunks[row].passage for row in np.unique(chunk_rows).tolist()
    }
    room = settings.sequence_length - settings.max_new_tokens
    prompts = [
        [
            prompt_tokens(model.tokenizer, passages[row], question_prompt(question), max_length=room)[0]
            for row in rows
        ]
        for question, rows in zip(questions, chunk_rows.tolist(), strict=True)
    ]
