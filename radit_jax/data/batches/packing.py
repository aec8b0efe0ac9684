"""Packing token sequences into the rows of an `LmBatch`.

A tree is a prefix and its continuations, which do not see each other. A training example is one continuation
of an empty prefix; ten answers to be scored under one passage are ten continuations of one prefix, the
passage, which is read once.

Two sequences in a row of 12 positions:

    prefix `<bos> sky`, continuations `is blue` and `is not green`; weight 1 on blue, not and green
    no prefix, one continuation `<bos> who me`; weight 1 on me, 0 on the rest

    position in row    0      1     2    3     4    5    6      7      8    9    10   11
    tokens             <bos>  sky   is   blue  is   not  green  <bos>  who  me   0    0
    positions          0      1     2    3     2    3    4      0      1    2    0    0
    segment_ids        1      1     1    1     1    1    1      2      2    2    0    0
    continuation_ids         0      0     1    1     2    2    2      1      1    1    0    0

    targets            blue   not   green  me
    target_slots       2      4     5      8       the token before it, of its continuation or its prefix
    target_items       0      1     1      2       which continuation it belongs to

    attention          0 1 2 3 4 5 6 7 8 9 .
                    0  1 . . . . . . . . . .
                    1  1 1 . . . . . . . . .
                    2  1 1 1 . . . . . . . .
                    3  1 1 1 1 . . . . . . .
                    4  1 1 . . 1 . . . . . .       the second continuation does not see the first
                    5  1 1 . . 1 1 . . . . .
                    6  1 1 . . 1 1 1 . . . .
                    7  . . . . . . . 1 . . .
                    8  . . . . . . . 1 1 . .
                    9  . . . . . . . 1 1 1 .
"""

import itertools
from collections.abc import Sequence as Seq
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from radit_jax.method.likelihood import LmBatch
from radit_jax.models.bert import PackedTexts

# ---- trees ----

Row = tuple[int, ...]  # the numbers of the sequences that share a row, in order


class Span(NamedTuple):
    """A run of tokens, with the weight of *predicting* each of them: 0 is context only."""

    tokens: Int[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]  # of a loss or a sum; a token of weight 0 is not a target

    @property
    def num_targets(self) -> int:
        """How many of its tokens are predicted."""
        return int((self.weights > 0).sum())


class PrefixTree(NamedTuple):
    """A prefix, possibly empty, and the continuations that continue it."""

    prefix: Span
    continuations: tuple[Span, ...]  # none sees another

    @property
    def spans(self) -> tuple[Span, ...]:
        """The prefix and then the continuations, the order in which they lie in a row."""
        return (self.prefix, *self.continuations)

    @property
    def num_tokens(self) -> int:
        """How many positions it takes of a row."""
        return sum(len(part.tokens) for part in self.spans)

    @property
    def num_targets(self) -> int:
        """How many of its tokens are predicted."""
        return sum(part.num_targets for part in self.spans)


def span(tokens: Seq[int] | Int[np.ndarray, " n"], weight: float = 0.0) -> Span:
    """A span whose tokens all weigh the same."""
    weights = np.full(len(tokens), weight, np.float32)
    return Span(np.asarray(tokens, np.int32), weights)


def concatenate_spans(*spans: Span) -> Span:
    """The spans end to end, as one: background, prompt and answer make a continuation."""
    tokens = np.concatenate([part.tokens for part in spans])
    weights = np.concatenate([part.weights for part in spans])
    return Span(tokens, weights)


# ---- which rows ----


def pack(
    sequences: Seq[PrefixTree],
    *,
    row_length: int,
    targets_per_row: int,
    continuations_per_row: int | None = None,
) -> list[Row]:
    """Distribute whole sequences over as few rows as best fit, longest first, finds.

    A row holds at most `row_length` tokens, `targets_per_row` predicted tokens and, where it is given,
    `continuations_per_row` continuations. The result depends on nothing but the arguments. Rows, and the
    sequences in a row, come in the order of their first sequence, so the shuffle of the input survives.

    >>> five, three, two = (PrefixTree(span([]), (span(range(n), 1.0),)) for n in (5, 3, 2))
    >>> pack([three, five, five, two], row_length=8, targets_per_row=8)
    [(0, 1), (2, 3)]
    """
    unlimited = np.iinfo(np.int64).max
    limits = np.array([row_length, targets_per_row, continuations_per_row or unlimited])
    # Tokens first: the best fit goes by them.
    sizes = np.array([_size(sequence) for sequence in sequences], np.int64).reshape(-1, 3)
    _check_fit(sizes, limits)
    return _best_fit(sizes, limits)


