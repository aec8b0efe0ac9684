"""Answering with Eq. 2: questions, their chunks and their weights in, answers by probability out.

`evaluate.ensemble` says how the chunks are mixed: over whole answers (`answer`), token by token (`token`), or
in the prompt, whose Background holds them all (`concatenate`).
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from radit_jax.config import EvaluateConfig
from radit_jax.data.corpus import Chunks
from radit_jax.data.shots import FewShotPrompt, Shot, few_shot_prompt
from radit_jax.lm.scoring import NO_CHUNK
from radit_jax.method.decode import Transfer, answer_questions, answer_questions_by_token
from radit_jax.runtime.mesh import gather, spread_like
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
    log_probs: Float[np.ndarray, "Q K"]  # of the prompts' weights

    @property
    def shots_dropped(self) -> int:
        """How many shots did not fit, over all prompts."""
        return sum(prompt.shots_dropped for own in self.questions for prompt in own)

    @property
    def truncated(self) -> int:
        """How many prompts had their Background cut."""
        return sum(prompt.truncated for own in self.questions for prompt in own)


class Retrieval(NamedTuple):
    """The chunks behind each of Q questions, and their weights."""

    chunks: Chunks | None  # None where no row is of a chunk
    rows: Int[np.ndarray, "Q K"]  # NO_CHUNK: no Background
    log_probs: Float[np.ndarray, "Q K"]  # log p_R

    @classmethod
    def none(cls, num_questions: int) -> "Retrieval":
        """Closed book."""
        return cls(None, np.full((num_questions, 1), NO_CHUNK), np.zeros((num_questions, 1), np.float32))

    def part(self, some: slice) -> "Retrieval":
        """Of some of the questions."""
        return Retrieval(self.chunks, self.rows[some], self.log_probs[some])

    def concatenated(self) -> "Backgrounds":
        """All chunks of a question as one Background, the best first, with all the weight."""
        passages, _ = self.backgrounds()
        joined = [["\n".join(text for text in own if text is not None) or None] for own in passages]
        return Backgrounds(joined, np.zeros((len(joined), 1), np.float32))

    def backgrounds(self) -> "Backgrounds":
        """Each chunk as a Background of its own."""
        wanted = np.unique(self.rows[self.rows != NO_CHUNK])
        passages: dict[int, str | None] = {NO_CHUNK: None}
        if self.chunks is not None:
            found = self.chunks.take(wanted)
            passages |= zip(wanted.tolist(), (chunk.passage for chunk in found), strict=True)
        return Backgrounds([[passages[row] for row in rows] for rows in self.rows.tolist()], self.log_probs)


class Backgrounds(NamedTuple):
    """What stands before each of Q questions (None: nothing), one for each prompt, and the weights."""

    passages: list[list[str | None]]
    log_probs: Float[np.ndarray, "Q K"]


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
    retrieval = Retrieval(chunks, chunk_rows, retrieval_log_probs)
    with Progress(len(texts), name, "questions") as bar:
        answers, _ = generate(model, texts, retrieval, settings, bar=bar)
    return answers


def generate(
    model: Model,
    prompts: Sequence[str],
    retrieval: Retrieval,
    settings: EvaluateConfig,
    *,
    shots: Sequence[Sequence[Shot]] | None = None,
    bar: Progress | None = None,
) -> tuple[list[list[Answer]], Counter[str]]:
    """Each prompt's answers with their probabilities in the mixture, best first; one at token level.

    And how many prompts had their Background cut, how many shots they lost. `shots`, the nearest last, are
    each prompt's own.
    """
    own_shots = shots if shots is not None else [()] * len(prompts)
    answers: list[list[Answer]] = []
    counts = Counter(shots_dropped=0, truncated=0)
    for start in range(0, len(prompts), BLOCK):
        some = slice(start, start + BLOCK)
        made = make_prompts(model, prompts[some], retrieval.part(some), settings, own_shots[some])
        counts.update(shots_dropped=made.shots_dropped, truncated=made.truncated)
        answers += _decode(model, made, settings)
        if bar is not None:
            bar.advance(len(made.questions))
    return answers, counts


def make_prompts(
    model: Model,
    prompts: Sequence[str],
    retrieval: Retrieval,
    settings: EvaluateConfig,
    shots: Sequence[Sequence[Shot]] | None = None,
) -> Prompts:
    """Each prompt behind its chunks, which are its Background, and behind its own shots, the nearest last.

    Concatenated chunks stand in one Background, the best first, so that what does not fit is of the worst.
    """
    found = retrieval.concatenated() if settings.ensemble == "concatenate" else retrieval.backgrounds()
    room = settings.sequence_length - settings.max_new_tokens
    made = [
        [
            few_shot_prompt(model.tokenizer, own_shots, passage, prompt, max_length=room)
            for passage in passages
        ]
        for prompt, passages, own_shots in zip(
            prompts, found.passages, shots or [()] * len(prompts), strict=True
        )
    ]
    return Prompts(made, found.log_probs)


def _decode(model: Model, prompts: Prompts, settings: EvaluateConfig) -> list[list[Answer]]:
    decode = answer_questions_by_token if settings.ensemble == "token" else answer_questions
    found = decode(
        model.module,
        model.params,
        [[prompt.tokens for prompt in own] for own in prompts.questions],
        prompts.log_probs.tolist(),
        max_new_tokens=settings.max_new_tokens,
        stop_ids=model.tokenizer.stop_ids,
        questions_per_batch=max(1, settings.prompts_per_batch // prompts.log_probs.shape[1]),
        transfer=Transfer(spread_like(model.params), gather),
    )
    return [
        [Answer(_first_line(model.tokenizer.decode(c.tokens)), float(np.exp(c.log_prob))) for c in candidates]
        for candidates in found
    ]


def _first_line(text: str) -> str:
    r"""What an answer is read as: a piece such as `.\n` holds a newline and yet does not stop generation."""
    return text.strip().partition("\n")[0].rstrip()
