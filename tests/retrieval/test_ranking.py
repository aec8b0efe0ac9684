"""The best by hand, and the best of parts."""

import os

import numpy as np
import pytest
from exact import STORED

from radit_jax.retrieval import ranking
from radit_jax.retrieval.embeddings import Embeddings
from radit_jax.retrieval.ranking import Ranked, merge, rank

EMBEDDINGS = Embeddings([np.array([[1], [3]], np.float32), np.array([[2], [3]], np.float32)])


def test_candidates_are_ordered_by_score_and_row_and_missing_ones_are_marked():
    queries = np.array([[1], [-1], [5]], np.float32)
    candidates = np.array([[3, 0, 1, 2], [2, -1, 0, -1], [-1, -1, -1, -1]], np.int32)
    found = rank(EMBEDDINGS, queries, candidates, 3)
    np.testing.assert_array_equal(found.rows, [[1, 3, 2], [0, 2, -1], [-1, -1, -1]])
    np.testing.assert_array_equal(found.scores, [[3, 3, 2], [-1, -2, -np.inf], [-np.inf, -np.inf, -np.inf]])


@pytest.mark.parametrize(("queries", "width"), [(0, 4), (1, 0), (3, 0)])
def test_no_candidates_are_none_found(queries, width):
    none = np.empty((queries, width), np.int32)
    found = rank(EMBEDDINGS, np.ones((queries, 1), np.float32), none, 2)
    np.testing.assert_array_equal(found.rows, np.full((queries, 2), -1))


@pytest.mark.parametrize("width", [1, 7, 384])
@pytest.mark.parametrize("cores", [1, 2, 5])
def test_a_score_is_the_same_bits_in_any_block_and_on_any_number_of_cores(monkeypatch, width, cores):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(90, width)).astype(np.float32)
    queries = rng.normal(size=(11, width)).astype(np.float32)
    candidates = np.array([rng.permutation(90)[:40] for _ in queries], np.int32)
    candidates[:, 5:] = np.where(rng.random((11, 35)) < 0.5, candidates[:, 5:], -1)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(ranking, "_MIN_QUERIES_PER_THREAD", 1)
    wanted = {
        (q, row): np.float32(np.dot(queries[q].astype(np.float64), vectors[row].astype(np.float64)))
        for q in range(11)
        for row in candidates[q]
        if row >= 0
    }
    first = None
    for block in (1, 8, 64, 4096):  # parts of a query, one, several, all
        monkeypatch.setattr(ranking, "_BLOCK", block)
        found = rank(Embeddings([vectors[:30], vectors[30:]]), queries, candidates, 5)
        for q, row in np.ndindex(found.rows.shape):
            np.testing.assert_allclose(found.scores[q, row], wanted[q, found.rows[q, row]], rtol=STORED)
        first = first or found
        np.testing.assert_array_equal(found.rows, first.rows)
        np.testing.assert_array_equal(found.scores, first.scores)


def test_what_fails_in_one_thread_fails():
    with pytest.raises(IndexError, match="to 9 of 4 embeddings"):
        rank(EMBEDDINGS, np.ones((40, 1), np.float32), np.array([[0]] * 39 + [[9]], np.int32), 1)


def test_the_best_of_parts_are_the_best_of_all():
    def part(*found: tuple[int, float]) -> Ranked:
        rows, scores = zip(*found, strict=True)
        return Ranked(np.array([rows], np.int32), np.array([scores], np.float32))

    merged = merge(part((7, 2.0), (1, 0.0)), part((4, 2.0), (-1, -np.inf)), part((9, 1.0), (8, -0.0)))
    np.testing.assert_array_equal(merged.rows, [[4, 7]])
    merged = merge(part((3, -0.0), (-1, -np.inf)), part((1, 0.0), (-1, -np.inf)))
    np.testing.assert_array_equal(merged.rows, [[1, 3]])
