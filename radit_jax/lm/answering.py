"""Answering with Eq. 2: from questions, their chunks and log p_R to answer texts with probabilities.

`evaluate.ensemble` says how the chunks are mixed: over whole answers (`answer`), token by token (`token`), or
in the prompt, whose Background holds all of them (`concatenate`).

    Retrieval      chunks and log p_R of each question
    Backgrounds    the text before each prompt, and its weight
    Prompts        token ids, one prompt for each Background
    candidates     token ids of answers with log p_LM (`AnsweringEngine`)
    Answer         a text with its probability in the mixture
"""

import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from radit_jax.config import EvaluateConfig
from radit_jax.data.batches.few_shot import FewShotPrompt, Shot, few_shot_prompt
from radit_jax.data.records import ChunkReader
from radit_jax.lm.ensemble import (
    AnswerCandidate,
    CandidatesByQuestion,
    DecodeOptions,
    answer_questions,
    answer_questions_by_token,
)
from radit_jax.lm.prefix_sharing import DevicePlacement, group_by_shared_chunks
from radit_jax.lm.scoring import NO_CHUNK, ChunkRows
from radit_jax.method.generation import Stops
from radit_jax.runtime.distributed.mesh import batch_placer, data_parallel_size, gather, mesh_of
from radit_jax.runtime.monitoring.progress import Progress
from radit_jax.runtime.pretrained.model_io import Model
from radit_jax.runtime.pretrained.tokenizers import Tokenizer
from radit_jax.text.prompts import question_prompt

QUESTIONS_PER_BLOCK = 160  # their prompts are in memory together; rounded down to whole batches


LogProbs = Float[np.ndarray, "Q K"]  # log p_R of each question's chunks: the weights of Eq. 2, in nats


class Answer(NamedTuple):
    """A generated answer with its probability in the mixture over the chunks, in all its tokenisations."""

    text: str
    probability: float
    log_probs: tuple[float, ...] = ()  # under each chunk, in nats; empty: an earlier version kept none
    is_cut: bool | None = None  # whether its likeliest tokenisation was cut; None: this was not kept


class Prompts(NamedTuple):
    """The prompts of Q questions: one for each chunk of a question, or one for all of its chunks."""

    questions: list[list[FewShotPrompt]]
    log_probs: LogProbs  # log-weight of each prompt in Eq. 2

    @property
    def token_ids(self) -> list[list[list[int]]]:
        """The prompts without what was counted of them, by question and chunk."""
        by_question = []
        for by_chunk in self.questions:
            by_question.append([prompt.tokens for prompt in by_chunk])
        return by_question

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
class AnsweringEngine(Protocol):
    """What generates the candidates of Eq. 2 and scores them: `JaxEngine`, or `vllm_engine.VllmEngine`."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's, by which prompts are made."""
        ...

    def candidates(self, prompts: Prompts, settings: EvaluateConfig) -> CandidatesByQuestion:
        """Each question's candidates, with log p_LM under each chunk and in the mixture, the best first."""
        ...


class JaxEngine(NamedTuple):
    """Our own decoding and scoring, on the devices that hold the model's parameters."""

    model: Model

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self.model.tokenizer

    def candidates(self, prompts: Prompts, settings: EvaluateConfig) -> CandidatesByQuestion:
        """Each question's candidates, by the ensemble that the settings name."""
        options = decode_options(self.tokenizer, prompts, settings)
        options = options._replace(placement=placement_of(self.model.params))
        decode = answer_questions_by_token if settings.ensemble == "token" else answer_questions
        module, params = self.model.module, self.model.params
        return decode(module, params, prompts.token_ids, prompts.log_probs.tolist(), options)


@runtime_checkable
class ChunkSearch(Protocol):
    """Finds the chunks for a text, as `retrieval.search.Searcher` does."""

    def search(self, queries: Sequence[str], k: int) -> tuple[ChunkRows, Any]:
        """The rows of each query's k best chunks, and their scores."""
        ...

    def retrieve(self, queries: Sequence[str], k: int, temperature: float) -> tuple[ChunkRows, LogProbs]:
        """The rows of each query's k best chunks, and their log p_R."""
        ...


