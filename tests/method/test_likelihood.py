"""Answer log-probabilities of packed rows against one sequence at a time, through the plain forward pass."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import assert_exact, assert_rounded, drawn_in_float64

from radit_jax.config import DecoderConfig
from radit_jax.data.batches.packing import PrefixTree, Span, continuation_places, pack, span, to_batch
from radit_jax.method import likelihood, losses
from radit_jax.models.decoder import DecoderLm

CONFIG = DecoderConfig(
    vocab_size=50, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_size=8, ffn_size=48
)
MODULE = DecoderLm(CONFIG, dtype=jnp.float64)
pytestmark = pytest.mark.usefixtures("float64")
LIMITS = {"row_length": 40, "targets_per_row": 16}
NUM_ROWS = 18  # of every batch, most of them empty, so that one compilation serves all tests


@jax.jit
def token_log_probs(params, batch):
    return likelihood.token_log_probs(MODULE, params, batch)


@jax.jit
def continuation_log_probs(params, batch):
    return likelihood.continuation_log_probs(MODULE, params, batch, 12)


@jax.jit
def logits_of(params, tokens):
    return MODULE.apply({"params": params}, tokens)


@pytest.fixture(scope="module")
def params():
    return drawn_in_float64(MODULE, jnp.zeros((1, 4), jnp.int32))


def random_sequences(seed=0, count=9):
    """Trees of one to three continuations, whose last tokens, at varied weights, are to be predicted."""
    rng = np.random.default_rng(seed)

    def continuation():
        tokens = rng.integers(1, 50, rng.integers(4, 8)).astype(np.int32)
        weights = np.zeros(len(tokens), np.float32)
        weights[-rng.integers(1, 4) :] = rng.choice([0.5, 1.0])
        return Span(tokens, weights)

    return [
        PrefixTree(
            span(rng.integers(1, 50, rng.integers(1, 9))), tuple(continuation() for _ in range(1 + i % 3))
        )
        for i in range(count)
    ]


def lay_out(sequences, rows):
    return jax.tree.map(jnp.asarray, to_batch(sequences, rows, num_rows=NUM_ROWS, **LIMITS))


def packed(sequences):
    rows = pack(sequences, **LIMITS)
    return rows, lay_out(sequences, rows)


def one_at_a_time(params, sequence, *, shift=0):
    """Per continuation, its targets' float64 log-probabilities: token i is predicted at i - 1 (+ shift)."""
    continuations = []
    for continuation in sequence.continuations:
        tokens = np.concatenate([sequence.prefix.tokens, continuation.tokens])
        # Attention is causal, so what is appended for the sake of one shape is not seen.
        log_probs = np.array(logits_of(params, np.pad(tokens, (0, 24 - len(tokens)))[None])[0])
        log_probs -= np.log(np.exp(log_probs).sum(axis=-1, keepdims=True))
        targets = len(sequence.prefix.tokens) + np.flatnonzero(continuation.weights > 0)
        continuations.append(log_probs[np.minimum(targets - 1 + shift, len(tokens) - 1), tokens[targets]])
    return continuations


def test_token_log_probs_are_aligned_with_the_tokens_they_predict(params):
    sequences = random_sequences()[:1]
    _, batch = packed(sequences)
    found = token_log_probs(params, batch)[0]
    found = found[batch.target_weights[0] > 0]
    assert_exact(found, np.concatenate(one_at_a_time(params, sequences[0])))
    for shift in (-1, 1):
        shifted = np.concatenate(one_at_a_time(params, sequences[0], shift=shift))
        assert np.abs(found - shifted).max() > 0.1


def test_continuations_of_packed_trees_score_as_they_do_alone(params):
    sequences = random_sequences()
    rows, batch = packed(sequences)
    assert len(rows) < len(sequences)
    sums = continuation_log_probs(params, batch)
    expected = [
        continuation.sum() for sequence in sequences for continuation in one_at_a_time(params, sequence)
    ]
    assert_exact(np.asarray(sums)[continuation_places(sequences, rows)], np.array(expected))


def test_continuations_that_a_row_does_not_have_are_zero(params):
    _, batch = packed(random_sequences()[:1])
    sums = continuation_log_probs(params, batch)[0]
    assert sums[0] < 0 and (sums[1:] == 0).all()


def test_a_prefixs_targets_count_for_no_continuation(params):
    bare, weighed = (PrefixTree(span([3, 4, 5]), (span([6, 7], 1.0),)) for _ in range(2))
    weighed.prefix.weights[1:] = 1.0
    sums = [continuation_log_probs(params, packed([s])[1]) for s in (bare, weighed)]
    assert_exact(sums[0], sums[1])


def test_weights_select_what_is_scored_but_do_not_scale_it(params):
    full, half = (PrefixTree(span([3, 4, 5]), (span([6, 7], weight),)) for weight in (1.0, 0.5))
    sums = [continuation_log_probs(params, packed([s])[1]) for s in (full, half)]
    np.testing.assert_array_equal(*sums)


def test_unused_slots_are_zero_whatever_target_stands_in_them(params):
    _, batch = packed(random_sequences())
    unused = batch.target_weights == 0
    other = batch._replace(targets=jnp.where(unused, 7, batch.targets))
    log_probs = token_log_probs(params, batch)
    assert (log_probs[unused] == 0).all() and (log_probs[~unused] < 0).all()
    np.testing.assert_array_equal(token_log_probs(params, other), log_probs)


