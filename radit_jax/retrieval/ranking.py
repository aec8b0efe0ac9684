"""The best of candidate chunks by exact scores of the stored embeddings, and the best of several such.

Where fewer than k chunks are known the places left over have row −1 and score −inf. The order, highest score
first and the lower row first among equals, is total: it does not matter in how many parts the best are found.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from radit_jax.retrieval.embeddings import Embeddings, Queries
from radit_jax.runtime import hosts
from radit_jax.runtime.mesh import gather_hosts

Pairs = tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]  # of a query's number and a row
_BLOCK = 1024  # candidates whose products are made at once: few enough to stay in a cache


class Ranked(NamedTuple):
    """For each query k chunks, best first: their rows and float32 scores."""

    rows: Int[np.ndarray, "Q K"]
    scores: Float[np.ndarray, "Q K"]

    @classmethod
    def empty(cls, num_queries: int, k: int) -> "Ranked":
        shape = (num_queries, k)
        return cls(np.full(shape, -1, np.int32), np.full(shape, -np.inf, np.float32))

    def put(self, queries: Int[np.ndarray, " n"] | slice, found: "Ranked") -> None:
        """Sets what some of the queries found."""
        self.rows[queries], self.scores[queries] = found


def rank(
    embeddings: Embeddings,
    queries: Queries,
    query_index: Int[np.ndarray, " pairs"],
    rows: Int[np.ndarray, " pairs"],
    k: int,
) -> Ranked:
    """The k best of the candidate rows of each query; candidate i is for query `query_index[i]`.

    Scores are summed in float64 and rounded once: the same wherever and in whatever company.
    """
    scores = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _BLOCK):
        part = slice(start, start + _BLOCK)
        embedded = queries[query_index[part]].astype(np.float64)
        scores[part] = np.einsum("nd,nd->n", embedded, embeddings[rows[part]].astype(np.float64))
    order = np.lexsort((rows, -scores, query_index))
    query_index = query_index[order]
    places = np.arange(len(rows)) - np.searchsorted(query_index, query_index)
    best, kept = Ranked.empty(len(queries), k), places < k
    best.rows[query_index[kept], places[kept]] = rows[order[kept]]
    best.scores[query_index[kept], places[kept]] = scores[order[kept]]
    return best


def merge(*parts: Ranked) -> Ranked:
    """The k best chunks of what was found in each of several parts of the corpus, k in each."""
    k = parts[0].rows.shape[1]
    rows, scores = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    order = np.lexsort((rows, -scores))[:, :k]
    return Ranked(*(np.take_along_axis(array, order, axis=1) for array in (rows, scores)))


def merge_hosts(found: Ranked) -> Ranked:
    """The k best chunks of what each process found in its own part; every process has the same then."""
    if not hosts.is_several():
        return found
    return merge(*map(Ranked, *map(gather_hosts, found)))