class Retrieval(NamedTuple):
    """The chunks retrieved for each of Q questions, and their weights."""

    chunks: ChunkReader | None  # None where every row is NO_CHUNK
    rows: ChunkRows
    log_probs: LogProbs  # log p_R

    @classmethod
    def none(cls, num_questions: int) -> "Retrieval":
        """Closed book: one prompt a question, without a Background."""
        one_each = (num_questions, 1)
        rows = np.full(one_each, NO_CHUNK)
        return cls(None, rows, np.zeros(one_each, np.float32))

    def part(self, questions: slice | list[int]) -> "Retrieval":
        """The retrieval of these questions only."""
        return Retrieval(self.chunks, self.rows[questions], self.log_probs[questions])

    def concatenated(self) -> "Backgrounds":
        """All chunks of a question as one Background, the best first, with all the weight."""
        joined: list[list[str | None]] = []
        for passages in self.backgrounds().passages:
            text = "\n".join(passage for passage in passages if passage is not None)
            joined.append([text or None])
        all_weight = np.zeros((len(joined), 1), np.float32)  # log 1
        return Backgrounds(joined, all_weight)

    def backgrounds(self) -> "Backgrounds":
        """Each chunk as a Background of its own."""
        # 1) Read every chunk once.
        passage_of: dict[int, str | None] = {NO_CHUNK: None}
        if self.chunks is not None:
            is_chunk = self.rows != NO_CHUNK
            distinct = np.unique(self.rows[is_chunk])
            passages = [chunk.passage for chunk in self.chunks.take(distinct)]
            passage_of |= zip(distinct.tolist(), passages, strict=True)

        # 2) Give each question its passages, in the order of its rows.
        by_question = []
        for rows in self.rows.tolist():
            by_question.append([passage_of[row] for row in rows])
        return Backgrounds(by_question, self.log_probs)


class Backgrounds(NamedTuple):
    """The Background of each prompt of Q questions, None where it has none, and the prompts' weights."""

    passages: list[list[str | None]]
    log_probs: LogProbs


def answer(
    model: Model, questions: Sequence[str], retrieval: Retrieval, settings: EvaluateConfig, name: str
) -> list[list[Answer]]:
    """Each question's distinct greedy answers under its chunks, best first; `name` titles the progress."""
    prompts = [question_prompt(question) for question in questions]
    with Progress(len(prompts), name, "questions") as bar:
        answers, _ = generate_answers(model, prompts, retrieval, settings, bar=bar)
    return answers


