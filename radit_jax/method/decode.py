"""Answering: greedy generation, and Eq. 2 over the answers that the retrieved chunks give.

    p_LM(y | x, C') = Σ_c p_LM(y | c∘x) p_R(c | x)

The paper decodes under each chunk and averages the answers' probabilities by p_R. We score every unique
answer under every chunk anew, which is Eq. 2 itself. An outcome is a whole generation: an answer with its
terminator (any of the ids in `Stops.alone`, whose probabilities add up), an answer that its own last piece
ends (one of `Stops.closing`), or `max_new_tokens` tokens without either. So the probabilities of all outcomes
sum to 1, and `New` has no advantage over `New York`.

A prompt is read once. Its keys and values serve the decoding, and then the scoring, where the candidate
answers are continuations of the prompt. A beginning that several prompts of a batch share, such as a chunk
that several questions retrieved, is read once for all of them (`split_shared_prefixes`).

`answer_questions_by_token` reads Eq. 2 token by token instead: the next token is the most probable one of

    p(y_t | y_<t) = Σ_c w_c,t p_LM(y_t | c∘x, y_<t)        w_c,t ∝ p_R(c | x) p_LM(y_<t | c∘x)

With these weights, the posterior over the chunks, the product over t is Eq. 2's probability of the whole
answer: both readings agree on what an answer is worth, and differ in which answers they find.

A prompt that has its answer is dropped from the batch: every `STEPS` tokens what goes on is gathered into a
smaller one, once it is a quarter.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from radit_jax.method.losses import ensemble_log_prob
from radit_jax.models.llama import KvCache, Llama, take_rows

STOP = -1  # as a target: any of the ids in `Stops.alone`
NOTHING = -2  # as a target: an unused slot
STEPS = 8  # tokens between two looks at which answers go on
ROWS = 32  # prompts that are read together: enough to keep a CPU busy, few enough to be of similar length
TAIL = 32  # tokens behind the prefix of a prompt that shares none: as many as a row of tails has room for
SHARED = 32  # tokens that prompts begin with alike, if that is read once: for fewer there is no room to save

Answer = tuple[int, ...]  # the tokens before the terminator
TokenIds = Sequence[int] | np.ndarray


class Stops(NamedTuple):
    r"""The token ids that end an answer.

    A newline ends an answer, and a byte-level BPE has pieces of text and newline. Of an answer `Paris.\n` in
    the pieces `Paris` and `.\n` the second is a closing one: it is scored, and no terminator after it.
    """

    alone: tuple[int, ...]  # `<eos>` and newlines, which are alternatives and no part of the answer
    closing: tuple[int, ...] = ()  # pieces with text of the answer before their newline


class DevicePlacement(NamedTuple):
    """How arrays come to the devices that compute and back; the default is one process's one device."""

    spread: Callable[[Any], Any] = lambda rows: rows  # host arrays whose first axis counts rows
    gather: Callable[[Any], np.ndarray] = np.asarray
    ways: int = 1  # rows are spread where their number is a multiple of it

    def rows(self, count: int) -> int:
        """`count`, or as many more as can be spread."""
        return _multiple(count, self.ways)

    def groups(self, count: int) -> int:
        """Into how many groups so many rows are spread; nothing moves from one to another."""
        return 1 if count % self.ways else self.ways


ONE_DEVICE = DevicePlacement()


class Rows(NamedTuple):
    """Token ids, padded on the right."""

    tokens: Int[Array, "R T"]
    lengths: Int[Array, " R"]


class Prompt(NamedTuple):
    """A prompt in two: what others begin with as well, and at least one token of its own."""

    prefix: Answer
    tail: Answer


class PrefillBatch(NamedTuple):
    """R prompts in W groups as `prefill_shared` reads them, each distinct prefix of a group once.

    Every group has S / W prefixes, counted by `prefix_of`; where they are as many as its prompts, they are
    the prompts' own in their order.
    """

    prefixes: Rows  # S of them; empty ones fill a group up
    prefix_of: Int[np.ndarray, "W r"]
    tails: Rows  # R of them


