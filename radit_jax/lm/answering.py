"""Answering with Eq. 2: from questions, their chunks and log p_R to answer texts with probabilities.

`evaluate.ensemble` says how the chunks are mixed: over whole answers (`answer`), token by token (`token`), or
in the prompt, whose Background holds all of them (`concatenate`).
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from radit_jax.config import EvaluateConfig
from radit_jax.data.artifacts.corpus import Chunks
from radit_jax.data.batches.few_shot import FewShotPrompt, Shot, few_shot_prompt
from radit_jax.lm.ensemble import AnswerCandidate, answer_questions, answer_questions_by_token
from radit_jax.lm.prefix_sharing import DevicePlacement, group_by_shared_chunks
from radit_jax.lm.scoring import NO_CHUNK
from radit_jax.method.generation import Stops
from radit_jax.runtime.distributed.mesh import batch_placer, data_parallel_size, gather, mesh_of
from radit_jax.runtime.monitoring.progress import Progress
from radit_jax.runtime.pretrained.model_io import Model
from radit_jax.runtime.pretrained.tokenizers import Tokenizer
from radit_jax.text.prompts import question_prompt

QUESTIONS_PER_BLOCK = 160  # whose prompts are in memory together; rounded down to whole batches


class Answer(NamedTuple):
    """A generated answer with its probability in the mixture over the chunks, in all its tokenisations."""

    text: str
    probability: float


class Prompts(NamedTuple):
    """The prompts of Q questions: one for each chunk of a question, or one for all of its chunks."""

    questions: list[list[FewShotPrompt]]
    log_probs: Float[np.ndarray, "Q K"]  # log-weight of each prompt in Eq. 2

    @property
    def shots_dropped(self) -> int:
        """How many shots did not fit, over all prompts."""
        return sum(prompt.shots_dropped for prompt in self._all_prompts)

    @property
    def truncated(self) -> int:
        """How many prompts had their Background cut."""
        return sum(prompt.truncated for prompt in self._all_prompts)

    @property
    def _all_prompts(self) -> Iterator[FewShotPrompt]:
        return itertools.chain.from_iterable(self.questions)


@runtime_checkable
class Retriever(Protocol):
    """Finds the chunks for a text, as `retrieval.search.Searcher` does."""

    def search(self, queries: Sequence[str], k: int) -> tuple[Int[np.ndarray, "Q K"], Any]:
        """The rows of each query's k best chunks, and their scores."""
        ...

    def retrieve(
        self, queries: Sequence[str], k: int, temperature: float
    ) -> tuple[Int[np.ndarray, "Q K"], Float[np.ndarray, "Q K"]]:
        """The rows of each query's k best chunks, and their log p_R."""
        ...


class Retrieval(NamedTuple):
    """The chunks retrieved for each of Q questions, and their weights."""

    chunks: Chunks | None  # None where every row is NO_CHUNK
    rows: Int[np.ndarray, "Q K"]  # of the chunks; NO_CHUNK: the prompt gets no Background
    log_probs: Float[np.ndarray, "Q K"]  # log p_R

    @classmethod
    def none(cls, num_questions: int) -> "Retrieval":
        """Closed book: one prompt a question, without a Background."""
        return cls(None, np.full((num_questions, 1), NO_CHUNK), np.zeros((num_questions, 1), np.float32))

    def part(self, questions: slice | list[int]) -> "Retrieval":
        """The retrieval of some of the questions."""
        return Retrieval(self.chunks, self.rows[questions], self.log_probs[questions])

    def concatenated(self) -> "Backgrounds":
        """All chunks of a question as one Background, the best first, with all the weight."""
        joined: list[list[str | None]] = []
        for passages in self.backgrounds().passages:
            text = "\n".join(passage for passage in passages if passage is not None)
            joined.append([text or None])
        return Backgrounds(joined, np.zeros((len(joined), 1), np.float32))

    def backgrounds(self) -> "Backgrounds":
        """Each chunk as a Background of its own."""
        distinct = np.unique(self.rows[self.rows != NO_CHUNK])
        passage_of: dict[int, str | None] = {NO_CHUNK: None}
        if self.chunks is not None:
            passages = [chunk.passage for chunk in self.chunks.take(distinct)]
            passage_of |= zip(distinct.tolist(), passages, strict=True)
        by_question = []
        for rows in self.rows.tolist():
            by_question.append([passage_of[row] for row in rows])
        return Backgrounds(by_question, self.log_probs)


class Backgrounds(NamedTuple):
    """The Background of each prompt of Q questions, None where it has none, and the prompts' weights."""

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
        answers, _ = generate_answers(model, texts, retrieval, settings, bar=bar)
    return answers


