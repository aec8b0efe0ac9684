"""Reading prompts and decoding greedily after them: the jitted half of answering.

Everything here is pure. `lm/ensemble.py` calls it on the host: it batches questions, collects the answers and
ranks them by Eq. 2. `lm/prefix_sharing.py` finds the prefixes that prompts share.

    prefill, prefill_shared      prompts → keys, values and the logits of the next token (`Prefilled`)
    init_decode, decode_steps    Prefilled → tokens, one at a time (`DecodeState`)

A prompt is read once. Its keys and values serve the decoding, and then the scoring of the candidates, see
`method/answer_scoring.py`.

The next token of an answer is the most probable one of a mixture over the answer's prompts,

    p(y_t | y_<t) = Σ_c w_c,t p_LM(y_t | c∘x, y_<t)        w_c,t ∝ p_R(c | x) p_LM(y_<t | c∘x)

With these weights, the posterior over the chunks, the product over t is Eq. 2's probability of the whole
answer. Ordinary greedy decoding is the mixture over one prompt.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from radit_jax.method.likelihood import entries_of
from radit_jax.models.decoder import DecoderLm
from radit_jax.models.kv_cache import KvCache, take_rows

Answer = tuple[int, ...]  # the tokens before the terminator
TokenIds = Sequence[int] | np.ndarray


class Stops(NamedTuple):
    r"""The token ids that end an answer.

    A newline ends an answer, and a byte-level BPE has pieces that hold text and then a newline. Take the
    answer `Paris.\n` in the pieces `Paris` and `.\n`: the second piece is a closing one. It is scored as part
    of the answer, and no terminator is scored after it.
    """

    alone: tuple[int, ...]  # `<eos>` and newlines: alternatives of each other, not part of the answer
    closing: tuple[int, ...] = ()  # pieces that hold text of the answer before their newline


class TokenRows(NamedTuple):
    """Token ids, padded on the right."""

    tokens: Int[Array, "R T"]
    lengths: Int[Array, " R"]


class PrefillBatch(NamedTuple):
    """R prompts, each a prefix and a suffix, in W groups of r; a group keeps each distinct prefix once.

    Each group has S / W prefixes. Prompt j of group g continues prefix `prefix_of[g, j]` of that group. A
    group that has as many prefixes as prompts lists them in the order of the prompts.
    """

    prefixes: TokenRows  # S rows, group after group; empty rows complete a group
    prefix_of: Int[np.ndarray, "W r"]
    suffixes: TokenRows  # R rows, none of them empty


class Prefilled(NamedTuple):
    """R prompts that a model has read: what decoding and scoring take from them."""

    cache: KvCache  # keys and values of the prompts' tokens
    lengths: Int[Array, " R"]
    logits: Float[Array, "R V"]  # of the token after each prompt

    def take(self, prompts: Int[Array, "W r"]) -> "Prefilled":
        """The prompts that `take_rows` selects."""
        return Prefilled(
            cache=self.cache.take(prompts),
            lengths=take_rows(self.lengths, prompts),
            logits=take_rows(self.logits, prompts),
        )


class DecodeState(NamedTuple):
    """U answers that are being decoded, each under K prompts: the prompts of a mixture, or one."""

    cache: KvCache  # of R = U · K rows, an answer's prompts next to each other
    lengths: Int[Array, " R"]  # of the prompts
    step: Int[Array, ""]  # tokens generated so far
    tokens: Int[Array, "U A"]  # the first `step` are generated; the rest is filler
    weights: Float[Array, "U K"]  # log w_c,t: the posterior over the prompts given the tokens so far
    log_probs: Float[Array, " U"]  # of the answer in the mixture, terminator included, in nats
    done: Bool[Array, " U"]  # a terminator or a closing piece has ended the answer


# ---- reading prompts ----


def prefill(
    module: DecoderLm,
    params: Any,
    prompts: Int[Array, "R T"],
    lengths: Int[Array, " R"],
) -> Prefilled:
    """Read prompts that are padded on the right to T tokens; none of them is empty."""
    rows = TokenRows(prompts, lengths)
    hidden, cache = _extend_rows(module, params, rows)
    logits = _last_logits(module, params, hidden, lengths)
    return Prefilled(cache, lengths, logits)


@functools.partial(jax.jit, static_argnames="module")
def prefill_shared(
    module: DecoderLm,
    params: Any,
    prefixes: TokenRows,
    prefix_of: Int[Array, "W r"],
    suffixes: TokenRows,
) -> Prefilled:
    """`prefill` of the R prompts of a `PrefillBatch`; a prefix that several prompts share is read once.

    Prefixes of width 0 mean that no prompt has one.
    """
    prefix_slots = prefixes.tokens.shape[1]
    suffix_slots = suffixes.tokens.shape[1]
    if not prefix_slots:
        return prefill(module, params, *suffixes)

    # 1) Read each distinct prefix.
    _, cache = _extend_rows(module, params, prefixes)
    prefix_lengths = prefixes.lengths

    # 2) Copy its keys and values to its prompts, unless every prompt has its own.
    if len(prefix_lengths) < prefix_of.size:
        prefix_lengths = take_rows(prefix_lengths, prefix_of)
        cache = cache.take(prefix_of)

    # 3) Read the suffixes after them.
    hidden, suffix_block = _extend_rows(module, params, suffixes, prefix_lengths, cache)
    cache = cache.grow(suffix_slots)
    cache = cache.write(suffix_block, prefix_slots)
    lengths = prefix_lengths + suffixes.lengths
    logits = _last_logits(module, params, hidden, suffixes.lengths)
    return Prefilled(cache, lengths, logits)


def _extend_rows(
    module: DecoderLm,
    params: Any,
    rows: TokenRows,
    cached_lengths: Int[Array, " R"] | None = None,
    cache: KvCache | None = None,
) -> tuple[Float[Array, "R T D"], KvCache]:
    """Hidden states of rows that continue the `cached_lengths` tokens in `cache`, and the rows' own keys."""
    slots = jnp.arange(rows.tokens.shape[1])[None]
    is_real = slots < rows.lengths[:, None]
    segment_ids = is_real.astype(jnp.int32)
    positions = None
    if cached_lengths is not None:
        positions = cached_lengths[:, None] + slots
    return apply_lm(
        module,
        params,
        "extend",
        rows.tokens,
        positions,
        segment_ids=segment_ids,
        cache=cache,
    )