class Prefilled(NamedTuple):
    """R prompts that a model has read: what continuations need of them."""

    cache: KvCache
    lengths: Int[Array, " R"]
    logits: Float[Array, "R V"]  # of the token after each prompt


class DecodeState(NamedTuple):
    """U answers in the making, each under K prompts: those of a mixture, or one."""

    cache: KvCache  # of U · K rows, an answer's prompts side by side
    lengths: Int[Array, " R"]  # of the prompts
    step: Int[Array, ""]  # tokens generated so far
    tokens: Int[Array, "U A"]
    weights: Float[Array, "U K"]  # log of the posterior over the prompts, given the tokens so far
    log_probs: Float[Array, " U"]  # of the answer in the mixture, with its terminator, nats
    done: Bool[Array, " U"]

    def keep(self, answers: Int[Array, "W k"]) -> "DecodeState":
        """The same with these answers only, which `take_rows` gives."""
        chunks = self.weights.shape[1]
        rows = (answers[:, :, None] * chunks + jnp.arange(chunks)[None, None]).reshape(len(answers), -1)
        own = (take_rows(array, answers) for array in (self.tokens, self.weights, self.log_probs, self.done))
        return DecodeState(self.cache.take(rows), take_rows(self.lengths, rows), self.step, *own)


class PackedAnswers(NamedTuple):
    """Up to U candidate answers for each of R prompts, end to end in C slots as continuations of the prompt.

    Answers (5, 6) and (7,), where `max_new_tokens` is more than 2:

        first_targets    5  7               predicted by the prompt's last token
        tokens           5  6     7    0
        offsets          0  1     0    0    positions after the prompt
        continuation_ids       1  1     2    0    0 is an unused slot
        targets          6  STOP  STOP NOTHING
    """

    tokens: Int[Array, "R C"]
    offsets: Int[Array, "R C"]
    continuation_ids: Int[Array, "R C"]
    targets: Int[Array, "R C"]
    first_targets: Int[Array, "R U"]


class AnswerCandidate(NamedTuple):
    """An answer to a question and log p_LM(y | x, C'), Eq. 2, in nats."""

    tokens: Answer
    log_prob: float
    num_tokens: int  # that log_prob is the sum over: the answer's, and its terminator where it has one


def answer_questions(
    module: Llama,
    params: Any,
    prompts: Sequence[Sequence[TokenIds]],
    retrieval_log_probs: Sequence[Sequence[float] | np.ndarray] | np.ndarray,
    *,
    max_new_tokens: int,
    stops: Stops,
    questions_per_batch: int = 16,
    transfer: DevicePlacement = ONE_DEVICE,
) -> list[list[AnswerCandidate]]:
    """The answers to each question by Eq. 2, the most probable first.

    `prompts[i][k]` is question i behind its k-th chunk, as token ids, and `retrieval_log_probs[i][k]` that
    chunk's log p_R; questions may have different numbers of chunks. The candidates are what greedy decoding
    gives under each chunk, a closing piece included. The caches of all prompts of `questions_per_batch`
    questions are held at a time; neighbours that share chunks are answered faster.
    """

    def answer(
        texts: Sequence[Sequence[TokenIds]], weights: Float[np.ndarray, "B K"]
    ) -> list[list[AnswerCandidate]]:
        return _answer_batch(module, params, texts, weights, max_new_tokens, stops, transfer)

    return _by_batches(prompts, retrieval_log_probs, questions_per_batch, answer)


