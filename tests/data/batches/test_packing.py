"""The worked example of the module's docstring as literal arrays, and what packing promises in general."""

import numpy as np
import pytest

from radit_jax.data.batches.packing import (
    PrefixTree,
    concatenate_spans,
    continuation_places,
    fill,
    pack,
    pack_lengths,
    pack_texts,
    span,
    to_batch,
)

BOS, SKY, IS, BLUE, NOT, GREEN, WHO, ME = 1, 2, 3, 4, 5, 6, 7, 8
SKY_TREE = PrefixTree(
    span([BOS, SKY]),
    (
        concatenate_spans(span([IS]), span([BLUE], 1.0)),
        concatenate_spans(span([IS]), span([NOT, GREEN], 1.0)),
    ),
)
WHO_ME = PrefixTree(span([]), (concatenate_spans(span([BOS, WHO]), span([ME], 1.0)),))


def plain(length, targets=1):
    """A single continuation of which the last `targets` tokens are to be predicted."""
    tokens = np.arange(1, length + 1)
    prompt, answer = np.split(tokens, [length - targets])
    return PrefixTree(span([]), (concatenate_spans(span(prompt), span(answer, 1.0)),))


def sizes(sequences, row):
    tokens = [len(part.tokens) for i in row for part in sequences[i].spans]
    targets = [int((part.weights > 0).sum()) for i in row for part in sequences[i].spans]
    return sum(tokens), sum(targets), sum(len(sequences[i].continuations) for i in row)


def test_the_worked_example_comes_out_as_the_docstring_shows_it():
    sequences = [SKY_TREE, WHO_ME]
    rows = pack(sequences, row_length=12, targets_per_row=5)
    batch = to_batch(sequences, rows, row_length=12, targets_per_row=5)
    expected = {
        "tokens": [BOS, SKY, IS, BLUE, IS, NOT, GREEN, BOS, WHO, ME, 0, 0],
        "positions": [0, 1, 2, 3, 2, 3, 4, 0, 1, 2, 0, 0],
        "segment_ids": [1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 0, 0],
        "continuation_ids": [0, 0, 1, 1, 2, 2, 2, 1, 1, 1, 0, 0],
        "target_slots": [2, 4, 5, 8, 0],
        "targets": [BLUE, NOT, GREEN, ME, 0],
        "target_weights": [1, 1, 1, 1, 0],
        "target_items": [0, 1, 1, 2, 0],
    }
    for name, row in expected.items():
        np.testing.assert_array_equal(getattr(batch, name), [row], err_msg=name)


def test_a_continuations_first_token_is_predicted_by_the_end_of_the_prefix():
    tree = PrefixTree(span([BOS, SKY]), (span([IS, BLUE], 1.0), span([NOT], 1.0)))
    batch = to_batch([tree], [(0,)], row_length=8, targets_per_row=4)
    np.testing.assert_array_equal(batch.target_slots, [[1, 2, 1, 0]])
    np.testing.assert_array_equal(batch.targets, [[IS, BLUE, NOT, 0]])


def test_a_prefixs_own_targets_belong_to_no_continuation():
    tree = PrefixTree(concatenate_spans(span([BOS]), span([SKY], 0.5)), (span([IS], 1.0),))
    batch = to_batch([tree], [(0,)], row_length=4, targets_per_row=2)
    np.testing.assert_array_equal(batch.target_items, [[-1, 0]])
    np.testing.assert_array_equal(batch.target_weights, [[0.5, 1.0]])


def test_every_target_stands_right_after_its_slot_in_a_plain_sequence():
    sequences = [plain(n, targets=2) for n in (9, 4, 7)]
    rows = pack(sequences, row_length=20, targets_per_row=6)
    batch = to_batch(sequences, rows, row_length=20, targets_per_row=6)
    following = np.take_along_axis(batch.tokens, batch.target_slots + 1, axis=1)
    np.testing.assert_array_equal(following, batch.targets)


@pytest.mark.parametrize("seed", range(3))
def test_every_sequence_lands_in_one_row_and_no_row_overflows(seed):
    rng = np.random.default_rng(seed)
    sequences = [
        PrefixTree(span(range(int(prefix))), tuple(span(range(2), 1.0) for _ in range(int(continuations))))
        for prefix, continuations in rng.integers(1, 12, (60, 2))
    ]
    rows = pack(sequences, row_length=40, targets_per_row=24, continuations_per_row=13)
    assert sorted(i for row in rows for i in row) == list(range(60))
    used = np.array([sizes(sequences, row) for row in rows])
    assert (used <= [40, 24, 13]).all()
    assert rows == pack(sequences, row_length=40, targets_per_row=24, continuations_per_row=13)