def _last_logits(
    module: DecoderLm,
    params: Any,
    hidden: Float[Array, "R T D"],
    lengths: Int[Array, " R"],
) -> Float[Array, "R V"]:
    """The logits at each row's last real token."""
    last_slots = (lengths - 1)[:, None, None]
    last = jnp.take_along_axis(hidden, last_slots, axis=1)[:, 0]
    return apply_lm(module, params, "logits", last)


# ---- decoding ----


@functools.partial(jax.jit, static_argnames=("module", "max_new_tokens", "stop_ids"))
def greedy(
    module: DecoderLm,
    params: Any,
    prompts: Int[Array, "R T"],
    lengths: Int[Array, " R"],
    *,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
) -> Int[Array, "R {max_new_tokens}"]:
    """Generate the most probable next token, again and again: [R, max_new_tokens].

    `prompts` have `lengths` tokens, then padding. A generation holds the stop token that ended it, and then
    the first of `stop_ids` to the end. Without stop ids every generation has its full length.
    """
    stops = Stops(stop_ids)
    prefilled = prefill(module, params, prompts, lengths)
    return decode(module, params, prefilled, max_new_tokens=max_new_tokens, stops=stops)


def decode(
    module: DecoderLm,
    params: Any,
    prefilled: Prefilled,
    *,
    max_new_tokens: int,
    stops: Stops,
) -> Int[Array, "R {max_new_tokens}"]:
    """Generate greedily after prompts that have been read, until all rows have stopped: see `greedy`."""
    # An answer's mixture is over one prompt, whose log-weight is 0.
    weights = jnp.zeros((len(prefilled.lengths), 1))
    state = init_decode(prefilled, weights, max_new_tokens=max_new_tokens, stops=stops)
    return decode_steps(module, params, state, max_new_tokens, stops=stops).tokens


@functools.partial(jax.jit, static_argnames=("max_new_tokens", "stops"))
def init_decode(
    prefilled: Prefilled,
    weights: Float[Array, "U K"],
    *,
    max_new_tokens: int,
    stops: Stops,
) -> DecodeState:
    """The state of U answers after their first token; `weights` are log p_R of each answer's K prompts."""
    num_answers = len(weights)
    filler = stops.alone[0] if stops.alone else 0
    dtype = prefilled.logits.dtype
    # Copies: `decode_steps` overwrites its state, and scoring still needs what was read.
    grown = prefilled.cache.grow(max_new_tokens - 1)
    cache, lengths = jax.tree.map(jnp.copy, (grown, prefilled.lengths))
    state = DecodeState(
        cache=cache,
        lengths=lengths,
        step=jnp.int32(0),
        tokens=jnp.full((num_answers, max_new_tokens), filler, jnp.int32),
        weights=jax.nn.log_softmax(weights.astype(dtype), axis=1),
        log_probs=jnp.zeros(num_answers, dtype),
        done=jnp.zeros(num_answers, bool),
    )
    return _take_token(state, prefilled.logits, stops)