def answer_questions_by_token(
    module: Llama,
    params: Any,
    prompts: Sequence[Sequence[TokenIds]],
    retrieval_log_probs: Sequence[Sequence[float] | np.ndarray] | np.ndarray,
    *,
    max_new_tokens: int,
    stops: Stops,
    questions_per_batch: int = 16,
    transfer: DevicePlacement = ONE_DEVICE,
) -> list[list[AnswerCandidate]]:
    """The greedy answer to each question by Eq. 2 at token level, alone in its list.

    Takes what `answer_questions` takes; `log_prob` is Eq. 2's of that answer, with its terminator.
    """
    options = {"max_new_tokens": max_new_tokens, "stops": stops, "transfer": transfer}

    def answer(
        texts: Sequence[Sequence[TokenIds]], weights: Float[np.ndarray, "B K"]
    ) -> list[list[AnswerCandidate]]:
        rows = np.arange(transfer.rows(len(weights)))
        numbers = np.minimum(rows, len(texts) - 1)  # what is missing repeats a question
        chunks = weights.shape[1]
        own = [[*texts[n], *[texts[n][0]] * (chunks - len(texts[n]))] for n in numbers]
        reading = build_prefill_batch(
            split_shared_prefixes([prompt for prompts in own for prompt in prompts]), transfer
        )
        prefilled = prefill_shared(module, params, *reading)
        tokens, log_probs = _generate(module, params, prefilled, weights[numbers], **options)
        found = zip(tokens.tolist(), log_probs.tolist(), strict=True)
        answers = [(_answer_of(row, stops), log_prob) for row, log_prob in found]
        return [[_candidate(*own, stops, max_new_tokens)] for own in answers[: len(texts)]]

    return _by_batches(prompts, retrieval_log_probs, questions_per_batch, answer)


def _by_batches(
    prompts: Sequence[Sequence[TokenIds]],
    retrieval_log_probs: Sequence[Sequence[float] | np.ndarray] | np.ndarray,
    questions_per_batch: int,
    answer: Callable[..., list[list[AnswerCandidate]]],
) -> list[list[AnswerCandidate]]:
    """What `answer` gives for so many questions at a time; log p_R is −inf for what is missing."""
    _check_prompts(prompts)
    num_chunks = max(map(len, prompts), default=0)
    answers: list[list[AnswerCandidate]] = []
    for batch in _batches(list(range(len(prompts))), questions_per_batch):
        weights = np.full((questions_per_batch, num_chunks), -np.inf, np.float32)
        for row, number in enumerate(batch):
            weights[row, : len(prompts[number])] = retrieval_log_probs[number]
        answers += answer([prompts[number] for number in batch], weights)
    return answers


def _check_prompts(prompts: Sequence[Sequence[TokenIds]]) -> None:
    for number, chunks in enumerate(prompts):
        if len(chunks) == 0 or any(len(prompt) == 0 for prompt in chunks):
            raise ValueError(
                f"answer_questions: question {number} has no prompt or an empty one; ask without Background"
            )


def _answer_batch(
    module: Llama,
    params: Any,
    prompts: Sequence[Sequence[TokenIds]],
    retrieval_log_probs: Float[np.ndarray, "B K"],
    max_new_tokens: int,
    stops: Stops,
    transfer: DevicePlacement,
) -> list[list[AnswerCandidate]]:
    """`answer_questions` for at most B questions of at most K chunks; p_R is 0 for those that are missing."""
    places = [(question, chunk) for question, own in enumerate(prompts) for chunk in range(len(own))]
    texts = [prompts[question][chunk] for question, chunk in places]
    options = {"max_new_tokens": max_new_tokens, "stops": stops, "transfer": transfer}
    generated = np.zeros((*retrieval_log_probs.shape, max_new_tokens), np.int32)
    read = []
    for numbers, reading in prefill_batches(texts, retrieval_log_probs.size, transfer):
        part = np.array(places)[numbers]
        prefilled = prefill_shared(module, params, *reading)
        alone = np.zeros((len(part), 1), np.float32)
        generated[tuple(part.T)] = _generate(module, params, prefilled, alone, **options)[0]
        read.append((part, prefilled))
    unique = _unique_answers(generated, prompts, stops)
    num_chunks = retrieval_log_probs.shape[1]
    packed = pack_answers(unique, stops, max_new_tokens=max_new_tokens, num_answers=num_chunks)

    log_probs = np.zeros((*retrieval_log_probs.shape, num_chunks), np.float32)
    for part, prefilled in read:
        scores = score_answers(module, params, prefilled, packed, part[:, 0], stops=stops)
        log_probs[tuple(part.T)] = transfer.gather(scores)
    ensemble = np.asarray(_ensemble(log_probs, retrieval_log_probs))
    ranked = []
    for answers, scores in zip(unique, ensemble.tolist(), strict=True):
        own = [_candidate(*pair, stops, max_new_tokens) for pair in zip(answers, scores, strict=False)]
        ranked.append(sorted(own, key=lambda candidate: -candidate.log_prob))
    return ranked[: len(prompts)]


