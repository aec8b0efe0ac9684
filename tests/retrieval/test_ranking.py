"""The best by hand, and the best of parts."""

import numpy as np

from radit_jax.retrieval.embeddings import Embeddings
from radit_jax.retrieval.ranking import Ranked, merge, rank

EMBEDDINGS = Embeddings([np.array([[1], [3]], np.float32), np.array([[2], [3]], np.float32)])


def test_candidates_are_ordered_by_score_and_row_and_missing_ones_are_marked():
    queries = np.array([[1], [-1], [5]], np.float32)
    query_index, rows = np.array([0, 1, 0, 0, 1, 0]), np.array([3, 2, 0, 1, 0, 2])
    found = rank(EMBEDDINGS, queries, query_index, rows, 3)
    np.testing.assert_array_equal(found.rows, [[1, 3, 2], [0, 2, -1], [-1, -1, -1]])
    np.testing.assert_array_equal(found.scores, [[3, 3, 2], [-1, -2, -np.inf], [-np.inf, -np.inf, -np.inf]])


def test_no_candidates_are_none_found():
    none = np.empty(0, int)
    np.testing.assert_array_equal(rank(EMBEDDINGS, np.ones((1, 1), np.float32), none, none, 1).rows, [[-1]])


def test_the_best_of_parts_are_the_best_of_all():
    def part(*found: tuple[int, float]) -> Ranked:
        rows, scores = zip(*found, strict=True)
        return Ranked(np.array([rows], np.int32), np.array([scores], np.float32))

    merged = merge(part((7, 2.0), (1, 0.0)), part((4, 2.0), (-1, -np.inf)), part((9, 1.0), (8, -0.0)))
    np.testing.assert_array_equal(merged.rows, [[4, 7]])
    merged = merge(part((3, -0.0), (-1, -np.inf)), part((1, 0.0), (-1, -np.inf)))
    np.testing.assert_array_equal(merged.rows, [[1, 3]])