@functools.partial(jax.jit, static_argnames=("module", "stops"), donate_argnames="state")
def decode_steps(
    module: DecoderLm,
    params: Any,
    state: DecodeState,
    until: Int[Array, ""] | int,
    *,
    stops: Stops,
) -> DecodeState:
    """Generate until the answers have `until` tokens or all of them have stopped; `state` is donated."""
    # The cache holds the prompts, then every new token but the last, which no token follows.
    max_new_tokens = state.tokens.shape[1]
    num_slots = state.cache.segment_ids.shape[1]
    prompt_slots = num_slots - (max_new_tokens - 1)
    num_chunks = state.weights.shape[1]

    def unfinished(state: DecodeState) -> Bool[Array, ""]:
        return (state.step < until) & ~state.done.all()

    def one_token(state: DecodeState) -> DecodeState:
        # Every prompt of an answer reads the answer's newest token.
        newest = jax.lax.dynamic_slice_in_dim(state.tokens, state.step - 1, 1, axis=1)
        newest = jnp.repeat(newest, num_chunks, axis=0)
        positions = (state.lengths + state.step - 1)[:, None]
        slot = prompt_slots + state.step - 1
        hidden, cache = apply_lm(
            module,
            params,
            "extend_in_place",
            newest,
            positions,
            cache=state.cache,
            slot=slot,
        )
        logits = apply_lm(module, params, "logits", hidden[:, 0])
        return _take_token(state._replace(cache=cache), logits, stops)

    return jax.lax.while_loop(unfinished, one_token, state)


def _take_token(
    state: DecodeState,
    logits: Float[Array, "R V"],
    stops: Stops,
) -> DecodeState:
    """Append the most probable token of every answer's mixture; an answer that is done gets filler."""
    # The mixture over each answer's chunks.
    num_answers, num_chunks = state.weights.shape
    logits = logits.reshape(num_answers, num_chunks, -1)
    by_chunk = jax.nn.log_softmax(logits, axis=-1)
    mixed = by_chunk[:, 0]  # of a single chunk, which has all the weight
    if num_chunks > 1:
        weighted = state.weights[:, :, None] + by_chunk
        mixed = jax.nn.logsumexp(weighted, axis=1)

    # Its most probable token, and whether that ends the answer.
    token = jnp.argmax(mixed, axis=-1).astype(jnp.int32)
    alone = jnp.array(stops.alone, jnp.int32)
    is_stop = jnp.isin(token, alone)
    closing = jnp.array(stops.closing, jnp.int32)
    is_closing = jnp.isin(token, closing)

    # The log-probability of the token or, if it is a terminator, of any terminator; under each chunk, too.
    of_token = entries_of(mixed, token)
    of_stops = jax.nn.logsumexp(mixed[:, alone], axis=-1)
    log_prob = jnp.where(is_stop, of_stops, of_token)
    of_token_by_chunk = entries_of(by_chunk, token[:, None])
    of_stops_by_chunk = jax.nn.logsumexp(by_chunk[:, :, alone], axis=-1)
    log_prob_by_chunk = jnp.where(is_stop[:, None], of_stops_by_chunk, of_token_by_chunk)

    # The posterior over the chunks, normalised: log w + log p(token | chunk) − log p(token).
    posterior = state.weights + log_prob_by_chunk - log_prob[:, None]

    filler = state.tokens[:, -1]  # the last column is not generated yet
    column = jnp.where(state.done, filler, token)[:, None]
    next_step = state.step + 1
    tokens = jax.lax.dynamic_update_slice_in_dim(state.tokens, column, state.step, axis=1)
    return state._replace(
        step=next_step,
        tokens=tokens,
        weights=jnp.where(state.done[:, None], state.weights, posterior),
        log_probs=state.log_probs + jnp.where(state.done, 0.0, log_prob),
        done=state.done | is_stop | is_closing,
    )


@jax.jit
def gather_answers(state: DecodeState, answers: Int[Array, "W k"]) -> DecodeState:
    """The state of a selection of answers: in each of W device groups, those with the numbers `answers`.

    `take_rows` keeps every row in its group, so that nothing moves between devices.
    """
    # The prompts of an answer lie next to each other.
    num_chunks = state.weights.shape[1]
    chunks = jnp.arange(num_chunks)[None, None]
    prompts = answers[:, :, None] * num_chunks + chunks
    prompts = prompts.reshape(len(answers), -1)
    return DecodeState(
        cache=state.cache.take(prompts),
        lengths=take_rows(state.lengths, prompts),
        step=state.step,
        tokens=take_rows(state.tokens, answers),
        weights=take_rows(state.weights, answers),
        log_probs=take_rows(state.log_probs, answers),
        done=take_rows(state.done, answers),
    )


def apply_lm(module: DecoderLm, params: Any, method: str, *inputs: Any, **named_inputs: Any) -> Any:
    """A method of the network on `params`: `extend`, `hidden` or `logits`."""
    return module.apply({"params": params}, *inputs, **named_inputs, method=method)
