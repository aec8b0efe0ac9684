"""The best of candidate chunks by exact scores of the stored embeddings, and the best of several such.

Where fewer than k chunks are known, the places left over have row −1 and score −inf. The order, highest score
first and the lower row first among equals, is total: it does not matter in how many parts the best are found.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from radit_jax.retrieval.embeddings import Embeddings, Queries
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.mesh import exchange_hosts, gather_hosts

Rows = Int[np.ndarray, "Q K"]  # each query's chunks, as rows of the corpus
Scores = Float[np.ndarray, "Q K"]  # s(q, c) of those chunks
Candidates = Int[np.ndarray, "Q M"]  # rows to choose from, −1 where there is none

_BLOCK = 1024  # candidates whose products are made at once: few enough to stay in a cache
_MIN_QUERIES_PER_THREAD = 64


class Ranked(NamedTuple):
    """For each query k chunks, best first: their rows and float32 scores."""

    rows: Rows
    scores: Scores

    @classmethod
    def empty(cls, num_queries: int, k: int) -> "Ranked":
        """No chunks yet: rows of −1, scores of −inf."""
        shape = num_queries, k
        rows = np.full(shape, -1, np.int32)
        scores = np.full(shape, -np.inf, np.float32)
        return cls(rows, scores)

    def put(
        self,
        queries: Int[np.ndarray, " n"] | slice,
        ranked: "Ranked",
    ) -> None:
        """Set what the queries at these places get, in their order."""
        self.rows[queries] = ranked.rows
        self.scores[queries] = ranked.scores


def rank(
    embeddings: Embeddings,
    queries: Queries,
    candidates: Candidates,
    k: int,
) -> Ranked:
    """The k best of each query's candidate rows, all different; −1 is no candidate.

    Scores are summed in float64 and rounded once: a chunk's score is the same wherever and next to whatever
    others it is computed.
    """
    # Blocks of about as many candidates, however many a query has.
    num_queries = len(queries)
    scores = np.full(candidates.shape, -np.inf, np.float32)
    width = max(1, candidates.shape[1])
    height = max(1, _BLOCK // width)  # queries of a block

    def score(query_range: range) -> None:
        """Fill in the scores of consecutive queries, block by block."""
        for start in range(query_range.start, query_range.stop, height):
            stop = min(start + height, query_range.stop)
            query_block = slice(start, stop)
            for slot in range(0, width, _BLOCK):
                block = query_block, slice(slot, slot + _BLOCK)
                rows = candidates[block]
                is_real = rows >= 0
                if is_real.any():
                    vectors = embeddings[rows]
                    products = np.einsum(
                        "qd,qmd->qm",
                        queries[query_block],
                        vectors,
                        dtype=np.float64,
                    )
                    scores[block] = np.where(is_real, products, -np.inf)

    # Several threads are of use, because numpy releases Python's lock.
    num_cores = os.cpu_count() or 1
    num_threads = min(num_cores, max(1, num_queries // _MIN_QUERIES_PER_THREAD))
    with ThreadPoolExecutor(num_threads) as threads:
        results = threads.map(score, split(num_queries, num_threads))
        list(results)  # raises what a thread raised
    return _best(candidates, scores, k)


def split(count: int, parts: int) -> list[range]:
    """`range(count)` cut into `parts` consecutive ranges of like length.

    >>> split(8, 3)
    [range(0, 2), range(2, 5), range(5, 8)]
    """
    ranges = []
    for part in range(parts):
        start = count * part // parts
        stop = count * (part + 1) // parts
        ranges.append(range(start, stop))
    return ranges


def merge(*parts: Ranked) -> Ranked:
    """The k best chunks of several parts of the corpus, from the k best of each part."""
    k = parts[0].rows.shape[1]
    rows = np.concatenate([part.rows for part in parts], axis=1)
    scores = np.concatenate([part.scores for part in parts], axis=1)
    return _best(rows, scores, k)


def merge_hosts(ranked: Ranked) -> Ranked:
    """The k best chunks of all processes, each with its own part's best; every process gets the same."""
    if not processes.is_multiprocess():
        return ranked
    # Both are [num_processes, Q, K] after this.
    rows = gather_hosts(ranked.rows)
    scores = gather_hosts(ranked.scores)
    return merge(*map(Ranked, rows, scores))


def exchange(ranked: Ranked, lengths: Sequence[int]) -> Ranked:
    """The k best chunks of this process's queries, from all processes' parts of the corpus.

    `ranked` is this process's part for the queries of all, `lengths[p]` of them those of process p, in order.
    """
    if len(lengths) == 1:
        return ranked
    # Every process has the same number of places, some of them empty: [num_processes, longest, K].
    process, num_processes = processes.process_index_and_count()
    longest, k = max(lengths), ranked.rows.shape[1]
    padded = Ranked.empty(num_processes * longest, k)
    ends = np.cumsum(lengths)
    for number, (end, length) in enumerate(zip(ends, lengths, strict=True)):
        part = Ranked(ranked.rows[end - length : end], ranked.scores[end - length : end])
        start = number * longest
        padded.put(slice(start, start + length), part)
    shape = num_processes, longest, k
    rows = exchange_hosts(padded.rows.reshape(shape))
    scores = exchange_hosts(padded.scores.reshape(shape))
    best = merge(*map(Ranked, rows, scores))
    return Ranked(best.rows[: lengths[process]], best.scores[: lengths[process]])


def _best(
    rows: Candidates,
    scores: Float[np.ndarray, "Q M"],
    k: int,
) -> Ranked:
    """The k best of each query's M rows, highest score first and the lower row first among equals.

    Where M < k, the places left over have row −1 and score −inf.
    """
    best = Ranked.empty(len(rows), k)
    # `lexsort` sorts by its last key, and by the key before it among equals.
    order = np.lexsort((rows, -scores))[:, :k]  # [Q, min(k, M)]
    filled = slice(None), slice(order.shape[1])  # all queries' first min(k, M) places
    best.rows[filled] = np.take_along_axis(rows, order, axis=1)
    best.scores[filled] = np.take_along_axis(scores, order, axis=1)
    return best
