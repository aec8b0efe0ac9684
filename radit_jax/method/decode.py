"""Answering: greedy generation, and Eq. 2 over the answers that the retrieved chunks give.

    p_LM(y | x, C') = Σ_c p_LM(y | c∘x) p_R(c | x)

The paper decodes under each chunk and averages the answers' probabilities by p_R. We score every unique
answer under every chunk anew, which is Eq. 2 itself. An outcome is a whole generation: an answer with its
terminator (any of the stop ids, whose probabilities add up), or `max_new_tokens` tokens without one. So the
probabilities of all outcomes sum to 1, and `New` has no advantage over `New York`.

A prompt is read once. Its keys and values serve the decoding, and then the scoring, where the candidate
answers are branches that continue the prompt.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from radit_jax.method.losses import ensemble_log_prob
from radit_jax.models.llama import KvCache, Llama

STOP = -1  # as a target: any of the stop ids
NOTHING = -2  # as a target: an unused slot
ROWS = 32  # prompts that are read together: enough to keep a CPU busy, few enough to be of similar length

Answer = tuple[int, ...]  # the tokens before the terminator
TokenIds = Sequence[int] | np.ndarray


class Prefilled(NamedTuple):
    """R prompts that a model has read: what continuations need of them."""

    cache: KvCache
    lengths: Int[Array, " R"]
    logits: Float[Array, "R V"]  # of the token after each prompt


class PackedAnswers(NamedTuple):
    """Up to U candidate answers for each of R prompts, end to end in C slots as branches of the prompt.

    Answers (5, 6) and (7,), where `max_new_tokens` is more than 2:

        first_targets    5  7               predicted by the prompt's last token
        tokens           5  6     7    0
        offsets          0  1     0    0    positions after the prompt
        branch_ids       1  1     2    0    0 is an unused slot
        targets          6  STOP  STOP NOTHING
    """

    tokens: Int[Array, "R C"]
    offsets: Int[Array, "R C"]
    branch_ids: Int[Array, "R C"]
    targets: Int[Array, "R C"]
    first_targets: Int[Array, "R U"]


class Candidate(NamedTuple):
    """An answer to a question and log p_LM(y | x, C'), Eq. 2, in nats."""

    tokens: Answer
    log_prob: float


def answer_questions(
    module: Llama,
    params: Any,
    prompts: Sequence[Sequence[TokenIds]],
    retrieval_log_probs: Sequence[Sequence[float] | np.ndarray] | np.ndarray,
    *,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    questions_per_batch: int = 16,
) -> list[list[Candidate]]:
    """The answers to each question by Eq. 2, the most probable first.

    `prompts[i][k]` is question i behind its k-th chunk, as token ids, and `retrieval_log_probs[i][k]` that
    chunk's log p_R; questions may have different numbers of chunks. The candidates are what greedy decoding
    gives under each chunk. The caches of all prompts of `questions_per_batch` questions are held at a time.
    """
    for number, chunks in enumerate(prompts):
        if len(chunks) == 0 or any(len(prompt) == 0 for prompt in chunks):
            raise ValueError(
                f"answer_questions: question {number} has no prompt or an empty one; ask without Background"
            )
    num_chunks = max(map(len, prompts), default=0)
    order = sorted(range(len(prompts)), key=lambda number: sum(map(len, prompts[number])))
    answers: list[list[Candidate]] = [[] for _ in prompts]
    for batch in _batches(order, questions_per_batch):
        weights = np.full((questions_per_batch, num_chunks), -np.inf, np.float32)
        for row, number in enumerate(batch):
            weights[row, : len(prompts[number])] = retrieval_log_probs[number]
        texts = [prompts[number] for number in batch]
        ranked = _answer_batch(module, params, texts, weights, max_new_tokens, stop_ids)
        for number, candidates in zip(batch, ranked, strict=True):
            answers[number] = candidates
    return answers


def _answer_batch(
    module: Llama,
    params: Any,
    prompts: Sequence[Sequence[TokenIds]],
    retrieval_log_probs: Float[np.ndarray, "B K"],
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
) -> list[list[Candidate]]:
    """`answer_questions` for at most B questions of at most K chunks; p_R is 0 for those that are missing."""
    parts = _parts_of_similar_length(prompts, min(ROWS, retrieval_log_probs.size))
    options = {"max_new_tokens": max_new_tokens, "stop_ids": stop_ids}
    read = [_prefill_and_decode(module, params, *_pad_prompts(prompts, part), **options) for part in parts]

    generated = np.zeros((*retrieval_log_probs.shape, max_new_tokens), np.int32)
    for part, (tokens, _) in zip(parts, read, strict=True):
        generated[tuple(part.T)] = tokens
    unique = _unique_answers(generated, prompts, stop_ids)
    num_chunks = retrieval_log_probs.shape[1]
    packed = pack_answers(unique, max_new_tokens=max_new_tokens, num_answers=num_chunks)

    log_probs = np.zeros((*retrieval_log_probs.shape, num_chunks), np.float32)
    for part, (_, prefilled) in zip(parts, read, strict=True):
        log_probs[tuple(part.T)] = _score(module, params, prefilled, packed, part[:, 0], stop_ids=stop_ids)
    ensemble = np.asarray(_ensemble(log_probs, retrieval_log_probs))
    ranked = [map(Candidate, *pair) for pair in zip(unique, ensemble.tolist(), strict=True)]
    return [sorted(own, key=lambda candidate: -candidate.log_prob) for own in ranked][: len(prompts)]


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
    return decode(module, params, prefilled, max_new_tokens=max_new_tokens, stop_ids=stop_ids)


def prefill(module: Llama, params: Any, prompts: Int[Array, "R T"], lengths: Int[Array, " R"]) -> Prefilled:
    """Read prompts, none of them empty, that are padded on the right."""
    real = jnp.arange(prompts.shape[1])[None] < lengths[:, None]
    hidden, cache = _call(module, params, "extend", prompts, segment_ids=real.astype(jnp.int32))
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return Prefilled(cache, lengths, _call(module, params, "logits", last))


def decode(
    module: Llama, params: Any, prefilled: Prefilled, *, max_new_tokens: int, stop_ids: tuple[int, ...]
) -> Int[Array, "R {max_new_tokens}"]:
    """Generate greedily after prompts that have been read, until all rows have stopped: see `greedy`."""
    rows, prompt_slots = prefilled.cache.segment_ids.shape
    stops = jnp.array(stop_ids, jnp.int32)
    filler = stop_ids[0] if stop_ids else 0

    def going_on(state: Any) -> Bool[Array, ""]:
        step, _, _, done = state
        return (step < max_new_tokens) & ~done.all()

    def advance(state: Any) -> Any:
        step, cache, tokens, done = state
        last = jax.lax.dynamic_slice_in_dim(tokens, step - 1, 1, axis=1)
        positions = (prefilled.lengths + step - 1)[:, None]
        hidden, block = _call(module, params, "extend", last, positions, cache=cache)
        logits = _call(module, params, "logits", hidden[:, 0])
        token = jnp.where(done, filler, jnp.argmax(logits, axis=-1).astype(jnp.int32))
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], step, axis=1)
        return step + 1, cache.write(block, prompt_slots + step - 1), tokens, done | jnp.isin(token, stops)

    first = jnp.argmax(prefilled.logits, axis=-1).astype(jnp.int32)
    tokens = jnp.full((rows, max_new_tokens), filler, jnp.int32).at[:, 0].set(first)
    state = (jnp.int32(1), prefilled.cache.grow(max_new_tokens - 1), tokens, jnp.isin(first, stops))
    return jax.lax.while_loop(going_on, advance, state)[2]


