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

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.special
from jaxtyping import Bool, Float, Int

from radit_jax.lm.answer_rows import (
    Candidates,
    ScoringBatch,
    is_closed,
    outcome,
    scoring_batches,
    strip_terminator,
    unique_answers,
)
from radit_jax.lm.prefix_sharing import (
    ONE_DEVICE,
    DevicePlacement,
    build_prefill_batch,
    prefill_batches,
    split_shared_prefixes,
)
from radit_jax.method.answer_scoring import NOTHING, mix_over_chunks, score_answers
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
    log_probs: tuple[float, ...] = ()  # log p_LM(y | c∘x) under each chunk


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
        max_new_tokens, stops = self.options.max_new_tokens, self.options.stops
        batch_size, num_chunks = retrieval_log_probs.shape
        generated = np.zeros((batch_size, num_chunks, max_new_tokens), np.int32)
        own_log_probs = np.zeros((batch_size, num_chunks), np.float32)

        # 1) Read the prompts and decode greedily under each.
        read = []
        for places, prefilled in self.prefill(prompts, retrieval_log_probs.size):
            # Greedy decoding is the mixture over one prompt, whose log-weight is 0.
            weights = np.zeros((len(places), 1), np.float32)
            tokens, token_log_probs, _ = self.generate(prefilled, weights)
            generated[tuple(places.T)] = tokens
            own_log_probs[tuple(places.T)] = token_log_probs
            read.append((places, prefilled))

        # 2) Each question's unique answers, whose probability under the chunks that led to them is known.
        unique: list[list[Answer]] = []
        log_probs = np.zeros((batch_size, num_chunks, num_chunks), np.float32)
        others: dict[tuple[int, int], Candidates] = {}
        for question, by_chunk in enumerate(prompts):
            rows = generated[question, : len(by_chunk)].tolist()
            answers = [strip_terminator(row, stops) for row in rows]
            unique.append(unique_answers(answers))
            for chunk, own in enumerate(answers):
                number = unique[question].index(own)
                log_probs[question, chunk, number] = own_log_probs[question, chunk]
                others[question, chunk] = [None if answer == own else answer for answer in unique[question]]

        # 3) Score them under the other chunks.
        for places, prefilled in read:
            self.score(prefilled, places, others, log_probs)
        return rank_candidates(prompts, unique, log_probs, retrieval_log_probs, self.options)

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
        weights = retrieval_log_probs[questions]
        tokens, log_probs, posterior = self.generate(prefilled, weights)

        # 3) Leave out stand-ins. By Bayes log p_LM(y | c∘x) = log w_c − log p_R(c | x) + log p_LM(y | x, C').
        answers = []
        for question, by_chunk in enumerate(prompts):
            real = slice(len(by_chunk))
            prior = scipy.special.log_softmax(weights[question, real].astype(np.float64))
            scores = posterior[question, real] - prior + log_probs[question]
            answer = strip_terminator(tokens[question].tolist(), self.options.stops)
            candidate = _candidate(answer, float(log_probs[question]), self.options)
            answers.append([candidate._replace(log_probs=tuple(scores.tolist()))])
        return answers

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

    def score(
        self,
        prefilled: Prefilled,
        places: Int[np.ndarray, "R 2"],
        others: Mapping[tuple[int, int], Candidates],
        log_probs: Float[np.ndarray, "B K U"],
    ) -> None:
        """Score what other chunks gave under each prompt that was read, and write it to its place."""
        # 1) Have the devices score all rows. A prompt that fills up the last batch was scored before.
        candidates: list[Candidates] = []
        seen = set()
        for place in map(tuple, places.tolist()):
            candidates.append(() if place in seen else others[place])
            seen.add(place)
        _, stops, _, placement = self.options
        batches = scoring_batches(
            candidates,
            stops,
            max_new_tokens=self.options.max_new_tokens,
            num_answers=log_probs.shape[2],
            placement=placement,
        )
        scored: list[tuple[ScoringBatch, Any]] = []
        for batch in batches:
            rows = placement.put_rows(batch.answers)
            scores = score_answers(self.module, self.params, prefilled, batch.prompts, rows, stops=stops)
            scored.append((batch, scores))

        # 2) Bring the scores to the host.
        for batch, scores in scored:
            of_rows = batch.rows_of_prompts(len(places))
            rows, numbers = np.nonzero(batch.answers.first_targets != NOTHING)
            questions, chunks = places[of_rows[rows]].T
            log_probs[questions, chunks, numbers] = placement.gather(scores)[rows, numbers]

    def generate(
        self,
        prefilled: Prefilled,
        weights: Float[np.ndarray, "U K"],
    ) -> tuple[Int[np.ndarray, "U A"], Float[np.ndarray, " U"], Float[np.ndarray, "U K"]]:
        """Tokens and log-probabilities of U answers, each in the mixture over K prompts by log-`weights`.

        The third array has log w_c, the posterior over the prompts given the whole answer.
        After every `STEPS_PER_CALL` tokens the answers that are not done are gathered into a batch of a
        quarter of the size, once they fit.
        """
        max_new_tokens, stops, _, placement = self.options
        tokens = np.zeros((len(weights), max_new_tokens), np.int32)
        log_probs, posterior = np.zeros(len(weights)), np.zeros(weights.shape)
        in_batch = np.arange(len(weights))  # numbers of the answers that are still in the batch
        # The first token follows from the prompts alone.
        state = init_decode(prefilled, weights, max_new_tokens=max_new_tokens, stops=stops)
        for start in range(0, max_new_tokens, STEPS_PER_CALL):
            # Generate the next tokens, and put what the batch has so far at its answers' places.
            until = min(start + STEPS_PER_CALL, max_new_tokens)
            state = decode_steps(self.module, self.params, state, until, stops=stops)
            tokens[in_batch] = placement.gather(state.tokens)
            log_probs[in_batch] = placement.gather(state.log_probs)
            posterior[in_batch] = placement.gather(state.weights)

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
        return tokens, log_probs, posterior


def rank_candidates(
    prompts: Sequence[PromptsByChunk],
    unique: Sequence[Sequence[Answer]],
    log_probs: Float[np.ndarray, "B K U"],
    retrieval_log_probs: Float[np.ndarray, "B K"],
    options: DecodeOptions,
) -> CandidatesByQuestion:
    """Each question's unique answers mixed over the chunks by p_R, the most probable first.

    `log_probs` are under each chunk, and log p_R is −inf where a chunk is missing.
    """
    mixed = np.asarray(mix_over_chunks(log_probs, retrieval_log_probs))
    ranked = []
    for question, by_chunk in enumerate(prompts):
        candidates = []
        for number, answer in enumerate(unique[question]):
            scores = log_probs[question, : len(by_chunk), number]
            candidate = _candidate(answer, float(mixed[question, number]), options)
            candidates.append(candidate._replace(log_probs=tuple(scores.tolist())))
        candidates.sort(key=lambda candidate: -candidate.log_prob)
        ranked.append(candidates)
    return ranked


def _candidate(answer: Answer, log_prob: float, options: DecodeOptions) -> AnswerCandidate:
    """The answer with the number of tokens that its log-probability sums over."""
    max_new_tokens, stops = options.max_new_tokens, options.stops
    num_tokens = len(outcome(answer, stops, max_new_tokens))
    is_cut = len(answer) == max_new_tokens and not is_closed(answer, stops)
    return AnswerCandidate(answer, log_prob, num_tokens, is_cut)


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