def test_packing_fills_rows_well_and_reports_how_well():
    lengths = np.random.default_rng(0).integers(10, 100, 300)
    sequences = [plain(int(n)) for n in lengths]
    rows = pack(sequences, row_length=128, targets_per_row=128)
    share = fill(sequences, rows, row_length=128)
    assert share == pytest.approx(lengths.sum() / (128 * len(rows)))
    assert share > 0.95


def test_the_order_of_the_input_survives_packing():
    # All the long sequences in the first rows would be a curriculum that no one asked for.
    lengths = np.random.default_rng(0).integers(10, 100, 200)
    rows = pack([plain(int(n)) for n in lengths], row_length=128, targets_per_row=128)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)


def test_continuation_places_undo_the_packing():
    sequences = [
        PrefixTree(span([BOS] * (1 + i % 3)), tuple(span([100 * i + j], 1.0) for j in range(1 + i % 4)))
        for i in range(20)
    ]
    rows = pack(sequences, row_length=16, targets_per_row=10)
    batch = to_batch(sequences, rows, row_length=16, targets_per_row=10)
    found = np.zeros((len(rows), 10), int)
    for row, item, target, weight in zip(
        *np.broadcast_arrays(
            np.arange(len(rows))[:, None], batch.target_items, batch.targets, batch.target_weights
        ),
        strict=True,
    ):
        found[row[weight > 0], item[weight > 0]] = target[weight > 0]
    expected = [100 * i + j for i in range(20) for j in range(1 + i % 4)]
    np.testing.assert_array_equal(found[continuation_places(sequences, rows)], expected)


def test_missing_rows_are_padding():
    batch = to_batch([WHO_ME], [(0,)], row_length=4, targets_per_row=2, num_rows=3)
    assert batch.tokens.shape == (3, 4)
    assert not batch.segment_ids[1:].any() and not batch.target_weights[1:].any()


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        (plain(13), "pack: expected at most 12 tokens, .* got 13 in sequence 1. Truncate its background"),
        (plain(9, targets=6), "pack: expected at most 5 predicted tokens, .* got 6 in sequence 1"),
        (
            PrefixTree(span([BOS]), (span([IS]),) * 4),
            "pack: expected at most 3 continuations, .* got 4 in sequence 1",
        ),
    ],
)
def test_what_fits_no_row_is_named(sequence, message):
    with pytest.raises(ValueError, match=message):
        pack([WHO_ME, sequence], row_length=12, targets_per_row=5, continuations_per_row=3)


def test_a_first_token_cannot_be_a_target():
    with pytest.raises(ValueError, match="expected weight 0 on a tree's first token, which nothing predicts"):
        to_batch([PrefixTree(span([]), (span([BOS, ME], 1.0),))], [(0,)], row_length=4, targets_per_row=4)
    with pytest.raises(ValueError, match="expected weight 0 on a tree's first token"):
        to_batch([PrefixTree(span([BOS], 1.0), ())], [(0,)], row_length=4, targets_per_row=4)


def test_sequences_of_one_continuation_each_may_leave_out_their_continuation_ids():
    batch = to_batch([WHO_ME], [(0,)], row_length=4, targets_per_row=2, continuation_ids=False)
    assert batch.continuation_ids is None
    with pytest.raises(
        ValueError, match="to_batch: expected trees of one continuation.* Leave continuation_ids True"
    ):
        to_batch([SKY_TREE], [(0,)], row_length=12, targets_per_row=5, continuation_ids=False)


def test_too_many_rows_for_the_batch_are_an_error():
    with pytest.raises(ValueError, match="to_batch: expected at most num_rows=1 rows, got 2"):
        to_batch([WHO_ME, WHO_ME], [(0,), (1,)], row_length=4, targets_per_row=2, num_rows=1)


def test_texts_lie_whole_in_their_rows_and_are_numbered_in_their_order():
    packed = pack_texts([[5, 6], [7, 8, 9], [4]], row_length=4, num_rows=3)
    assert packed.tokens.tolist() == [[5, 6, 0, 0], [7, 8, 9, 4], [0, 0, 0, 0]]
    assert packed.positions.tolist() == [[0, 1, 0, 0], [0, 1, 2, 0], [0, 0, 0, 0]]
    assert packed.texts.tolist() == [[0, 0, -1, -1], [1, 1, 1, 2], [-1, -1, -1, -1]]


@pytest.mark.parametrize("seed", range(3))
def test_every_text_of_a_batch_lies_in_just_one_row(seed):
    lengths = np.random.default_rng(seed).integers(1, 17, 40)
    rows = pack_lengths(lengths, row_length=16)
    assert sorted(number for row in rows for number in row) == list(range(40))
    assert max(lengths[list(row)].sum() for row in rows) <= 16
    assert len(rows) <= 1.15 * lengths.sum() / 16 + 1  # best fit wastes little