def pack_lengths(lengths: Seq[int] | Int[np.ndarray, " N"], *, row_length: int) -> list[Row]:
    """`pack` of texts by their numbers of tokens, none of which is above `row_length`.

    >>> pack_lengths([3, 5, 5, 2], row_length=8)
    [(0, 1), (2, 3)]
    """
    sizes = np.asarray(lengths, np.int64).reshape(-1, 1)
    return _best_fit(sizes, np.array([row_length]))


def pack_texts(texts: Seq[Seq[int]], *, row_length: int, num_rows: int) -> PackedTexts:
    """Texts laid out in rows, numbered in their order, with empty rows up to `num_rows`."""
    packed = PackedTexts(*np.zeros((3, num_rows, row_length), np.int32))  # pyright: ignore[reportArgumentType]
    tokens, positions, text_numbers = packed
    text_numbers[:] = -1  # padding is of no text
    lengths = [len(text) for text in texts]
    for row, numbers in enumerate(pack_lengths(lengths, row_length=row_length)):
        start = 0
        for number in numbers:
            place = row, slice(start, start + lengths[number])
            tokens[place] = texts[number]
            positions[place] = range(lengths[number])
            text_numbers[place] = number
            start += lengths[number]
    return packed


def _best_fit(sizes: Int[np.ndarray, "N S"], limits: Int[np.ndarray, " S"]) -> list[Row]:
    """Best fit, longest first, by the first of several sizes; no row's sum of any is above its limit."""
    rows: list[list[int]] = []
    free = np.tile(limits[:, None], len(sizes))  # what is left of each size, rows along the columns
    for number in np.argsort(-sizes[:, 0], kind="stable"):
        # The fullest of the rows with room for it, or else a new row.
        fits = np.flatnonzero((free[:, : len(rows)] >= sizes[number, :, None]).all(axis=0))
        row = int(fits[free[0, fits].argmin()]) if fits.size else len(rows)
        if row == len(rows):
            rows.append([])
        rows[row].append(int(number))
        free[:, row] -= sizes[number]
    return sorted(tuple(sorted(row)) for row in rows)


# ---- arrays ----


def to_batch(
    sequences: Seq[PrefixTree],
    rows: Seq[Row],
    *,
    row_length: int,
    targets_per_row: int,
    num_rows: int | None = None,
    continuation_ids: bool = True,
) -> LmBatch:
    """Lay the rows out as arrays on the host, with empty rows up to `num_rows`.

    `continuation_ids` may be False where no tree has two continuations; the batch says so (see `LmBatch`).
    """
    num_rows = len(rows) if num_rows is None else num_rows
    if len(rows) > num_rows:
        raise ValueError(f"to_batch: expected at most num_rows={num_rows} rows, got {len(rows)}. Give fewer.")
    # Rows and what a row lacks are padding: zeros, of segment 0 and weight 0.
    by_token = np.zeros((4, num_rows, row_length), np.int32)
    by_target = np.zeros((3, num_rows, targets_per_row), np.int32)
    weights = np.zeros((num_rows, targets_per_row), np.float32)
    for row, numbers in enumerate(rows):
        trees = [sequences[number] for number in numbers]
        if not continuation_ids and has_continuations(trees):
            raise ValueError(
                "to_batch: expected trees of one continuation, as continuation_ids is False, got one of two "
                "or more. Leave continuation_ids True."
            )
        tokens, targets, target_weights = _lay_out(trees)
        by_token[:, row, : tokens.shape[1]] = tokens
        by_target[:, row, : targets.shape[1]] = targets
        weights[row, : len(target_weights)] = target_weights
    tokens, positions, segments, continuations = by_token
    slots, targets, items = by_target
    # A batch holds numpy's arrays until `put_batch` spreads it over the devices.
    arrays: Any = (
        tokens,
        positions,
        segments,
        continuations if continuation_ids else None,
        slots,
        targets,
        weights,
        items,
    )
    return LmBatch(*arrays)