@functools.partial(jax.jit, static_argnames=("module", "max_new_tokens", "stop_ids"))
def greedy(
    module: Llama,
    params: Any,
    prompts: Int[Array, "R T"],
    lengths: Int[Array, " R"],
    *,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
) -> Int[Array, "R {max_new_tokens}"]:
    """The most probable next token, again and again: [R, max_new_tokens].

    `prompts` are padded on the right to `lengths`. A generation holds the stop token that ended it, and after
    it the first of `stop_ids` to the end. Without stop ids every generation has its full length.
    """
    prefilled = prefill(module, params, prompts, lengths)
    return decode(module, params, prefilled, max_new_tokens=max_new_tokens, stops=Stops(stop_ids))


def prefill(module: Llama, params: Any, prompts: Int[Array, "R T"], lengths: Int[Array, " R"]) -> Prefilled:
    """Read prompts, none of them empty, that are padded on the right."""
    hidden, cache = _extend_rows(module, params, Rows(prompts, lengths))
    return Prefilled(cache, lengths, _last_logits(module, params, hidden, lengths))


@functools.partial(jax.jit, static_argnames="module")
def prefill_shared(
    module: Llama, params: Any, prefixes: Rows, prefix_of: Int[Array, "W r"], tails: Rows
) -> Prefilled:
    """`prefill` of the R prompts of a `Reading`: tails, none of them empty, each behind its prefix.

    A prefix is read once; its keys and values are copied to its prompts. Trunks of no width are not there.
    """
    if not prefixes.tokens.shape[1]:
        return prefill(module, params, *tails)
    _, cache = _extend_rows(module, params, prefixes)
    before = prefixes.lengths
    if len(before) < prefix_of.size:
        before, cache = take_rows(before, prefix_of), cache.take(prefix_of)
    hidden, block = _extend_rows(module, params, tails, before, cache)
    cache = cache.grow(tails.tokens.shape[1]).write(block, prefixes.tokens.shape[1])
    return Prefilled(cache, before + tails.lengths, _last_logits(module, params, hidden, tails.lengths))


def decode(
    module: Llama, params: Any, prefilled: Prefilled, *, max_new_tokens: int, stops: Stops
) -> Int[Array, "R {max_new_tokens}"]:
    """Generate greedily after prompts that have been read, until all rows have stopped: see `greedy`."""
    alone = jnp.zeros((len(prefilled.lengths), 1))
    state = init_decode(prefilled, alone, max_new_tokens=max_new_tokens, stops=stops)
    return decode_steps(module, params, state, max_new_tokens, stops=stops).tokens


@functools.partial(jax.jit, static_argnames=("max_new_tokens", "stops"))
def init_decode(
    prefilled: Prefilled, weights: Float[Array, "U K"], *, max_new_tokens: int, stops: Stops
) -> DecodeState:
    """The first token of U answers, each under K prompts that have been read, with log-weights."""
    answers = len(weights)
    # Copies, for `advance` overwrites its state, and what was read is still to be scored with.
    cache, lengths = jax.tree.map(jnp.copy, (prefilled.cache.grow(max_new_tokens - 1), prefilled.lengths))
    state = DecodeState(
        cache,
        lengths,
        jnp.int32(0),
        jnp.full((answers, max_new_tokens), stops.alone[0] if stops.alone else 0, jnp.int32),
        jax.nn.log_softmax(weights.astype(prefilled.logits.dtype), axis=1),
        jnp.zeros(answers, prefilled.logits.dtype),
        jnp.zeros(answers, bool),
    )
    return _take_token(state, prefilled.logits, stops)