def answer_log_probs(
    module: Llama, params: Any, prefilled: Prefilled, answers: PackedAnswers, *, stop_ids: tuple[int, ...]
) -> Float[Array, "R U"]:
    """log p_LM(y | prompt) of each candidate in nats, with its terminator; 0 where there is no candidate."""
    hidden, _ = _call(
        module,
        params,
        "extend",
        answers.tokens,
        prefilled.lengths[:, None] + answers.offsets,
        segment_ids=(answers.branch_ids > 0).astype(jnp.int32),
        branch_ids=answers.branch_ids,
        cache=prefilled.cache,
    )
    logits = _call(module, params, "logits", hidden)
    first = _target_log_probs(prefilled.logits[:, None], answers.first_targets, stop_ids)
    later = _target_log_probs(logits, answers.targets, stop_ids)
    # Branch 0 gathers the unused slots.
    sums = jax.vmap(lambda values, ids: jax.ops.segment_sum(values, ids, first.shape[1] + 1))
    return first + sums(later, answers.branch_ids)[:, 1:]


def pack_answers(
    answers: Sequence[Sequence[Answer]], *, max_new_tokens: int, num_answers: int
) -> PackedAnswers:
    """Lay out the candidates of each prompt, `num_answers` at most, as arrays.

    An answer of `max_new_tokens` tokens was cut off, so no terminator belongs to it.
    """
    outcomes = [
        [answer + (STOP,) if len(answer) < max_new_tokens else answer for answer in group]
        for group in answers
    ]
    slots = _round_up(max(sum(len(outcome) - 1 for outcome in group) for group in outcomes))
    tokens, offsets, branch_ids = np.zeros((3, len(answers), slots), np.int32)
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
            branch_ids[row, place] = number + 1
    return PackedAnswers(*map(jnp.asarray, (tokens, offsets, branch_ids, targets, first_targets)))


