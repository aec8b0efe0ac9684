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

from collections.abc import Sequence as Seq
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from radit_jax.method.likelihood import LmBatch
from radit_jax.models.bert import PackedTexts

Row = tuple[int, ...]  # the numbers of the sequences that share a row, in order


class Span(NamedTuple):
    """A run of tokens, with the weight of *predicting* each of them: 0 is context only."""

    tokens: Int[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]


class PrefixTree(NamedTuple):
    """A prefix, possibly empty, and the continuations that continue it."""

    prefix: Span
    continuations: tuple[Span, ...]

    @property
    def spans(self) -> tuple[Span, ...]:
        """The prefix and then the continuations, the order in which they lie in a row."""
        return (self.prefix, *self.continuations)


def span(tokens: Seq[int] | Int[np.ndarray, " n"], weight: float = 0.0) -> Span:
    """A span whose tokens all weigh the same."""
    return Span(np.asarray(tokens, np.int32), np.full(len(tokens), weight, np.float32))


def concatenate_spans(*spans: Span) -> Span:
    """The spans end to end, as one: background, prompt and answer make a continuation."""
    return Span(
        np.concatenate([part.tokens for part in spans]), np.concatenate([part.weights for part in spans])
    )


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
    limits = np.array([row_length, targets_per_row, continuations_per_row or np.iinfo(np.int64).max])
    sizes = np.array([_size(sequence) for sequence in sequences], np.int64).reshape(-1, 3)
    _check_fit(sizes, limits)
    return _best_fit(sizes, limits)


def pack_lengths(lengths: Seq[int] | Int[np.ndarray, " N"], *, row_length: int) -> list[Row]:
    """`pack` of texts by their numbers of tokens, none of which is above `row_length`.

    >>> pack_lengths([3, 5, 5, 2], row_length=8)
    [(0, 1), (2, 3)]
    """
    return _best_fit(np.asarray(lengths, np.int64).reshape(-1, 1), np.array([row_length]))


def pack_texts(texts: Seq[Seq[int]], *, row_length: int, num_rows: int) -> PackedTexts:
    """Texts laid out in rows, numbered in their order, with empty rows up to `num_rows`."""
    packed = PackedTexts(*np.zeros((3, num_rows, row_length), np.int32))  # pyright: ignore[reportArgumentType]
    tokens, positions, numbers = packed
    numbers[:] = -1
    for row, own in enumerate(pack_lengths([len(text) for text in texts], row_length=row_length)):
        ends = np.cumsum([len(texts[number]) for number in own])
        for number, end in zip(own, ends, strict=True):
            place = row, slice(end - len(texts[number]), end)
            tokens[place], positions[place], numbers[place] = texts[number], range(len(texts[number])), number
    return packed


def _best_fit(sizes: Int[np.ndarray, "N S"], limits: Int[np.ndarray, " S"]) -> list[Row]:
    """Best fit, longest first, by the first of several sizes; no row's sum of any is above its limit."""
    rows: list[list[int]] = []
    free = np.tile(limits[:, None], len(sizes))  # what is left of each size, rows along the columns
    for number in np.argsort(-sizes[:, 0], kind="stable"):
        fits = np.flatnonzero((free[:, : len(rows)] >= sizes[number, :, None]).all(axis=0))
        row = int(fits[free[0, fits].argmin()]) if fits.size else len(rows)
        if row == len(rows):
            rows.append([])
        rows[row].append(int(number))
        free[:, row] -= sizes[number]
    return sorted(tuple(sorted(row)) for row in rows)


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
    if not continuation_ids and has_continuations([sequences[i] for row in rows for i in row]):
        raise ValueError("to_batch: a sequence has two continuations; leave continuation_ids True")
    if len(rows) > num_rows:
        raise ValueError(f"to_batch: {len(rows)} rows, but num_rows is {num_rows}; give fewer rows")
    by_token = np.zeros((4, num_rows, row_length), np.int32)
    by_target = np.zeros((3, num_rows, targets_per_row), np.int32)
    weights = np.zeros((num_rows, targets_per_row), np.float32)
    for number, row in enumerate(rows):
        tokens, targets, target_weights = _lay_out([sequences[i] for i in row])
        by_token[:, number, : tokens.shape[1]] = tokens
        by_target[:, number, : targets.shape[1]] = targets
        weights[number, : len(target_weights)] = target_weights
    tokens, positions, segments, continuations = by_token
    slots, targets, items = by_target
    # A batch holds numpy's arrays until `put_batch` spreads it over the devices.
    found = continuations if continuation_ids else None
    arrays: Any = (tokens, positions, segments, found, slots, targets, weights, items)
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
    places: dict[int, list[tuple[int, int]]] = {}
    for number, row in enumerate(rows):
        counts = [len(sequences[i].continuations) for i in row]
        for i, first, last in zip(row, np.cumsum([0, *counts[:-1]]), np.cumsum(counts), strict=True):
            places[i] = [(number, item) for item in range(first, last)]
    flat = np.array([place for i in range(len(sequences)) for place in places[i]], np.int64).reshape(-1, 2)
    return flat[:, 0], flat[:, 1]


def fill(sequences: Seq[PrefixTree], rows: Seq[Row], *, row_length: int) -> float:
    """The share of the rows' positions that hold a token."""
    used = sum(_size(sequences[i])[0] for row in rows for i in row)
    return used / max(1, row_length * len(rows))


def _size(sequence: PrefixTree) -> tuple[int, int, int]:
    """Tokens, targets and continuations of a sequence."""
    tokens = sum(len(part.tokens) for part in sequence.spans)
    targets = sum(int((part.weights > 0).sum()) for part in sequence.spans)
    return tokens, targets, len(sequence.continuations)


def _check_fit(sizes: Int[np.ndarray, "N 3"], limits: Int[np.ndarray, " 3"]) -> None:
    for number, column in np.argwhere(sizes > limits)[:1]:
        what = ("tokens", "predicted tokens", "continuations")[column]
        raise ValueError(
            f"pack: sequence {number} has {sizes[number, column]} {what}, but a row holds {limits[column]}; "
            "truncate its background, split its continuations or make the rows longer"
        )


def _lay_out(
    sequences: Seq[PrefixTree],
) -> tuple[Int[np.ndarray, "4 n"], Int[np.ndarray, "3 m"], Float[np.ndarray, " m"]]:
    """One row: (tokens, positions, segments, continuations), (slots, targets, items), target weights."""
    tokens, targets, weights = [], [], []
    start, first_item = 0, 0
    for segment, sequence in enumerate(sequences, start=1):
        prefix_end = start + len(sequence.prefix.tokens) - 1
        for continuation, part in enumerate(sequence.spans):
            length = len(part.tokens)
            depth = len(sequence.prefix.tokens) if continuation else 0
            ids = np.broadcast_to([[segment], [continuation]], (2, length))
            tokens.append(np.vstack([part.tokens, depth + np.arange(length), ids]))
            before = np.arange(start - 1, start + length - 1)
            before[:1] = prefix_end if depth else -1
            used = part.weights > 0
            item = np.full(length, first_item + continuation - 1 if continuation else -1)
            targets.append(np.vstack([before, part.tokens, item])[:, used])
            weights.append(part.weights[used])
            start += length
        first_item += len(sequence.continuations)
    slots_targets_items = np.hstack(targets)
    if (slots_targets_items[0] < 0).any():
        raise ValueError(
            "to_batch: a sequence's first token has a weight, but nothing predicts it; weigh it 0"
        )
    return np.hstack(tokens), slots_targets_items, np.concatenate(weights)