@functools.partial(jax.jit, static_argnames=("module", "stops"), donate_argnames="state")
def decode_steps(
    module: Llama, params: Any, state: DecodeState, until: Int[Array, ""] | int, *, stops: Stops
) -> DecodeState:
    """Generate until the answers have `until` tokens or all of them have stopped; `state` is used up."""
    prompt_slots = state.cache.segment_ids.shape[1] - (state.tokens.shape[1] - 1)
    chunks = state.weights.shape[1]

    def going_on(state: DecodeState) -> Bool[Array, ""]:
        return (state.step < until) & ~state.done.all()

    def one_token(state: DecodeState) -> DecodeState:
        last = jax.lax.dynamic_slice_in_dim(state.tokens, state.step - 1, 1, axis=1)
        positions = (state.lengths + state.step - 1)[:, None]
        hidden, block = _call(
            module, params, "extend", jnp.repeat(last, chunks, axis=0), positions, cache=state.cache
        )
        cache = state.cache.write(block, prompt_slots + state.step - 1)
        return _take_token(state._replace(cache=cache), _call(module, params, "logits", hidden[:, 0]), stops)

    return jax.lax.while_loop(going_on, one_token, state)


def _take_token(state: DecodeState, logits: Float[Array, "R V"], stops: Stops) -> DecodeState:
    """The most probable token of every answer's mixture; a stopped answer gets the first id that stops."""
    answers, chunks = state.weights.shape
    each = jax.nn.log_softmax(logits.reshape(answers, chunks, -1), axis=-1)
    mixed = jax.nn.logsumexp(state.weights[:, :, None] + each, axis=1)
    token = jnp.argmax(mixed, axis=-1).astype(jnp.int32)
    alone = jnp.array(stops.alone, jnp.int32)
    stopping = jnp.isin(token, alone)
    closing = jnp.isin(token, jnp.array(stops.closing, jnp.int32))
    taken = jnp.take_along_axis(mixed, token[:, None], axis=1)[:, 0]
    stopped = jax.nn.logsumexp(mixed[:, alone], axis=-1)  # of any terminator
    log_prob = jnp.where(state.done, 0.0, jnp.where(stopping, stopped, taken))
    posterior = (
        state.weights + jnp.take_along_axis(each, token[:, None, None], axis=2)[..., 0] - taken[:, None]
    )
    filled = jnp.where(state.done, state.tokens[:, -1], token)  # the last is still the filler of `begin`
    return state._replace(
        step=state.step + 1,
        tokens=jax.lax.dynamic_update_slice_in_dim(state.tokens, filled[:, None], state.step, axis=1),
        weights=posterior,
        log_probs=state.log_probs + log_prob,
        done=state.done | stopping | closing,
    )


def _generate(
    module: Llama,
    params: Any,
    prefilled: Prefilled,
    weights: Float[np.ndarray, "U K"],
    *,
    max_new_tokens: int,
    stops: Stops,
    transfer: DevicePlacement,
) -> tuple[Int[np.ndarray, "U A"], Float[np.ndarray, " U"]]:
    """Tokens and log-probabilities of the answers' mixtures; stopped answers leave the batch on the way."""
    tokens = np.zeros((len(weights), max_new_tokens), np.int32)
    log_probs = np.zeros(len(weights), np.float32)
    numbers = np.arange(len(weights))  # of the answers that are still in the batch
    state = init_decode(prefilled, weights, max_new_tokens=max_new_tokens, stops=stops)
    for until in range(STEPS, max_new_tokens + STEPS, STEPS):
        state = decode_steps(module, params, state, min(until, max_new_tokens), stops=stops)
        tokens[numbers], log_probs[numbers], done = map(
            transfer.gather, (state.tokens, state.log_probs, state.done)
        )
        if done.all():
            break
        alive = ~done.reshape(transfer.groups(len(done)), -1)
        if 4 * alive.sum(axis=1).max() <= alive.shape[1]:
            # Quarters, so that few sizes are compiled; the places that are left over repeat an answer.
            size = alive.shape[1] // 4
            kept = np.stack([np.resize(np.flatnonzero(group), size) for group in alive])
            numbers = np.take_along_axis(numbers.reshape(alive.shape), kept, axis=1).ravel()
            state = _gather_answers(state, kept)
    return tokens, log_probs