def generate_answers(
    model: Model,
    prompts: Sequence[str],
    retrieval: Retrieval,
    settings: EvaluateConfig,
    *,
    shots: Sequence[Sequence[Shot]] | None = None,
    per_token: bool = False,
    bar: Progress | None = None,
) -> tuple[list[list[Answer]], Counter[str]]:
    """Each prompt's answers with their probabilities in the mixture, the best first.

    Also returns how many prompts had their Background cut (`truncated`) and how many shots did not fit
    (`shots_dropped`). `shots[i]` are prompt i's examples, the nearest last. With `per_token` the best answer
    is chosen by log p per token, see `merge_equal_texts`. Mixing token by token gives one answer a prompt.
    """
    shots = shots if shots is not None else [()] * len(prompts)
    answers: list[list[Answer]] = [[] for _ in prompts]
    counts = Counter(shots_dropped=0, truncated=0)
    batch_size = questions_per_batch(retrieval.rows.shape[1], settings)
    order = group_by_shared_chunks(retrieval.rows, batch_size)
    block_size = batch_size * max(1, QUESTIONS_PER_BLOCK // batch_size)

    def text_of(tokens: Sequence[int]) -> str:
        return first_line(model.tokenizer.decode(tokens))

    for start in range(0, len(prompts), block_size):
        block = order[start : start + block_size]
        made = make_prompts(
            model,
            [prompts[number] for number in block],
            retrieval.part(block),
            settings,
            [shots[number] for number in block],
        )
        counts.update(shots_dropped=made.shots_dropped, truncated=made.truncated)
        for number, candidates in zip(block, _decode(model, made, settings), strict=True):
            answers[number] = merge_equal_texts(candidates, text_of, per_token=per_token)
        if bar is not None:
            bar.advance(len(block))
    return answers, counts


def make_prompts(
    model: Model,
    prompts: Sequence[str],
    retrieval: Retrieval,
    settings: EvaluateConfig,
    shots: Sequence[Sequence[Shot]] | None = None,
) -> Prompts:
    """Each prompt as the model reads it: its shots, the nearest last, then its Background, then the prompt.

    A prompt is made for each chunk. Concatenated chunks are one Background, the best first, so that what does
    not fit is cut from the worst.
    """
    concatenate = settings.ensemble == "concatenate"
    backgrounds = retrieval.concatenated() if concatenate else retrieval.backgrounds()
    max_length = settings.sequence_length - settings.max_new_tokens
    shots = shots or [()] * len(prompts)
    questions = []
    for prompt, passages, own_shots in zip(prompts, backgrounds.passages, shots, strict=True):
        by_chunk = []
        for passage in passages:
            by_chunk.append(
                few_shot_prompt(model.tokenizer, own_shots, passage, prompt, max_length=max_length)
            )
        questions.append(by_chunk)
    return Prompts(questions, backgrounds.log_probs)


def questions_per_batch(prompts_per_question: int, settings: EvaluateConfig) -> int:
    """How many questions are answered together."""
    return max(1, settings.prompts_per_batch // prompts_per_question)


def _decode(model: Model, prompts: Prompts, settings: EvaluateConfig) -> list[list[AnswerCandidate]]:
    mesh = mesh_of(model.params)
    num_groups = data_parallel_size(mesh) if mesh else 1
    decode = answer_questions_by_token if settings.ensemble == "token" else answer_questions
    return decode(
        model.module,
        model.params,
        [[prompt.tokens for prompt in by_chunk] for by_chunk in prompts.questions],
        prompts.log_probs.tolist(),
        max_new_tokens=settings.max_new_tokens,
        stops=stops_of(model.tokenizer),
        questions_per_batch=questions_per_batch(prompts.log_probs.shape[1], settings),
        placement=DevicePlacement(batch_placer(model.params), gather, num_groups),
    )


def stops_of(tokenizer: Tokenizer) -> Stops:
    """The ids that end an answer: `<eos>`, and every piece that holds a newline."""
    closing = set(tokenizer.closing_ids)
    alone = tuple(token for token in tokenizer.stop_ids if token not in closing)
    return Stops(alone, tokenizer.closing_ids)


def first_line(text: str) -> str:
    r"""The text of an answer: what is before its first newline, which may be inside its last piece.

    >>> first_line(" Paris.\n\n")
    'Paris.'
    """
    return text.partition("\n")[0].strip()


def merge_equal_texts(
    candidates: Sequence[AnswerCandidate], text_of: Callable[[Sequence[int]], str], *, per_token: bool = False
) -> list[Answer]:
    """A question's candidates as texts, the best first; candidates with the same text are one answer.

    The probability of a text is the sum of its tokenisations', under every chunk and so in the mixture. With
    `per_token` answers are ranked by log p / n instead of log p, n being the tokens of the likeliest
    tokenisation: METHOD's `nll_token`, without which the shortest of long answers would win.
    """
    by_text: dict[str, list[AnswerCandidate]] = {}
    for candidate in candidates:
        by_text.setdefault(text_of(candidate.tokens), []).append(candidate)
    scored = []
    for text, tokenisations in by_text.items():
        log_prob = float(np.logaddexp.reduce([candidate.log_prob for candidate in tokenisations]))
        likeliest = max(tokenisations, key=lambda candidate: candidate.log_prob)
        score = log_prob / likeliest.num_tokens if per_token else log_prob
        scored.append((score, Answer(text, float(np.exp(log_prob)))))
    return [answer for _, answer in sorted(scored, key=lambda pair: -pair[0])]