def test_a_neighbour_in_the_row_is_not_seen(params):
    first, second = random_sequences()[:2]
    changed = PrefixTree(span((first.prefix.tokens + 1) % 50), first.continuations)
    before, after = (lay_out([s, second], [(0, 1)]) for s in (first, changed))
    own = before.target_items[0] >= len(first.continuations)
    assert own.any()
    before, after = (np.asarray(token_log_probs(params, batch))[0] for batch in (before, after))
    np.testing.assert_array_equal(before[own], after[own])
    assert (before[: own.argmax()] != after[: own.argmax()]).all()


@jax.jit
@jax.value_and_grad
def loss_and_grads(params, batch):
    sums, weights = losses.lm_ft_loss(likelihood.token_log_probs(MODULE, params, batch), batch.target_weights)
    return sums.sum() / weights.sum()


def test_packed_equals_unpacked_in_loss_and_gradient(params):
    sequences = random_sequences()
    rows, batch = packed(sequences)
    alone = [PrefixTree(s.prefix, (continuation,)) for s in sequences for continuation in s.continuations]
    assert len(rows) < len(alone) == NUM_ROWS  # the one batch is mostly padding, the other has no empty row
    found = loss_and_grads(params, batch)
    reference = loss_and_grads(params, lay_out(alone, [(i,) for i in range(len(alone))]))
    assert_exact(found, reference)


def test_rows_of_one_continuation_each_may_leave_out_their_continuation_ids_and_be_read_by_a_kernel(params):
    sequences = [s for s in random_sequences(count=40) if len(s.continuations) == 1]
    limits = {"row_length": 128, "targets_per_row": 32}
    rows = pack(sequences, **limits)
    with_ids, without = (
        jax.tree.map(jnp.asarray, to_batch(sequences, rows, continuation_ids=ids, **limits))
        for ids in (True, False)
    )
    assert without.continuation_ids is None

    @functools.partial(jax.jit, static_argnums=0)
    @functools.partial(jax.value_and_grad, argnums=1)
    def loss_and_grad(module, params, batch):
        return (likelihood.token_log_probs(module, params, batch) * batch.target_weights).sum()

    # The kernel computes in float32, and cannot be traced where there is float64.
    kernel = MODULE.clone(attention="splash", dtype=jnp.float32)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    with jax.enable_x64(False):
        found = loss_and_grad(kernel, single, without)
    assert_rounded(found, lambda params: loss_and_grad(MODULE, params, with_ids), params)


def make_parts_of(size, monkeypatch):
    monkeypatch.setattr(likelihood, "LOGITS_BYTES", 1)
    monkeypatch.setattr(likelihood, "TARGETS_PER_PART", size)


@pytest.mark.parametrize("slots", [1, 5, 16])
def test_logits_made_in_parts_give_the_same_values_and_gradients(params, slots, monkeypatch):
    sequences = random_sequences()
    batch = lay_out(sequences, pack(sequences, **LIMITS))

    def value_and_grad(size):
        make_parts_of(size, monkeypatch)
        loss = lambda p: (likelihood.token_log_probs(MODULE, p, batch) * batch.target_weights).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(params)

    assert_exact(value_and_grad(slots), value_and_grad(1000))


def test_parts_without_a_target_are_not_computed(params, monkeypatch):
    """The head would be most of a small model's work: an infinite one must not show in unused slots."""
    make_parts_of(4, monkeypatch)
    sequences = [PrefixTree(span([1, 2]), (Span(np.array([3, 4]), np.array([0.0, 1.0], np.float32)),))]
    batch = lay_out(sequences, pack(sequences, **LIMITS))
    calls = []
    head = DecoderLm.logits
    monkeypatch.setattr(
        DecoderLm, "logits", lambda self, x, w: jax.debug.callback(calls.append, x.sum()) or head(self, x, w)
    )
    jax.block_until_ready(jax.jit(lambda p: likelihood.token_log_probs(MODULE, p, batch))(params))
    jax.effects_barrier()
    assert len(calls) == 1  # of four parts


def test_a_batchs_counts_are_those_of_its_tokens_and_of_what_they_see():
    """A prefix of three with continuations of two and one, beside a sequence of two, in rows of 40."""
    trees = [
        PrefixTree(span([1, 2, 3]), (span([4, 5], 1.0), span([6], 1.0))),
        PrefixTree(span([7]), (span([8], 1.0),)),
    ]
    found = likelihood.batch_counts(lay_out(trees, [(0, 1)]), MODULE.config)
    assert int(found["tokens"]) == 8 and int(found["answer_tokens"]) == 4
    assert float(found["attended"]) == (1 + 2 + 3) + (4 + 5) + 4 + (1 + 2)
    assert float(found["fill"]) == pytest.approx(8 / (NUM_ROWS * 40))
    # A window of two: in a local layer all but the first of a sequence see two.
    windowed = dataclasses.replace(MODULE.config, num_layers=4, window=2, global_every=4)
    found = likelihood.batch_counts(lay_out(trees, [(0, 1)]), windowed)
    of_local = (1 + 2 + 2) + (2 + 2) + 2 + (1 + 2)
    assert float(found["attended"]) == 0.25 * (6 + 9 + 4 + 3) + 0.75 * of_local
