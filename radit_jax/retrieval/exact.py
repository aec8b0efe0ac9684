"""Exact search: every chunk's product with every query, by numpy or on accelerators.

Products round differently from one shape and device to another, so they only narrow the choice: every chunk
that rounding could have kept from the best k is scored again by itself. The answer is the same everywhere.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from radit_jax.retrieval.embeddings import Embeddings, Queries, Vectors, as_embeddings
from radit_jax.retrieval.products import DeviceProducts
from radit_jax.retrieval.ranking import Ranked, merge_hosts, rank, split
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage.stage_folder import StageFolder

_QUERY_BLOCK, _CHUNK_BLOCK = 512, 16_384  # one block of scores takes 32 MB
_FIRST = 1024  # chunks whose best k are a first bound of what may be among all chunks' best
_SPARE = 16  # products that devices give beside the k best: few queries have more that are as good
FACTS = "index/index.json"  # of any index, in a stage's folder


class ExactIndex:
    """Exact search of all chunks; each of several processes takes its share of them."""

    def __init__(self, embeddings: Embeddings | Vectors, devices: Sequence[Any] = ()):
        """On `devices`, which are this process's; by numpy where there are none."""
        self.embeddings = as_embeddings(embeddings)
        self.facts: dict[str, Any] = {"kind": "exact", "num_chunks": len(self.embeddings), "recall@10": 1.0}
        self._devices = tuple(devices)
        self._placed: DeviceProducts | None = None

    def search(self, queries: Queries, k: int, exclude: Int[np.ndarray, " Q"] | None = None) -> Ranked:
        """Rows and float32 scores of each query's k best chunks.

        `exclude` names one row for each query that must not be returned; −1 excludes none.
        """
        check_search(queries, k, exclude, len(self.embeddings))
        exclude = np.full(len(queries), -1) if exclude is None else exclude
        number, count = processes.process_index_and_count()
        rows = split(len(self.embeddings), count)[number]
        search = self._search_on_devices if self._devices else self._search_on_host
        return merge_hosts(search(queries, k, exclude, rows))

    def save(self, folder: StageFolder) -> None:
        """Writes what `index.load` needs beside the embeddings."""
        folder.write_json(FACTS, self.facts)

    def _search_on_host(
        self, queries: Queries, k: int, exclude: Int[np.ndarray, " Q"], rows: range
    ) -> Ranked:
        found = Ranked.empty(len(queries), k)
        for start in range(0, len(queries), _QUERY_BLOCK):
            some = slice(start, start + _QUERY_BLOCK)
            margin = self._rounding_bound(queries[some])
            near = _near_best(self.embeddings, queries[some], k, exclude[some], rows, margin)
            found.put(some, rank(self.embeddings, queries[some], near, k))
        return found

    def _search_on_devices(
        self, queries: Queries, k: int, exclude: Int[np.ndarray, " Q"], rows: range
    ) -> Ranked:
        if self._placed is None or self._placed.rows != rows:
            self._placed = DeviceProducts(self.embeddings, rows, self._devices)
        nearest, products = self._placed.best(queries, min(k + 1 + _SPARE, len(rows)))
        real = (nearest != exclude[:, None]) & np.isfinite(products)
        found = rank(self.embeddings, queries, np.where(real, nearest, -1), k)
        unsure = np.flatnonzero(self._may_miss(queries, k, products, real, rows))
        found.put(unsure, self._search_on_host(queries[unsure], k, exclude[unsure], rows))
        return found

    def _may_miss(
        self,
        queries: Queries,
        k: int,
        products: Float[np.ndarray, "Q m"],
        real: Bool[np.ndarray, "Q m"],
        rows: range,
    ) -> Bool[np.ndarray, " Q"]:
        """Whether a row that the devices left out, whose product is at most the last, may be of the best."""
        if products.shape[1] == len(rows):
            return np.zeros(len(queries), bool)
        kth = -np.sort(np.where(real, -products, np.inf), axis=1)[:, k - 1]
        # A TPU makes a float32 product of several of bfloat16, which round a little more than one.
        return products[:, -1] >= kth - 2 * self._rounding_bound(queries)

    def _rounding_bound(self, queries: Queries) -> Float[np.ndarray, " Q"]:
        """How far apart two float32 products of a query can be whose exact values are equal."""
        width = queries.shape[1]
        return width * np.finfo(np.float32).eps * np.linalg.norm(queries, axis=1) * self._longest

    @functools.cached_property
    def _longest(self) -> float:
        """The length of the longest embedding."""
        blocks = self.embeddings.blocks(range(len(self.embeddings)), _CHUNK_BLOCK)
        return max(float(np.sqrt(np.einsum("cd,cd->c", block, block).max())) for _, block in blocks)