def answer_log_probs(
    module: Llama, params: Any, prefilled: Prefilled, answers: PackedAnswers, *, stops: Stops
) -> Float[Array, "R U"]:
    """log p_LM(y | prompt) of each candidate in nats, with its terminator; 0 where there is no candidate."""
    hidden, _ = _call(
        module,
        params,
        "extend",
        answers.tokens,
        prefilled.lengths[:, None] + answers.offsets,
        segment_ids=(answers.continuation_ids > 0).astype(jnp.int32),
        continuation_ids=answers.continuation_ids,
        cache=prefilled.cache,
    )
    logits = _call(module, params, "logits", hidden)
    first = _target_log_probs(prefilled.logits[:, None], answers.first_targets, stops)
    later = _target_log_probs(logits, answers.targets, stops)
    # Branch 0 gathers the unused slots.
    sums = jax.vmap(lambda values, ids: jax.ops.segment_sum(values, ids, first.shape[1] + 1))
    return first + sums(later, answers.continuation_ids)[:, 1:]


def pack_answers(
    answers: Sequence[Sequence[Answer]], stops: Stops, *, max_new_tokens: int, num_answers: int
) -> PackedAnswers:
    """Lay out the candidates of each prompt, `num_answers` at most, as arrays.

    An answer of `max_new_tokens` tokens was cut off, and a closing piece ends an answer by itself, so no
    terminator belongs to either.
    """
    outcomes = [[_outcome(answer, stops, max_new_tokens) for answer in group] for group in answers]
    slots = _round_up(max(sum(len(outcome) - 1 for outcome in group) for group in outcomes), unit=16)
    tokens, offsets, continuation_ids = np.zeros((3, len(answers), slots), np.int32)
    targets = np.full((len(answers), slots), NOTHING, np.int32)
    first_targets = np.full((len(answers), num_answers), NOTHING, np.int32)
    for row, group in enumerate(outcomes):
        start = 0
        for number, outcome in enumerate(group):
            place = slice(start, start := start + len(outcome) - 1)
            first_targets[row, number] = outcome[0]
            tokens[row, place] = outcome[:-1]
            targets[row, place] = outcome[1:]
            offsets[row, place] = np.arange(len(outcome) - 1)
            continuation_ids[row, place] = number + 1
    arrays: Any = (tokens, offsets, continuation_ids, targets, first_targets)
    return PackedAnswers(*arrays)  # of the host: which devices read them is the caller's


def continuation_log_likelihood(
    module: Llama,
    params: Any,
    tokens: Int[Array, "B K T"],
    slots: Int[Array, "B K A"],
    targets: Int[Array, "B A"],
    used: Bool[Array, "B A"],
    retrieval_log_probs: Float[Array, "B K"],
) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
    """log p(y | x, C') of given answers, Eq. 2, in nats, and whether greedy decoding would give them.

    Row k of a question is its prompt behind chunk k with the answer after it, padded on the right, and
    `slots` are where its `used` targets are predicted. Greedy is that of the mixture at token level.
    """
    shape = tokens.shape[:2]
    hidden = _call(module, params, "hidden", tokens.reshape(-1, tokens.shape[-1]))
    at_slots = jnp.take_along_axis(hidden.reshape(*shape, *hidden.shape[1:]), slots[..., None], axis=2)
    log_probs = jax.nn.log_softmax(_call(module, params, "logits", at_slots))
    own = jnp.take_along_axis(log_probs, targets[:, None, :, None], axis=-1)[..., 0]
    own = jnp.where(used[:, None], own, 0.0)
    before = retrieval_log_probs[:, :, None] + jnp.cumsum(own, axis=2) - own
    mixed = jax.nn.logsumexp(before[..., None] + log_probs, axis=1)
    greedy = jnp.all((jnp.argmax(mixed, axis=-1) == targets) | ~used, axis=1)
    return jax.nn.logsumexp(retrieval_log_probs + own.sum(axis=2), axis=1), greedy


_gather_answers = jax.jit(DecodeState.keep)


