"""The best of candidate chunks by exact scores of the stored embeddings, and the best of several such.

Where fewer than k chunks are known the places left over have row −1 and score −inf. The order, highest score
first and the lower row first among equals, is total: it does not matter in how many parts the best are found.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from radit_jax.retrieval.embeddings import Embeddings, Queries
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.mesh import gather_hosts

_BLOCK = 1024  # candidates whose products are made at once: few enough to stay in a cache
_LEAST = 64  # queries that are worth a thread


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


def rank(embeddings: Embeddings, queries: Queries, candidates: Int[np.ndarray, "Q M"], k: int) -> Ranked:
    """The k best of each query's candidate rows, which come once each; −1 is none.

    Scores are summed in float64 and rounded once: the same wherever and in whatever company.
    """
    scores = np.full(candidates.shape, -np.inf, np.float32)
    width = max(1, candidates.shape[1])

    def score(own: range) -> None:
        height = max(1, _BLOCK // width)
        for start in range(own.start, own.stop, height):
            some = slice(start, min(start + height, own.stop))
            for slot in range(0, width, _BLOCK):
                rows = candidates[some, slot : slot + _BLOCK]
                if (rows >= 0).any():
                    products = np.einsum("qd,qmd->qm", queries[some], embeddings[rows], dtype=np.float64)
                    scores[some, slot : slot + _BLOCK] = np.where(rows >= 0, products, -np.inf)

    cores = min(os.cpu_count() or 1, max(1, len(queries) // _LEAST))
    with ThreadPoolExecutor(cores) as threads:  # numpy lets several run
        list(threads.map(score, split(len(queries), cores)))
    return _best(candidates, scores, k)


def split(count: int, parts: int) -> list[range]:
    """So many consecutive ranges of like length, which together are `range(count)`.

    >>> split(8, 3)
    [range(0, 2), range(2, 5), range(5, 8)]
    """
    bounds = [count * number // parts for number in range(parts + 1)]
    return [range(*pair) for pair in zip(bounds, bounds[1:], strict=False)]


def merge(*parts: Ranked) -> Ranked:
    """The k best chunks of what was found in each of several parts of the corpus, k in each."""
    rows, scores = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    return _best(rows, scores, parts[0].rows.shape[1])


def merge_hosts(found: Ranked) -> Ranked:
    """The k best chunks of what each process found in its own part; every process has the same then."""
    if not processes.is_multiprocess():
        return found
    return merge(*map(Ranked, *map(gather_hosts, found)))


def _best(rows: Int[np.ndarray, "Q M"], scores: Float[np.ndarray, "Q M"], k: int) -> Ranked:
    """The k best, highest score first and the lower row first among equals."""
    best, order = Ranked.empty(len(rows), k), np.lexsort((rows, -scores))[:, :k]
    for kept, array in zip(best, (rows, scores), strict=True):
        kept[:, : order.shape[1]] = np.take_along_axis(array, order, axis=1)
    return best
