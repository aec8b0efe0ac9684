"""Eq. 2 over generated answers, on the host; `method/generation.py` has the jitted half.

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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from radit_jax.lm.prefix_sharing import (
    ONE_DEVICE,
    DevicePlacement,
    build_prefill_batch,
    padded_size,
    prefill_batches,
    split_shared_prefixes,
)
from radit_jax.method.generation import (
    NOTHING,
    STOP,
    Answer,
    PackedAnswers,
    Prefilled,
    Stops,
    TokenIds,
    decode_steps,
    gather_answers,
    init_decode,
    mix_over_chunks,
    prefill_shared,
    score_answers,
)
from radit_jax.models.llama import Llama

STEPS_PER_CALL = 8  # tokens that `decode_steps` generates before answers that are done leave the batch

PromptsByChunk = Sequence[TokenIds]  # a question's prompts, one for each of its chunks
ChunkLogProbs = Sequence[float] | np.ndarray  # log p_R of a question's chunks


class AnswerCandidate(NamedTuple):
    """An answer to a question and log p_LM(y | x, C'), Eq. 2, in nats."""

    tokens: Answer
    log_prob: float
    num_tokens: int  # that log_prob sums over: the answer's, and its terminator where it has one


def answer_questions(
    module: Llama,
    params: Any,
    prompts: Sequence[PromptsByChunk],
    retrieval_log_probs: Sequence[ChunkLogProbs] | np.ndarray,
    *,
    max_new_tokens: int,
    stops: Stops,
    questions_per_batch: int = 16,
    placement: DevicePlacement = ONE_DEVICE,
) -> list[list[AnswerCandidate]]:
    """The answers to each question by Eq. 2, the most probable first.

    `prompts[i][k]` is question i after its k-th chunk, as token ids, and `retrieval_log_probs[i][k]` that
    chunk's log p_R; questions may have different numbers of chunks. The candidates are the greedy answers
    under each chunk. The caches of all prompts of `questions_per_batch` questions are held at a time; a batch
    whose questions share chunks is answered faster.
    """
    answerer = _Answerer(module, params, max_new_tokens, stops, placement)
    return _in_batches(answerer.answer, prompts, retrieval_log_probs, questions_per_batch)


def answer_questions_by_token(
    module: Llama,
    params: Any,
    prompts: Sequence[PromptsByChunk],
    retrieval_log_probs: Sequence[ChunkLogProbs] | np.ndarray,
    *,
    max_new_tokens: int,
    stops: Stops,
    questions_per_batch: int = 16,
    placement: DevicePlacement = ONE_DEVICE,
) -> list[list[AnswerCandidate]]:
    """The greedy answer to each question by Eq. 2 at token level, alone in its list.

    Takes what `answer_questions` takes; `log_prob` is Eq. 2's of that answer, with its terminator.
    """
    answerer = _Answerer(module, params, max_new_tokens, stops, placement)
    return _in_batches(answerer.answer_by_token, prompts, retrieval_log_probs, questions_per_batch)


def _in_batches(
    answer: Callable[..., list[list[AnswerCandidate]]],
    prompts: Sequence[PromptsByChunk],
    retrieval_log_probs: Sequence[ChunkLogProbs] | np.ndarray,
    questions_per_batch: int,
) -> list[list[AnswerCandidate]]:
    """`answer` of `questions_per_batch` questions at a time; log p_R is −inf where a chunk is missing."""
    _check_prompts(prompts)
    num_chunks = max(map(len, prompts), default=0)
    answers: list[list[AnswerCandidate]] = []
    for start in range(0, len(prompts), questions_per_batch):
        batch = prompts[start : start + questions_per_batch]
        log_probs = np.full((questions_per_batch, num_chunks), -np.inf, np.float32)
        for row, by_chunk in enumerate(batch):
            log_probs[row, : len(by_chunk)] = retrieval_log_probs[start + row]
        answers += answer(batch, log_probs)
    return answers


def _check_prompts(prompts: Sequence[PromptsByChunk]) -> None:
    for number, by_chunk in enumerate(prompts):
        if len(by_chunk) == 0 or any(len(prompt) == 0 for prompt in by_chunk):
            raise ValueError(
                f"answer_questions: expected a prompt for each question and chunk, got question {number} "
                "with none or an empty one. Ask a question that has no chunk without a Background."
            )


class _Answerer(NamedTuple):
    """A language model with what bounds its answers; answers a batch of B questions with K chunks or fewer.

    A batch may have fewer than B questions; log p_R is −inf for the questions and chunks that are missing.
    """

    module: Llama
    params: Any
    max_new_tokens: int
    stops: Stops
    placement: DevicePlacement

    def answer(
        self, prompts: Sequence[PromptsByChunk], retrieval_log_probs: Float[np.ndarray, "B K"]
    ) -> list[list[AnswerCandidate]]:
        """Every unique greedy answer scored under all chunks."""
        shape = retrieval_log_probs.shape
        num_chunks = shape[1]

        # 1) Read the prompts and decode greedily under each. `places` are the prompts' (question, chunk).
        places = _places(prompts)
        texts = [prompts[question][chunk] for question, chunk in places.tolist()]
        generated = np.zeros((*shape, self.max_new_tokens), np.int32)
        prefilled_batches: list[tuple[Int[np.ndarray, "R 2"], Prefilled]] = []
        for numbers, batch in prefill_batches(texts, retrieval_log_probs.size, self.placement):
            batch_places = places[numbers]
            prefilled = prefill_shared(self.module, self.params, *batch)
            weights = np.zeros((len(batch_places), 1), np.float32)
            generated[tuple(batch_places.T)] = self.generate(prefilled, weights)[0]
            prefilled_batches.append((batch_places, prefilled))

        # 2) Score each question's unique answers after each of its prompts.
        unique = _unique_answers(generated, prompts, self.stops)
        packed = pack_answers(unique, self.stops, max_new_tokens=self.max_new_tokens, num_answers=num_chunks)
        log_probs = np.zeros((*shape, num_chunks), np.float32)
        for batch_places, prefilled in prefilled_batches:
            questions = batch_places[:, 0]
            scores = score_answers(self.module, self.params, prefilled, packed, questions, stops=self.stops)
            log_probs[tuple(batch_places.T)] = self.placement.gather(scores)

        # 3) Mix over the chunks by p_R, and rank.
        mixed = np.asarray(mix_over_chunks(log_probs, retrieval_log_probs))
        ranked = []
        for answers, scores in zip(unique, mixed.tolist(), strict=True):
            candidates = [self.candidate(*pair) for pair in zip(answers, scores, strict=False)]
            ranked.append(sorted(candidates, key=lambda candidate: -candidate.log_prob))
        return ranked[: len(prompts)]

    def answer_by_token(
        self, prompts: Sequence[PromptsByChunk], retrieval_log_probs: Float[np.ndarray, "B K"]
    ) -> list[list[AnswerCandidate]]:
        """The greedy answer of the mixture of each question's chunks."""
        num_questions, num_chunks = retrieval_log_probs.shape
        # The last question stands in for missing ones, and a question's first prompt for missing chunks.
        questions = np.arange(self.placement.num_rows(num_questions))
        questions = np.minimum(questions, len(prompts) - 1)
        texts: list[TokenIds] = []
        for question in questions:
            by_chunk = prompts[question]
            texts += [*by_chunk, *[by_chunk[0]] * (num_chunks - len(by_chunk))]

        batch = build_prefill_batch(split_shared_prefixes(texts), self.placement)
        prefilled = prefill_shared(self.module, self.params, *batch)
        tokens, log_probs = self.generate(prefilled, retrieval_log_probs[questions])
        answers = []
        for row, log_prob in zip(tokens.tolist(), log_probs.tolist(), strict=True):
            answers.append([self.candidate(_strip_terminator(row, self.stops), log_prob)])
        return answers[: len(prompts)]

    def generate(
        self, prefilled: Prefilled, weights: Float[np.ndarray, "U K"]
    ) -> tuple[Int[np.ndarray, "U A"], Float[np.ndarray, " U"]]:
        """Tokens and log-probabilities of U answers, each in the mixture over K prompts by log-`weights`.

        After every `STEPS_PER_CALL` tokens the answers that are not done are gathered into a batch of a
        quarter of the size, once they fit.
        """
        tokens = np.zeros((len(weights), self.max_new_tokens), np.int32)
        log_probs = np.zeros(len(weights), np.float32)
        in_batch = np.arange(len(weights))  # numbers of the answers that are still in the batch
        state = init_decode(prefilled, weights, max_new_tokens=self.max_new_tokens, stops=self.stops)
        for end in range(STEPS_PER_CALL, self.max_new_tokens + STEPS_PER_CALL, STEPS_PER_CALL):
            until = min(end, self.max_new_tokens)
            state = decode_steps(self.module, self.params, state, until, stops=self.stops)
            tokens[in_batch] = self.placement.gather(state.tokens)
            log_probs[in_batch] = self.placement.gather(state.log_probs)
            done = self.placement.gather(state.done)
            if done.all():
                break
            alive = ~done.reshape(self.placement.num_groups(len(done)), -1)
            group_size = alive.shape[1]
            if 4 * alive.sum(axis=1).max() <= group_size:
                # Always a quarter, so that few sizes are compiled; spare places repeat an answer.
                quarter = group_size // 4
                survivors = np.stack([np.resize(np.flatnonzero(group), quarter) for group in alive])
                in_batch = np.take_along_axis(in_batch.reshape(alive.shape), survivors, axis=1).ravel()
                state = gather_answers(state, survivors)
        return tokens, log_probs

    def candidate(self, answer: Answer, log_prob: float) -> AnswerCandidate:
        """The answer with the number of tokens that its log-probability sums over."""
        outcome = _outcome(answer, self.stops, self.max_new_tokens)
        return AnswerCandidate(answer, log_prob, len(outcome))


def _places(prompts: Sequence[PromptsByChunk]) -> Int[np.ndarray, "P 2"]:
    """(question, chunk) of every prompt."""
    places = []
    for question, by_chunk in enumerate(prompts):
        places += [(question, chunk) for chunk in range(len(by_chunk))]
    return np.array(places)


def pack_answers(
    answers: Sequence[Sequence[Answer]], stops: Stops, *, max_new_tokens: int, num_answers: int
) -> PackedAnswers:
    """Lay out the candidates of each prompt, `num_answers` at most, as host arrays.

    An answer of `max_new_tokens` tokens was cut off, and a closing piece ends an answer by itself, so no
    terminator is scored after either.
    """
    outcomes = [[_outcome(answer, stops, max_new_tokens) for answer in group] for group in answers]
    slots = padded_size(max(sum(len(outcome) - 1 for outcome in group) for group in outcomes), unit=16)
    tokens, offsets, continuation_ids = np.zeros((3, len(answers), slots), np.int32)
    targets = np.full((len(answers), slots), NOTHING, np.int32)
    first_targets = np.full((len(answers), num_answers), NOTHING, np.int32)
    for row, group in enumerate(outcomes):
        start = 0
        for number, outcome in enumerate(group):
            length = len(outcome) - 1
            place = slice(start, start + length)
            first_targets[row, number] = outcome[0]
            tokens[row, place] = outcome[:-1]
            targets[row, place] = outcome[1:]
            offsets[row, place] = np.arange(length)
            continuation_ids[row, place] = number + 1
            start += length
    arrays: Any = (tokens, offsets, continuation_ids, targets, first_targets)
    return PackedAnswers(*arrays)


def _outcome(answer: Answer, stops: Stops, max_new_tokens: int) -> Answer:
    """The tokens that are scored: the answer's, and STOP where a terminator belongs to it."""
    has_ended = len(answer) == max_new_tokens or (answer and answer[-1] in stops.closing)
    return answer if has_ended else (*answer, STOP)


def _strip_terminator(row: Sequence[int], stops: Stops) -> Answer:
    """The tokens of a generation before its terminator; the filler after a closing piece is one too."""
    return tuple(itertools.takewhile(lambda token: token not in stops.alone, row))


def _unique_answers(
    generated: Int[np.ndarray, "B K A"], prompts: Sequence[PromptsByChunk], stops: Stops
) -> list[list[Answer]]:
    """Each question's distinct answers, in the order of its chunks; none for the missing questions."""
    unique: list[list[Answer]] = [[] for _ in generated]
    for question, by_chunk in enumerate(prompts):
        rows = generated[question, : len(by_chunk)].tolist()
        unique[question] = list(dict.fromkeys(_strip_terminator(row, stops) for row in rows))
    return unique