def has_continuations(sequences: Seq[PrefixTree]) -> bool:
    """Whether any sequence has continuations that must not see each other."""
    return any(len(sequence.continuations) > 1 for sequence in sequences)


def continuation_places(
    sequences: Seq[PrefixTree], rows: Seq[Row]
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Every continuation's row and item, in the order of the trees: `sums[places]` undoes the packing.

    `sums` is what `continuation_log_probs` gives, [rows, continuations].
    """
    # 1) A row's continuations are its items, numbered through from tree to tree.
    places_of_tree: dict[int, list[tuple[int, int]]] = {}
    for row, numbers in enumerate(rows):
        first_item = 0
        for number in numbers:
            items = range(first_item, first_item + len(sequences[number].continuations))
            places_of_tree[number] = [(row, item) for item in items]
            first_item = items.stop
    # 2) In the order of the trees.
    places: list[tuple[int, int]] = []
    for number in range(len(sequences)):
        places += places_of_tree[number]
    table = np.array(places, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def fill(sequences: Seq[PrefixTree], rows: Seq[Row], *, row_length: int) -> float:
    """The share of the rows' positions that hold a token."""
    packed = itertools.chain.from_iterable(rows)
    num_tokens = sum(sequences[number].num_tokens for number in packed)
    return num_tokens / max(1, row_length * len(rows))


def _size(sequence: PrefixTree) -> tuple[int, int, int]:
    """Tokens, targets and continuations of a sequence."""
    return sequence.num_tokens, sequence.num_targets, len(sequence.continuations)


def _check_fit(sizes: Int[np.ndarray, "N 3"], limits: Int[np.ndarray, " 3"]) -> None:
    """ValueError for the first sequence that no row can hold."""
    for number, column in np.argwhere(sizes > limits)[:1]:
        what = ("tokens", "predicted tokens", "continuations")[column]
        raise ValueError(
            f"pack: expected at most {limits[column]} {what}, which a row holds, got {sizes[number, column]} "
            f"in sequence {number}. Truncate its background, split its continuations or make the rows longer."
        )


def _lay_out(
    sequences: Seq[PrefixTree],
) -> tuple[Int[np.ndarray, "4 n"], Int[np.ndarray, "3 m"], Float[np.ndarray, " m"]]:
    """One row: (tokens, positions, segments, continuations), (slots, targets, items), target weights."""
    tokens, targets, weights = [], [], []
    start = 0  # where the next span begins
    first_item = 0  # of the row's continuations, the first of this tree
    for segment, sequence in enumerate(sequences, start=1):
        prefix_length = len(sequence.prefix.tokens)
        prefix_end = start + prefix_length - 1
        # Span 0 is the prefix; the others are the continuations, each of which goes on from its end.
        for continuation, part in enumerate(sequence.spans):
            length = len(part.tokens)
            depth = prefix_length if continuation else 0
            positions = depth + np.arange(length)
            ids = np.broadcast_to([[segment], [continuation]], (2, length))
            tokens.append(np.vstack([part.tokens, positions, ids]))
            # What predicts a token is the one before it; a tree's first token has none, which is -1.
            predictors = np.arange(start - 1, start + length - 1)
            predictors[:1] = prefix_end if depth else -1
            item = first_item + continuation - 1 if continuation else -1
            # Only the tokens with a weight are targets.
            is_target = part.weights > 0
            slots_targets_items = np.vstack([predictors, part.tokens, np.full(length, item)])
            targets.append(slots_targets_items[:, is_target])
            weights.append(part.weights[is_target])
            start += length
        first_item += len(sequence.continuations)
    by_target = np.hstack(targets)
    if (by_target[0] < 0).any():
        raise ValueError(
            "to_batch: expected weight 0 on a tree's first token, which nothing predicts, got another. Weigh "
            "it 0."
        )
    return np.hstack(tokens), by_target, np.concatenate(weights)