def check_search(queries: Queries, k: int, exclude: np.ndarray | None, num_chunks: int) -> None:
    """Refuse a search that has no answer."""
    available = num_chunks - (exclude is not None and bool((exclude >= 0).any()))
    if not 0 < k <= available:
        raise ValueError(
            f"index: {k} chunks a query came, needed are 1 to {available} of a corpus of {num_chunks}; "
            f"lower the number of chunks to retrieve"
        )
    check_finite("queries", as_embeddings(queries))


def check_finite(what: str, vectors: Embeddings) -> None:
    bad = [
        start + row
        for start, block in vectors.blocks(range(len(vectors)), _CHUNK_BLOCK)
        for row in np.flatnonzero(~np.isfinite(block).all(axis=1))
    ]
    if bad:
        raise ValueError(
            f"index: {len(bad)} of {len(vectors)} {what} came with NaN or infinity "
            f"(the first is row {bad[0]}), finite vectors are needed; look at the encoder"
        )


def _near_best(
    embeddings: Embeddings,
    queries: Queries,
    k: int,
    exclude: Int[np.ndarray, " Q"],
    rows: range,
    margin: Float[np.ndarray, " Q"],
) -> Int[np.ndarray, "Q M"]:
    """For a block of queries, every row whose product is at most `margin` below the query's k-th best.

    −1 fills up. Only of the first rows are the best sorted out: of the others few are near those.
    """
    best = np.full((len(queries), k), -np.inf, np.float32)  # the k highest products so far
    floor = best[:, 0]
    query_index, found, products = [np.empty(0, int)], [np.empty(0, int)], [np.empty(0, np.float32)]
    for start, block in embeddings.blocks(rows, _CHUNK_BLOCK):
        scores = queries @ block.T
        own = np.flatnonzero((exclude >= start) & (exclude < start + len(block)))
        scores[own, exclude[own] - start] = -np.inf
        if not len(found[1:]):
            floor = _top(np.concatenate([best, scores[:, :_FIRST]], axis=1), k).min(axis=1)
        of, at = np.divmod(np.flatnonzero(scores >= (floor - margin)[:, None]), len(block))
        query_index.append(of)
        found.append(at + start)
        products.append(scores[of, at])
        best = _top(np.concatenate([best, _table(of, products[-1], len(queries), -np.inf)], axis=1), k)
        floor = best.min(axis=1)
    of, at, product = np.concatenate(query_index), np.concatenate(found), np.concatenate(products)
    kept = (product >= (floor - margin)[of]) & np.isfinite(product)
    order = np.argsort(of[kept], kind="stable")
    return _table(of[kept][order], at[kept][order].astype(np.int32), len(queries), -1)


def _table(
    query_index: Int[np.ndarray, " n"], values: np.ndarray, num_queries: int, fill: int | float
) -> np.ndarray:
    """Each query's values in a row of its own; the values come by query."""
    counts = np.bincount(query_index, minlength=num_queries)
    table = np.full((num_queries, counts.max(initial=0)), fill, values.dtype)
    table[query_index, np.arange(len(values)) - (np.cumsum(counts) - counts)[query_index]] = values
    return table


def _top(scores: Float[np.ndarray, "Q n"], k: int) -> Float[np.ndarray, "Q m"]:
    """The k highest of each row, in any order; all of a shorter row."""
    return scores if scores.shape[1] <= k else np.partition(scores, -k, axis=1)[:, -k:]