def generate_answers(
    lm: Model | AnsweringEngine,
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
    A model answers by `JaxEngine`.
    """
    engine: AnsweringEngine = JaxEngine(lm) if isinstance(lm, Model) else lm
    if shots is None:
        shots = [()] * len(prompts)
    answers: list[list[Answer]] = [[] for _ in prompts]
    counts = Counter(shots_dropped=0, truncated=0)

    def text_of(tokens: Sequence[int]) -> str:
        return first_line(engine.tokenizer.decode(tokens))

    # Questions that share chunks are answered together, in blocks of whole batches.
    batch_size = questions_per_batch(retrieval.rows.shape[1], settings)
    order = group_by_shared_chunks(retrieval.rows, batch_size)
    block_size = batch_size * max(1, QUESTIONS_PER_BLOCK // batch_size)
    for start in range(0, len(prompts), block_size):
        # 1) Make the prompts of a block.
        block = order[start : start + block_size]
        block_texts = [prompts[question] for question in block]
        block_shots = [shots[question] for question in block]
        block_prompts = make_prompts(engine, block_texts, retrieval.part(block), settings, block_shots)
        counts["shots_dropped"] += block_prompts.shots_dropped
        counts["truncated"] += block_prompts.truncated

        # 2) Answer them, and put the answers at their questions' places.
        decoded = engine.candidates(block_prompts, settings)
        for question, candidates in zip(block, decoded, strict=True):
            answers[question] = merge_equal_texts(candidates, text_of, per_token=per_token)
        if bar is not None:
            bar.advance(len(block))
    return answers, counts


def make_prompts(
    lm: Model | AnsweringEngine,
    prompts: Sequence[str],
    retrieval: Retrieval,
    settings: EvaluateConfig,
    shots: Sequence[Sequence[Shot]] | None = None,
) -> Prompts:
    """Each prompt as the model reads it: its shots, the nearest last, then its Background, then the prompt.

    A prompt is made for each chunk. Concatenated chunks are one Background, the best first, so that what does
    not fit is cut from the worst.
    """
    concatenates = settings.ensemble == "concatenate"
    backgrounds = retrieval.concatenated() if concatenates else retrieval.backgrounds()
    shots = shots or [()] * len(prompts)

    # The rest of the row is for the answer.
    make_prompt = functools.partial(
        few_shot_prompt,
        lm.tokenizer,
        max_length=settings.sequence_length - settings.max_new_tokens,
    )
    questions = []
    for prompt, passages, prompt_shots in zip(prompts, backgrounds.passages, shots, strict=True):
        by_chunk = [make_prompt(prompt_shots, passage, prompt) for passage in passages]
        questions.append(by_chunk)
    return Prompts(questions, backgrounds.log_probs)


def questions_per_batch(prompts_per_question: int, settings: EvaluateConfig) -> int:
    """How many questions are answered together."""
    return max(1, settings.prompts_per_batch // prompts_per_question)


def decode_options(tokenizer: Tokenizer, prompts: Prompts, settings: EvaluateConfig) -> DecodeOptions:
    """What bounds the answers to these prompts, on one device."""
    return DecodeOptions(
        max_new_tokens=settings.max_new_tokens,
        stops=stops_of(tokenizer),
        questions_per_batch=questions_per_batch(prompts.log_probs.shape[1], settings),
    )


def placement_of(params: Any) -> DevicePlacement:
    """Rows on the devices that hold the parameters."""
    mesh = mesh_of(params)
    num_groups = data_parallel_size(mesh) if mesh else 1
    return DevicePlacement(batch_placer(params), gather, num_groups)


def stops_of(tokenizer: Tokenizer) -> Stops:
    """The ids that end an answer: `<eos>`, and every piece that holds a newline."""
    # A closing piece is a stop id too, but holds text of the answer.
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
    candidates: Sequence[AnswerCandidate],
    text_of: Callable[[Sequence[int]], str],
    *,
    per_token: bool = False,
) -> list[Answer]:
    """A question's candidates as texts, the best first; candidates with the same text are one answer.

    The probability of a text is the sum of its tokenisations', under every chunk and so in the mixture. With
    `per_token` answers are ranked by log p / n instead of log p, n being the tokens of the likeliest
    tokenisation: METHOD's `nll_token`, without which the shortest of long answers would win.
    """
    # 1) Group the tokenisations of each text.
    by_text: dict[str, list[AnswerCandidate]] = defaultdict(list)
    for candidate in candidates:
        by_text[text_of(candidate.tokens)].append(candidate)

    # 2) Add their probabilities, and rank the texts.
    scored = []
    for text, tokenisations in by_text.items():
        log_probs = [candidate.log_prob for candidate in tokenisations]
        log_prob = float(np.logaddexp.reduce(log_probs))
        by_chunk = np.logaddexp.reduce([candidate.log_probs for candidate in tokenisations])
        likeliest = max(tokenisations, key=lambda candidate: candidate.log_prob)
        score = log_prob / likeliest.num_tokens if per_token else log_prob
        probability = float(np.exp(log_prob))
        answer = Answer(text, probability, tuple(by_chunk.tolist()), likeliest.is_cut)
        scored.append((score, answer))
    scored.sort(key=lambda pair: -pair[0])
    return [answer for _, answer in scored]