@functools.partial(jax.jit, static_argnames=("module", "stops"))
def score_answers(
    module: Llama,
    params: Any,
    prefilled: Prefilled,
    answers: PackedAnswers,
    questions: Int[Array, " R"],
    *,
    stops: Stops,
) -> Float[Array, "R U"]:
    """`answer_log_probs` where the answers are each question's, and `questions` says which a prompt asks."""
    own = jax.tree.map(lambda array: array[questions], answers)
    return answer_log_probs(module, params, prefilled, own, stops=stops)


@jax.jit
def _ensemble(
    log_probs: Float[Array, "B K U"], retrieval_log_probs: Float[Array, "B K"]
) -> Float[Array, "B U"]:
    """Eq. 2 for B questions, each with U candidates."""
    over_answers = jax.vmap(ensemble_log_prob, in_axes=(2, None, None), out_axes=1)
    return over_answers(log_probs, retrieval_log_probs, jnp.isfinite(retrieval_log_probs))


def _target_log_probs(
    logits: Float[Array, "R C V"], targets: Int[Array, "R U"], stops: Stops
) -> Float[Array, "R U"]:
    """Each target's log-probability, STOP's and NOTHING's (0) too; C may be 1, the same for all targets."""
    chosen = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[:, :, None], axis=-1)[..., 0]
    stopped = jax.nn.logsumexp(logits[..., jnp.array(stops.alone, jnp.int32)], axis=-1)
    log_probs = jnp.where(targets == STOP, stopped, chosen) - jax.nn.logsumexp(logits, axis=-1)
    return jnp.where(targets == NOTHING, 0.0, log_probs)


def _extend_rows(
    module: Llama,
    params: Any,
    rows: Rows,
    before: Int[Array, " R"] | None = None,
    cache: KvCache | None = None,
) -> tuple[Float[Array, "R T D"], KvCache]:
    """`Llama.extend` of rows, which go on from `before` tokens in `cache`."""
    slots = jnp.arange(rows.tokens.shape[1])[None]
    real = (slots < rows.lengths[:, None]).astype(jnp.int32)
    positions = None if before is None else before[:, None] + slots
    return _call(module, params, "extend", rows.tokens, positions, segment_ids=real, cache=cache)


def _last_logits(
    module: Llama, params: Any, hidden: Float[Array, "R T D"], lengths: Int[Array, " R"]
) -> Float[Array, "R V"]:
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return _call(module, params, "logits", last)


def _call(module: Llama, params: Any, method: str, *inputs: Any, **named_inputs: Any) -> Any:
    return module.apply({"params": params}, *inputs, **named_inputs, method=method)