@functools.partial(jax.jit, static_argnames=("module", "max_new_tokens", "stop_ids"))
def _prefill_and_decode(
    module: Llama,
    params: Any,
    prompts: Int[Array, "R T"],
    lengths: Int[Array, " R"],
    *,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
) -> tuple[Int[Array, "R {max_new_tokens}"], Prefilled]:
    prefilled = prefill(module, params, prompts, lengths)
    tokens = decode(module, params, prefilled, max_new_tokens=max_new_tokens, stop_ids=stop_ids)
    return tokens, prefilled


@functools.partial(jax.jit, static_argnames=("module", "stop_ids"))
def _score(
    module: Llama,
    params: Any,
    prefilled: Prefilled,
    answers: PackedAnswers,
    questions: Int[Array, " R"],
    *,
    stop_ids: tuple[int, ...],
) -> Float[Array, "R U"]:
    """`answer_log_probs` where the answers are each question's, and `questions` says which a prompt asks."""
    own = jax.tree.map(lambda array: array[questions], answers)
    return answer_log_probs(module, params, prefilled, own, stop_ids=stop_ids)


@jax.jit
def _ensemble(
    log_probs: Float[Array, "B K U"], retrieval_log_probs: Float[Array, "B K"]
) -> Float[Array, "B U"]:
    """Eq. 2 for B questions, each with U candidates."""
    over_answers = jax.vmap(ensemble_log_prob, in_axes=(2, None, None), out_axes=1)
    return over_answers(log_probs, retrieval_log_probs, jnp.isfinite(retrieval_log_probs))


def _target_log_probs(
    logits: Float[Array, "R C V"], targets: Int[Array, "R U"], stop_ids: tuple[int, ...]
) -> Float[Array, "R U"]:
    """Each target's log-probability, STOP's and NOTHING's (0) too; C may be 1, the same for all targets."""
    chosen = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[:, :, None], axis=-1)[..., 0]
    stopped = jax.nn.logsumexp(logits[..., jnp.array(stop_ids, jnp.int32)], axis=-1)
    log_probs = jnp.where(targets == STOP, stopped, chosen) - jax.nn.logsumexp(logits, axis=-1)
    return jnp.where(targets == NOTHING, 0.0, log_probs)


def _call(module: Llama, params: Any, method: str, *inputs: Any, **named_inputs: Any) -> Any:
    return module.apply({"params": params}, *inputs, **named_inputs, method=method)


def _batches(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _parts_of_similar_length(
    prompts: Sequence[Sequence[TokenIds]], size: int
) -> list[Int[np.ndarray, "{size} 2"]]:
    """(question, chunk) of all prompts by length, in parts of `size`; the last one repeats a prompt."""
    rows = [(question, chunk) for question, chunks in enumerate(prompts) for chunk in range(len(chunks))]
    rows.sort(key=lambda row: len(prompts[row[0]][row[1]]))
    rows += rows[-1:] * (-len(rows) % size)
    return [np.array(part) for part in _batches(rows, size)]


def _pad_prompts(
    prompts: Sequence[Sequence[TokenIds]], part: Int[np.ndarray, "R 2"]
) -> tuple[Int[np.ndarray, "R T"], Int[np.ndarray, " R"]]:
    """The prompts of a part padded on the right, and their lengths."""
    texts = [prompts[question][chunk] for question, chunk in part]
    lengths = np.array([len(text) for text in texts], np.int32)
    tokens = np.zeros((len(texts), _round_up(max(map(len, texts)))), np.int32)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text
    return tokens, lengths


def _unique_answers(
    generated: Int[np.ndarray, "B K A"], prompts: Sequence[Sequence[TokenIds]], stop_ids: tuple[int, ...]
) -> list[list[Answer]]:
    """What each of B questions' chunks led to, each answer once, in the order of the chunks."""

    def answer(row: list[int]) -> Answer:
        return tuple(itertools.takewhile(lambda token: token not in stop_ids, row))

    num_chunks = [len(chunks) for chunks in prompts] + [0] * (len(generated) - len(prompts))
    return [
        list(dict.fromkeys(answer(row) for row in rows[:number]))
        for rows, number in zip(generated.tolist(), num_chunks, strict=True)
    ]


def _round_up(size: int) -> int:
    """`size` rounded up to 32, 64, 96, 128, 192, 256, 384, …, so that many sizes become few to compile.

    >>> [_round_up(size) for size in (1, 33, 65, 97, 129, 257)]
    [32, 64, 96, 128, 192, 384]
    """
    unit = 32
    while 4 * unit < size:
        unit *= 2
    return unit * max(1, -(-size // unit))
