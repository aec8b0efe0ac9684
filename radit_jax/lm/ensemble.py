"""Eq. 2 over generated answers, on the host; `generation.py` and `answer_scoring.py` in `method/` are jitted.

    p_LM(y | x, C') = Σ_c p_LM(y | c∘x) p_R(c | x)

The paper decodes under each chunk and averages the answers' probabilities by p_R. `answer_questions` scores
every unique answer under every chunk, which is Eq. 2 itself. The outcome that is scored is a whole
generation, one of

    an answer with its terminator: any of the ids in `Stops.alone`, whose probabilities are added
    an answer that ends in a closing piece, one of `Stops.closing`
    `max_new_tokens` tokens without either

So the probabilities of all outcomes sum to 1, and `New` has no advantage over `New York`.

`answer_questions_by_token` decodes the mixture itself, token by token. Both give an answer the same
probability, and differ in which answers they find.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from radit_jax.lm.prefix_sharing import (
    ONE_DEVICE,
    DevicePlacement,
    build_prefill_batch,
    padded_size,
    prefill_batches,
    split_shared_prefixes,
)
from radit_jax.method.answer_scoring import NOTHING, STOP, PackedAnswers, mix_over_chunks, score_answers
from radit_jax.method.generation import (
    Answer,
    Prefilled,
    Stops,
    TokenIds,
    decode_steps,
    gather_answers,
    init_decode,
    prefill_shared,
)
from radit_jax.models.decoder import DecoderLm

STEPS_PER_CALL = 8  # tokens that `decode_steps` generates before answers that are done leave the batch

PromptsByChunk = Sequence[TokenIds]  # a question's prompts, one for each of its chunks
LogProbsByChunk = Sequence[float] | np.ndarray  # log p_R of a question's chunks


class AnswerCandidate(NamedTuple):
    """An answer to a question and log p_LM(y | x, C'), Eq. 2, in nats."""

    tokens: Answer
    log_prob: float
    num_tokens: int  # that log_prob sums over: the answer's, and its terminator where it has one
    is_cut: bool = False  # it has `max_new_tokens` tokens and no end
    log_probs: tuple[float, ...] = ()  # log p_LM(y | c∘x) under each chunk; empty at token level


CandidatesByQuestion = list[list[AnswerCandidate]]  # of each question the most probable first


class DecodeOptions(NamedTuple):
    """What bounds an answer, and how questions reach the devices."""

    max_new_tokens: int
    stops: Stops
    questions_per_batch: int = 16  # the devices hold the caches of all their prompts at a time
    placement: DevicePlacement = ONE_DEVICE


def answer_questions(
    module: DecoderLm,
    params: Any,
    prompts: Sequence[PromptsByChunk],
    retrieval_log_probs: Sequence[LogProbsByChunk] | np.ndarray,
    options: DecodeOptions,
) -> CandidatesByQuestion:
    """The answers to each question by Eq. 2, the most probable first.

    `prompts[i][k]` is question i after its k-th chunk, as token ids, and `retrieval_log_probs[i][k]` that
    chunk's log p_R; questions may have different numbers of chunks. The candidates are the greedy answers
    under each chunk. A batch whose questions share chunks is answered faster.
    """
    answerer = _Answerer(module, params, options)
    return _in_batches(answerer.answer, prompts, retrieval_log_probs, options.questions_per_batch)


def answer_questions_by_token(
    module: DecoderLm,
    params: Any,
    prompts: Sequence[PromptsByChunk],
    retrieval_log_probs: Sequence[LogProbsByChunk] | np.ndarray,
    options: DecodeOptions,
) -> CandidatesByQuestion:
    """The greedy answer to each question by Eq. 2 at token level, alone in its list.

    Takes what `answer_questions` takes; `log_prob` is Eq. 2's of that answer, with its terminator.
    """
    answerer = _Answerer(module, params, options)
    return _in_batches(answerer.answer_by_token, prompts, retrieval_log_probs, options.questions_per_batch)


def _in_batches(
    answer: Callable[..., CandidatesByQuestion],
    prompts: Sequence[PromptsByChunk],
    retrieval_log_probs: Sequence[LogProbsByChunk] | np.ndarray,
    questions_per_batch: int,
) -> CandidatesByQuestion:
    """Call `answer` for `questions_per_batch` questions at a time, with their log p_R as a (B, K) array.

    log p_R is −inf where a question or a chunk is missing.
    """
    _check_prompts(prompts)
    num_chunks = max(map(len, prompts), default=0)
    answers: CandidatesByQuestion = []
    for start in range(0, len(prompts), questions_per_batch):
        # The last batch has room for as many questions as the others, so that all have one shape.
        batch = prompts[start : start + questions_per_batch]
        log_probs = np.full((questions_per_batch, num_chunks), -np.inf, np.float32)
        for row, by_chunk in enumerate(batch):
            num_prompts = len(by_chunk)
            log_probs[row, :num_prompts] = retrieval_log_probs[start + row]
        answers += answer(batch, log_probs)
    return answers


def _check_prompts(prompts: Sequence[PromptsByChunk]) -> None:
    """Refuse a question without a prompt, and an empty prompt."""
    for question, by_chunk in enumerate(prompts):
        lengths = [len(prompt) for prompt in by_chunk]
        if not lengths or 0 in lengths:
            raise ValueError(
                f"answer_questions: expected a prompt for each question and chunk, got question {question} "
                "with none or an empty one. Ask a question that has no chunk without a Background."
            )


class _Answerer(NamedTuple):
    """A language model with what bounds its answers; answers a batch of B questions with K chunks or fewer.

    A batch may have fewer than B questions; log p_R is −inf for the questions and chunks that are missing.
    """

    module: DecoderLm
    params: Any
    options: DecodeOptions

    def answer(
        self,
        prompts: Sequence[PromptsByChunk],
        retrieval_log_probs: Float[np.ndarray, "B K"],
    ) -> CandidatesByQuestion:
        """Every unique greedy answer scored under all chunks."""
        max_new_tokens, stops, _, placement = self.options
        batch_size, num_chunks = retrieval_log_probs.shape
        generated = np.zeros((batch_size, num_chunks, max_new_tokens), np.int32)
        log_probs = np.zeros((batch_size, num_chunks, num_chunks), np.float32)

        # 1) Read the prompts and decode greedily under each.
        prefilled_batches = []
        for places, prefilled in self.prefill(prompts, retrieval_log_probs.size):
            # Greedy decoding is the mixture over one prompt, whose log-weight is 0.
            weights = np.zeros((len(places), 1), np.float32)
            tokens, _ = self.generate(prefilled, weights)
            generated[tuple(places.T)] = tokens
            prefilled_batches.append((places, prefilled))

        # 2) Score each question's unique answers after each of its prompts.
        unique = _unique_answers(generated, prompts, stops)
        packed = pack_answers(unique, stops, max_new_tokens=max_new_tokens, num_answers=num_chunks)
        for places, prefilled in prefilled_batches:
            questions = places[:, 0]
            scores = score_answers(
                self.module,
                self.params,
                prefilled,
                packed,
                questions,
                stops=stops,
                num_groups=placement.num_groups(len(questions)),
            )
            log_probs[tuple(places.T)] = placement.gather(scores)

        # 3) Mix over the chunks by p_R, and rank.
        mixed = np.asarray(mix_over_chunks(log_probs, retrieval_log_probs))
        ranked = []
        for question, by_chunk in enumerate(prompts):
            candidates = []
            for number, answer in enumerate(unique[question]):
                scores = log_probs[question, : len(by_chunk), number]
                candidate = self.candidate(answer, float(mixed[question, number]))
                candidates.append(candidate._replace(log_probs=tuple(scores.tolist())))
            candidates.sort(key=lambda candidate: -candidate.log_prob)
            ranked.append(candidates)
        return ranked

    def answer_by_token(
        self,
        prompts: Sequence[PromptsByChunk],
        retrieval_log_probs: Float[np.ndarray, "B K"],
    ) -> CandidatesByQuestion:
        """The greedy answer of the mixture of each question's chunks."""
        # 1) Give every question K prompts, and the devices a number of questions that they can divide. The
        # last question stands in for missing ones, and a question's first prompt for missing chunks.
        placement = self.options.placement
        num_questions, num_chunks = retrieval_log_probs.shape
        questions = np.arange(placement.num_rows(num_questions))
        questions = np.minimum(questions, len(prompts) - 1)
        texts: list[TokenIds] = []
        for question in questions:
            by_chunk = prompts[question]
            num_missing = num_chunks - len(by_chunk)
            texts += by_chunk
            texts += [by_chunk[0]] * num_missing

        # 2) Read all prompts together, since an answer's prompts take each step together.
        batch = build_prefill_batch(split_shared_prefixes(texts), placement)
        prefilled = prefill_shared(self.module, self.params, *batch)
        tokens, log_probs = self.generate(prefilled, retrieval_log_probs[questions])

        # 3) Leave out the answers of stand-ins.
        answers = []
        for row, log_prob in zip(tokens.tolist(), log_probs.tolist(), strict=True):
            answer = _strip_terminator(row, self.options.stops)
            answers.append([self.candidate(answer, log_prob)])
        return answers[: len(prompts)]

    def prefill(
        self,
        prompts: Sequence[PromptsByChunk],
        capacity: int,
    ) -> Iterator[tuple[Int[np.ndarray, "R 2"], Prefilled]]:
        """Read the prompts, R at a time, with the place of each: (question, chunk).

        `capacity` is the most prompts that a batch of questions may have, see `prefill_batches`.
        """
        places = _places(prompts)
        texts = [prompts[question][chunk] for question, chunk in places.tolist()]
        for numbers, batch in prefill_batches(texts, capacity, self.options.placement):
            prefilled = prefill_shared(self.module, self.params, *batch)
            yield places[numbers], prefilled

    def generate(
        self,
        prefilled: Prefilled,
        weights: Float[np.ndarray, "U K"],
    ) -> tuple[Int[np.ndarray, "U A"], Float[np.ndarray, " U"]]:
        """Tokens and log-probabilities of U answers, each in the mixture over K prompts by log-`weights`.

        After every `STEPS_PER_CALL` tokens the answers that are not done are gathered into a batch of a
        quarter of the size, once they fit.
        """
        max_new_tokens, stops, _, placement = self.options
        tokens = np.zeros((len(weights), max_new_tokens), np.int32)
        log_probs = np.zeros(len(weights), np.float32)
        in_batch = np.arange(len(weights))  # numbers of the answers that are still in the batch
        # The first token follows from the prompts alone.
        state = init_decode(prefilled, weights, max_new_tokens=max_new_tokens, stops=stops)
        for start in range(0, max_new_tokens, STEPS_PER_CALL):
            # Generate the next tokens, and put what the batch has so far at its answers' places.
            until = min(start + STEPS_PER_CALL, max_new_tokens)
            state = decode_steps(self.module, self.params, state, until, stops=stops)
            tokens[in_batch] = placement.gather(state.tokens)
            log_probs[in_batch] = placement.gather(state.log_probs)

            # Let the answers that are done leave. The others stay on their devices.
            done = placement.gather(state.done)
            if done.all():
                break
            by_group = (placement.num_groups(len(done)), -1)
            survivors = _survivors(~done.reshape(by_group))
            if survivors is not None:
                grouped = in_batch.reshape(by_group)
                in_batch = np.take_along_axis(grouped, survivors, axis=1).ravel()
                state = gather_answers(state, survivors)
        return tokens, log_probs

    def candidate(self, answer: Answer, log_prob: float) -> AnswerCandidate:
        """The answer with the number of tokens that its log-probability sums over."""
        max_new_tokens, stops = self.options.max_new_tokens, self.options.stops
        outcome = _outcome(answer, stops, max_new_tokens)
        is_cut = len(answer) == max_new_tokens and not _is_closed(answer, stops)
        return AnswerCandidate(answer, log_prob, len(outcome), is_cut)


def _places(prompts: Sequence[PromptsByChunk]) -> Int[np.ndarray, "P 2"]:
    """(question, chunk) of every prompt."""
    places = []
    for question, by_chunk in enumerate(prompts):
        for chunk in range(len(by_chunk)):
            places.append((question, chunk))
    return np.array(places)


def _survivors(alive: Bool[np.ndarray, "W r"]) -> Int[np.ndarray, "W q"] | None:
    """The answers that go on in a batch of a quarter of the size; None while they do not fit.

    It is always a quarter, so that few sizes are compiled. Spare places repeat an answer.
    """
    group_size = alive.shape[1]
    most_alive = alive.sum(axis=1).max()
    if 4 * most_alive > group_size:
        return None
    survivors = []
    for group in alive:
        numbers = np.flatnonzero(group)
        survivors.append(np.resize(numbers, group_size // 4))
    return np.stack(survivors)


def pack_answers(
    answers: Sequence[Sequence[Answer]],
    stops: Stops,
    *,
    max_new_tokens: int,
    num_answers: int,
) -> PackedAnswers:
    """Lay out the candidates of each prompt, `num_answers` at most, as host arrays.

    An answer of `max_new_tokens` tokens was cut off, and a closing piece ends an answer by itself, so no
    terminator is scored after either. `PackedAnswers` shows the layout.
    """
    # 1) Slots for the longest row. The prompt predicts an outcome's first token, so it takes no slot.
    outcomes = []
    for group in answers:
        outcomes.append([_outcome(answer, stops, max_new_tokens) for answer in group])
    row_lengths = [sum(map(len, group)) - len(group) for group in outcomes]
    slots = padded_size(max(row_lengths), unit=16)

    # 2) Each row's outcomes end to end: tokens are read, and the next ones are targets.
    num_rows = len(answers)
    tokens, offsets, continuation_ids = np.zeros((3, num_rows, slots), np.int32)
    targets = np.full((num_rows, slots), NOTHING, np.int32)
    first_targets = np.full((num_rows, num_answers), NOTHING, np.int32)
    for row, group in enumerate(outcomes):
        start = 0
        for column, outcome in enumerate(group):
            length = len(outcome) - 1
            place = slice(start, start + length)
            first_targets[row, column] = outcome[0]
            tokens[row, place] = outcome[:-1]
            targets[row, place] = outcome[1:]
            offsets[row, place] = np.arange(length)
            continuation_ids[row, place] = column + 1
            start += length
    arrays: Any = (tokens, offsets, continuation_ids, targets, first_targets)
    return PackedAnswers(*arrays)


def _outcome(answer: Answer, stops: Stops, max_new_tokens: int) -> Answer:
    """The tokens that are scored: the answer's, and STOP where a terminator belongs to it."""
    is_full = len(answer) == max_new_tokens
    return answer if is_full or _is_closed(answer, stops) else (*answer, STOP)


def _is_closed(answer: Answer, stops: Stops) -> bool:
    """Whether a closing piece ends the answer."""
    return len(answer) > 0 and answer[-1] in stops.closing


def _strip_terminator(row: Sequence[int], stops: Stops) -> Answer:
    """The tokens of a generation before its terminator; the filler after a closing piece is one too."""
    answer = itertools.takewhile(lambda token: token not in stops.alone, row)
    return tuple(answer)


def _unique_answers(
    generated: Int[np.ndarray, "B K A"],
    prompts: Sequence[PromptsByChunk],
    stops: Stops,
) -> list[list[Answer]]:
    """Each question's distinct answers, in the order of its chunks; none for the missing questions."""
    # An answer is one however many chunks lead to it.
    unique: list[list[Answer]] = [[] for _ in generated]
    for question, by_chunk in enumerate(prompts):
        rows = generated[question, : len(by_chunk)].tolist()
        answers = [_strip_terminator(row, stops) for row in rows]
        unique[question] = list(dict.fromkeys(answers))
    return unique