def _batches(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def split_shared_prefixes(prompts: Sequence[TokenIds]) -> list[Prompt]:
    """Cut each prompt behind what it begins with alike with others: `SHARED` tokens and half of it at least.

    >>> passage = tuple(range(40))
    >>> for prompt in split_shared_prefixes([passage + (7, 8), (1, 3), passage + (9,)]):
    ...     print(len(prompt.prefix), prompt.tail)
    40 (7, 8)
    0 (1, 3)
    40 (9,)
    """
    texts = [tuple(map(int, prompt)) for prompt in prompts]
    cut = [Prompt((), ())] * len(texts)
    for group, alike in _groups(texts):
        for number in group:
            text = texts[number]
            size = alike if len(group) > 1 else max(0, len(text) - TAIL)
            cut[number] = Prompt(text[:size], text[size:])
    return cut


def _groups(texts: Sequence[Answer]) -> list[tuple[list[int], int]]:
    """The texts' numbers in groups, and how many tokens, never all, a group's texts begin with alike."""
    groups: list[tuple[list[int], int]] = []
    longest = 0
    for number in sorted(range(len(texts)), key=texts.__getitem__):
        text = texts[number]
        group, alike = groups[-1] if groups else ([], 0)
        alike = _alike(texts[group[0]][:alike], text[:-1]) if group else 0
        longest = max(longest, len(text))
        if group and alike >= max(SHARED, longest / 2):
            groups[-1] = ([*group, number], alike)
        else:
            groups.append(([number], len(text) - 1))
            longest = len(text)
    return groups


def _alike(a: Answer, b: Answer) -> int:
    """How many tokens the two begin with alike."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def prefill_batches(
    prompts: Sequence[TokenIds], places: int, transfer: DevicePlacement
) -> Iterator[tuple[list[int], PrefillBatch]]:
    """The numbers of prompts that are read together, and how; a batch has places for so many.

    They come by prefix and its length, so that a part's are of similar length; the last repeats a prompt.
    """
    cut, size = split_shared_prefixes(prompts), transfer.rows(min(ROWS, places))
    order = sorted(range(len(cut)), key=lambda n: (len(cut[n].prefix), cut[n]))
    for numbers in _batches(order + order[-1:] * (-len(order) % size), size):
        yield numbers, build_prefill_batch([cut[number] for number in numbers], transfer)


def build_prefill_batch(prompts: Sequence[Prompt], transfer: DevicePlacement) -> PrefillBatch:
    """Prompts as they are read, spread over the devices."""
    groups = _batches(list(prompts), len(prompts) // transfer.groups(len(prompts)))
    size = len(groups[0])
    own = [list(dict.fromkeys(prompt.prefix for prompt in group)) for group in groups]
    # An eighth of the prompts, a quarter, half or all: few numbers are compiled.
    most, eighth = max(map(len, own)), -(-size // 8)
    room = min(size, next(eighth * part for part in (1, 2, 4, 8) if most <= eighth * part))
    if room == size:
        own = [[prompt.prefix for prompt in group] for group in groups]
    prefix_of = [[own[g].index(p.prefix) for p in group] for g, group in enumerate(groups)]
    prefixes = [prefix for group in own for prefix in [*group, *[()] * (room - len(group))]]
    rows = _pad_rows(prefixes, 2 * TAIL)
    tails = _pad_rows([prompt.tail for prompt in prompts], TAIL)
    return PrefillBatch(transfer.spread(rows), np.array(prefix_of, np.int32), transfer.spread(tails))


def _pad_rows(prompts: Sequence[TokenIds], least: int) -> Rows:
    """Rows of `least` slots or more, of few widths, for each is compiled; of none where all are empty."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    longest = int(lengths.max())
    tokens = np.zeros((len(prompts), max(least, _round_up(longest)) if longest else 0), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    arrays: Any = (tokens, lengths)
    return Rows(*arrays)


def _candidate(answer: Answer, log_prob: float, stops: Stops, max_new_tokens: int) -> AnswerCandidate:
    return AnswerCandidate(answer, log_prob, len(_outcome(answer, stops, max_new_tokens)))


def _outcome(answer: Answer, stops: Stops, max_new_tokens: int) -> Answer:
    """What an answer's probability is of: its tokens, and STOP where a terminator belongs to it."""
    has_ended = len(answer) == max_new_tokens or (answer and answer[-1] in stops.closing)
    return answer if has_ended else (*answer, STOP)


def _answer_of(row: Sequence[int], stops: Stops) -> Answer:
    """A generation without its terminator; what stands after a closing piece is one."""
    return tuple(itertools.takewhile(lambda token: token not in stops.alone, row))


def _unique_answers(
    generated: Int[np.ndarray, "B K A"], prompts: Sequence[Sequence[TokenIds]], stops: Stops
) -> list[list[Answer]]:
    """What each of B questions' chunks led to, each answer once, in the order of the chunks."""
    num_chunks = [len(chunks) for chunks in prompts] + [0] * (len(generated) - len(prompts))
    return [
        list(dict.fromkeys(_answer_of(row, stops) for row in rows[:number]))
        for rows, number in zip(generated.tolist(), num_chunks, strict=True)
    ]


def _round_up(size: int, unit: int = 32) -> int:
    """`size` rounded up to 1 to 8 units, 5 to 8 double units, 5 to 8 quadruple units, and so on.

    So many sizes become few to compile, and less than a fifth is padding, or a unit.

    >>> [_round_up(size) for size in (1, 33, 129, 257, 513)]
    [32, 64, 160, 320, 640]
    """
    while 8 * unit < size:
        unit *= 2
    return max(unit, _multiple(size, unit))


def _multiple(size: int, unit: int) -> int:
    """`size` rounded up to a multiple."""
    return -(-size // unit) * unit
