"""Answering with Eq. 2: questions, their chunks and their weights in, answers by probability out.

`evaluate.ensemble` says how the chunks are mixed: over whole answers (`answer`), token by token (`token`), or
in the prompt, whose Background holds them all (`concatenate`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from radit_jax.config import EvaluateConfig
from radit_jax.data.corpus import Chunks
from radit_jax.data.shots import FewShotPrompt, Shot, few_shot_prompt
from radit_jax.lm.scoring import NO_CHUNK
from radit_jax.method.decode import answer_questions, answer_questions_by_token
from radit_jax.runtime.models import Model
from radit_jax.runtime.progress import Progress
from radit_jax.text.prompts import question_prompt

BLOCK = 160  # questions between two reports of progress


class Answer(NamedTuple):
    """A generated answer with its probability in the mixture over the chunks."""

    text: str
    probability: float


class Prompts(NamedTuple):
    """What the language model reads: for each question a prompt for each chunk, or one for all of them."""

    questions: list[list[FewShotPrompt]]

    @property
    def shots_dropped(self) -> int:
        """How many shots did not fit, over all prompts."""
        return sum(prompt.shots_dropped for own in self.questions for prompt in own)

    @property
    def truncated(self) -> int:
        """How many prompts had their Background cut."""
        return sum(prompt.truncated for own in self.questions for prompt in own)


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
    texts = [question_prompt(question) for question in questions]
    prompts = make_prompts(model, texts, chunk_rows, chunks, settings)
    return generate(model, prompts, retrieval_log_probs, settings, name)


def make_prompts(
    model: Model,
    prompts: Sequence[str],
    chunk_rows: Int[np.ndarray, "Q K"],
    chunks: Chunks,
    settings: EvaluateConfig,
    shots: Sequence[Sequence[Shot]] | None = None,
) -> Prompts:
    """Each prompt behind its chunks, which are its Background, and behind its own shots, the nearest last.

    Concatenated chunks stand in one Background, the best first, so that what does not fit is of the worst.
    """
    backgrounds = _backgrounds(chunk_rows, chunks, concatenate=settings.ensemble == "concatenate")
    room = settings.sequence_length - settings.max_new_tokens
    return Prompts(
        [
            [
                few_shot_prompt(model.tokenizer, own_shots, passage, prompt, max_length=room)
                for passage in passages
            ]
            for prompt, passages, own_shots in zip(
                prompts, backgrounds, shots or [()] * len(prompts), strict=True
            )
        ]
    )


def generate(
    model: Model,
    prompts: Prompts,
    retrieval_log_probs: Float[np.ndarray, "Q K"],
    settings: EvaluateConfig,
    name: str,
) -> list[list[Answer]]:
    """Each question's answers with their probabilities in the mixture, best first; one at token level."""
    if settings.ensemble == "concatenate":
        retrieval_log_probs = np.zeros((len(prompts.questions), 1), np.float32)
    decode = answer_questions_by_token if settings.ensemble == "token" else answer_questions
    tokens = [[prompt.tokens for prompt in own] for own in prompts.questions]
    answers: list[list[Answer]] = []
    with Progress(len(tokens), name, "questions") as bar:
        for start in range(0, len(tokens), BLOCK):
            found = decode(
                model.module,
                model.params,
                tokens[start : start + BLOCK],
                retrieval_log_probs[start : start + BLOCK].tolist(),
                max_new_tokens=settings.max_new_tokens,
                stop_ids=model.tokenizer.stop_ids,
                questions_per_batch=max(1, settings.prompts_per_batch // retrieval_log_probs.shape[1]),
            )
            for candidates in found:
                texts = [
                    (model.tokenizer.decode(c.tokens).strip(), float(np.exp(c.log_prob))) for c in candidates
                ]
                answers.append([Answer(*pair) for pair in texts])
            bar.advance(len(found))
    return answers


def _backgrounds(
    chunk_rows: Int[np.ndarray, "Q K"], chunks: Chunks, *, concatenate: bool
) -> list[list[str | None]]:
    """The passages of each question's chunks, or all of them as one; None without any."""
    wanted = np.unique(chunk_rows[chunk_rows != NO_CHUNK])
    passages: dict[int, str | None] = {NO_CHUNK: None}
    passages |= zip(wanted.tolist(), (chunk.passage for chunk in chunks.take(wanted)), strict=True)
    each = [[passages[row] for row in rows] for rows in chunk_rows.tolist()]
    if not concatenate:
        return each
    return [["\n".join(text for text in own if text is not None) or None] for own in each]
