"""Rows of prefix trees for scoring: how they are packed, and where each continuation's score belongs."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from radit_jax.data.batches.packing import PrefixTree, Row, continuation_places, fill, pack, to_batch
from radit_jax.method.likelihood import LmBatch
from radit_jax.models.cudnn import max_segments


class Packing(NamedTuple):
    """Prefix trees packed into rows, and where the score of each of their N continuations belongs."""

    trees: Sequence[PrefixTree]
    numbers: Int[np.ndarray, " N"]  # tree after tree: the place of each continuation in the result
    rows: Sequence[Row]
    row_length: int
    targets_per_row: int
    continuation_ids: bool  # False: no tree has two continuations, and the batches need no numbers for them

    @classmethod
    def pack(
        cls,
        trees: Sequence[PrefixTree],
        numbers: Int[np.ndarray, " N"],
        *,
        row_length: int,
        targets_per_row: int,
        continuation_ids: bool,
    ) -> "Packing":
        """Pack the trees; rows get room for `row_length` targets where a tree needs more than usual."""
        if any(_num_continuation_tokens(tree) > targets_per_row for tree in trees):
            targets_per_row = row_length
        # A kernel that knows only segments has room for a limited number of them, padding included.
        continuations_per_row = targets_per_row if continuation_ids else max_segments(row_length) - 1
        rows = pack(
            trees,
            row_length=row_length,
            targets_per_row=targets_per_row,
            continuations_per_row=continuations_per_row,
        )
        return cls(trees, numbers, rows, row_length, targets_per_row, continuation_ids)

    @property
    def fill(self) -> float:
        """The share of the rows' positions that hold a token."""
        return fill(self.trees, self.rows, row_length=self.row_length)

    def batches(self, batch_size: int) -> Iterator[tuple[LmBatch, int]]:
        """The rows, `batch_size` at a time, with the number of continuations in them."""
        for start in range(0, len(self.rows), batch_size):
            rows = self.rows[start : start + batch_size]
            batch = to_batch(
                self.trees,
                rows,
                row_length=self.row_length,
                targets_per_row=self.targets_per_row,
                num_rows=batch_size,
                continuation_ids=self.continuation_ids,
            )
            trees = [self.trees[index] for index in itertools.chain.from_iterable(rows)]
            yield batch, sum(len(tree.continuations) for tree in trees)

    def put_scores(
        self,
        row_scores: Float[np.ndarray, "R C"],
        scores: Float[np.ndarray, " _"],
    ) -> None:
        """Write `row_scores`, [row, continuation in the row], to the continuations' places in `scores`."""
        places = continuation_places(self.trees, self.rows)
        scores[self.numbers] = row_scores[places]


def _num_continuation_tokens(tree: PrefixTree) -> int:
    """Tokens of all continuations; each may be a target."""
    return sum(len(continuation.tokens) for continuation in tree.continuations)


@dataclass
class RowFill:
    """How much of the rows that were scored is tokens."""

    rows: int = 0
    full_rows: float = 0.0  # the number of rows without padding that would hold the same tokens

    def add(self, rows: int, share: float) -> None:
        """Count `rows` rows; a token is at `share` of their positions."""
        self.rows += rows
        self.full_rows += rows * share

    @property
    def share(self) -> float:
        """The share of positions that hold a token."""
        return self.full_rows / max(1, self.rows)
