"""Answering with Eq. 2: questions, their chunks and their weights in, answers by probability out.

`evaluate.ensemble` says how the chunks are mixed: over whole answers (`answer`), token by token (`token`), or
in the prompt, whose Background holds them all (`concatenate`).
"""

from collections import Counter
from collections.abc import Callable, Sequence
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

BLOCK = 160  # questions between two reports of progress, if whole batches


class Answer(NamedTuple):
    """A generated answer with its probability in the mixture over the chunks, in all its tokenisations."""

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


@runtime_checkable
class Retriever(Protocol):
    """What finds chunks of texts: `retrieval.search.Searcher`."""

    def search(self, queries: Sequence[str], k: int) -> tuple[Int[np.ndarray, "Q K"], Any]:
        """The rows of each query's k best chunks, and their scores."""
        ...

    def retrieve(
        self, queries: Sequence[str], k: int, temperature: float
    ) -> tuple[Int[np.ndarray, "Q K"], Float[np.ndarray, "Q K"]]:
        """The rows of each query's k best chunks, and their log p_R."""
        ...


class Retrieval(NamedTuple):
    """The chunks behind each of Q questions, and their weights."""

    chunks: Chunks | None  # None where no row is of a chunk
    rows: Int[np.ndarray, "Q K"]  # NO_CHUNK: no Background
    log_probs: Float[np.ndarray, "Q K"]  # log p_R

    @classmethod
    def none(cls, num_questions: int) -> "Retrieval":
        """Closed book."""
        return cls(None, np.full((num_questions, 1), NO_CHUNK), np.zeros((num_questions, 1), np.float32))

    def part(self, some: slice | list[int]) -> "Retrieval":
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
    """Each prompt's answers with their probabilities in the mixture, best first; one at token level.

    And how many prompts had their Background cut, how many shots they lost. `shots`, the nearest last, are
    each prompt's own; with `per_token` the best is the one that `merged` finds so.
    """
    own_shots = shots if shots is not None else [()] * len(prompts)
    answers: list[list[Answer]] = [[] for _ in prompts]
    counts = Counter(shots_dropped=0, truncated=0)
    size = questions_per_batch(retrieval.rows.shape[1], settings)
    order = group_by_shared_chunks(retrieval.rows, size)
    block = size * max(1, BLOCK // size)
    for start in range(0, len(prompts), block):
        some = order[start : start + block]
        texts, examples = [prompts[number] for number in some], [own_shots[number] for number in some]
        made = make_prompts(model, texts, retrieval.part(some), settings, examples)
        counts.update(shots_dropped=made.shots_dropped, truncated=made.truncated)
        for number, candidates in zip(some, _decode(model, made, settings), strict=True):
            read = lambda tokens: first_line(model.tokenizer.decode(tokens))  # noqa: E731
            answers[number] = merge_equal_texts(candidates, read, per_token=per_token)
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
    """What ends an answer: `<eos>`, or the first newline of its text, whatever piece holds it."""
    closing = set(tokenizer.closing_ids)
    return Stops(tuple(i for i in tokenizer.stop_ids if i not in closing), tokenizer.closing_ids)


def first_line(text: str) -> str:
    r"""What an answer is read as: its last piece may be one such as `.\n`.

    >>> first_line(" Paris.\n\n")
    'Paris.'
    """
    return text.partition("\n")[0].strip()


def merge_equal_texts(
    candidates: Sequence[AnswerCandidate], text_of: Callable[[Sequence[int]], str], *, per_token: bool = False
) -> list[Answer]:
    """A question's candidates as texts, the best first; what reads alike is one answer.

    The probability of a text is the sum of its tokenisations', under every chunk and so in the mixture. With
    `per_token` answers are ranked by log p / n instead of log p, n being the tokens of the likeliest one:
    METHOD's `nll_token`, without which the shortest of long answers would win.
    """
    alike: dict[str, list[AnswerCandidate]] = {}
    for candidate in candidates:
        alike.setdefault(text_of(candidate.tokens), []).append(candidate)
    scored = []
    for text, own in alike.items():
        log_prob = float(np.logaddexp.reduce([candidate.log_prob for candidate in own]))
        likeliest = max(own, key=lambda candidate: candidate.log_prob)
        score = log_prob / likeliest.num_tokens if per_token else log_prob
        scored.append((score, Answer(text, float(np.exp(log_prob)))))
    return [answer for _, answer in sorted(scored, key=lambda pair: -pair[0])]
