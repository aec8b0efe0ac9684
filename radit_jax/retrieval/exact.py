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
from radit_jax.retrieval.ranking import Candidates, Ranked, merge_hosts, rank
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.mesh import gather_hosts
from radit_jax.runtime.storage.stage_folder import StageFolder

FACTS = "index/index.json"  # of any index, in a stage's folder
ExcludedRows = Int[np.ndarray, " Q"]  # for each query a row that it must not get; −1 excludes none

_QUERY_BLOCK = 512
_CHUNK_BLOCK = 16_384  # with the queries above, one block of products takes 32 MB
_NUM_FIRST = 1024  # chunks whose best k are a first bound of what may be among all chunks' best
_NUM_SPARE = 16  # products that devices give beyond the k best: few queries have more that are as good


class ExactIndex:
    """Exact search of all chunks; each of several processes takes its share of them.

    `facts` say what the index is: its kind, its number of chunks, and its recall, which is 1.
    """

    def __init__(
        self,
        embeddings: Embeddings | Vectors,
        devices: Sequence[Any] = (),
    ):
        """Search on `devices`, which are this process's; by numpy where there are none."""
        self.embeddings = as_embeddings(embeddings)
        self.facts: dict[str, Any] = {
            "kind": "exact",
            "num_chunks": len(self.embeddings),
            "recall@10": 1.0,
        }
        self._devices = tuple(devices)
        self._device_products: DeviceProducts | None = None

    def search(
        self,
        queries: Queries,
        k: int,
        exclude: ExcludedRows | None = None,
    ) -> Ranked:
        """Rows and float32 scores of each query's k best chunks, without its row of `exclude`."""
        return merge_hosts(self.search_part(queries, k, exclude))

    def search_part(
        self,
        queries: Queries,
        k: int,
        exclude: ExcludedRows | None = None,
    ) -> Ranked:
        """The best of the chunks that this process searches; the processes together search all."""
        check_search(queries, k, exclude, len(self.embeddings))
        if exclude is None:
            exclude = np.full(len(queries), -1)

        rows = self._own_rows
        search = self._search_on_devices if self._devices else self._search_on_host
        return search(queries, k, exclude, rows)

    @property
    def _own_rows(self) -> range:
        """The rows that this process searches."""
        return self.embeddings.share(*processes.process_index_and_count())

    def save(self, folder: StageFolder) -> None:
        """Write what `load_index` needs besides the embeddings."""
        folder.write_json(FACTS, self.facts)

    def _search_on_host(
        self,
        queries: Queries,
        k: int,
        exclude: ExcludedRows,
        rows: range,
    ) -> Ranked:
        """The k best of `rows`, from products that numpy makes."""
        # Blocks of queries keep the products in memory small.
        ranked = Ranked.empty(len(queries), k)
        for start in range(0, len(queries), _QUERY_BLOCK):
            block = slice(start, start + _QUERY_BLOCK)
            candidates = _near_best(
                self.embeddings,
                queries[block],
                k,
                exclude[block],
                rows,
                self._rounding_bound(queries[block]),
            )
            best = rank(self.embeddings, queries[block], candidates, k)
            ranked.put(block, best)
        return ranked

    def _search_on_devices(
        self,
        queries: Queries,
        k: int,
        exclude: ExcludedRows,
        rows: range,
    ) -> Ranked:
        """The k best of `rows`, from products that the devices make."""
        # The embeddings stay on the devices from one search to the next.
        if self._device_products is None or self._device_products.rows != rows:
            self._device_products = DeviceProducts(self.embeddings, rows, self._devices)

        # Rank what the devices propose. One proposal more makes up for the excluded row.
        num_proposed = min(k + 1 + _NUM_SPARE, len(rows))
        proposed, products = self._device_products.best(queries, num_proposed)
        is_real = (proposed != exclude[:, None]) & np.isfinite(products)
        candidates = np.where(is_real, proposed, -1)
        ranked = rank(self.embeddings, queries, candidates, k)

        # Where rounding may have hidden a chunk, the host searches once more.
        may_miss = self._may_miss(queries, k, products, is_real, rows)
        unsure = np.flatnonzero(may_miss)
        searched_again = self._search_on_host(
            queries[unsure],
            k,
            exclude[unsure],
            rows,
        )
        ranked.put(unsure, searched_again)
        return ranked

    def _may_miss(
        self,
        queries: Queries,
        k: int,
        products: Float[np.ndarray, "Q m"],
        is_real: Bool[np.ndarray, "Q m"],
        rows: range,
    ) -> Bool[np.ndarray, " Q"]:
        """Whether a row that the devices left out may be one of the best: its product is at most the last."""
        if products.shape[1] == len(rows):  # none was left out
            return np.zeros(len(queries), bool)
        # Rounding may have kept out a row whose product is this near the k-th best.
        real_products = np.where(is_real, products, -np.inf)
        descending = -np.sort(-real_products, axis=1)
        kth_best = descending[:, k - 1]
        # A TPU makes a float32 product of several of bfloat16, which round a little more than one.
        margin = 2 * self._rounding_bound(queries)
        return products[:, -1] >= kth_best - margin

    def _rounding_bound(self, queries: Queries) -> Float[np.ndarray, " Q"]:
        """How far apart two float32 products of a query can be whose exact values are equal."""
        # Either product is off by at most D ε/2 times |q| |c|.
        width = queries.shape[1]
        epsilon = np.finfo(np.float32).eps
        lengths = np.linalg.norm(queries, axis=1)
        return width * epsilon * lengths * self._longest

    @functools.cached_property
    def _longest(self) -> float:
        """The length of the longest embedding that this process searches; 0 where it has none."""
        # A block at a time, since the embeddings may not fit into memory.
        longest_of_blocks = [0.0]
        for _, block in self.embeddings.blocks(self._own_rows, _CHUNK_BLOCK):
            squares = np.einsum("cd,cd->c", block, block)
            longest_of_blocks.append(float(np.sqrt(squares.max())))
        return max(longest_of_blocks)


def check_search(
    queries: Queries,
    k: int,
    exclude: ExcludedRows | None,
    num_chunks: int,
) -> None:
    """Raise ValueError where a query cannot have k chunks, or is not finite."""
    # With a row excluded there is one chunk fewer.
    excludes_any = exclude is not None and bool((exclude >= 0).any())
    available = num_chunks - excludes_any
    if not 0 < k <= available:
        raise ValueError(
            f"index: expected 1 to {available} chunks a query of a corpus of {num_chunks}, got {k}. "
            f"Lower the number of chunks to retrieve."
        )
    check_finite("queries", as_embeddings(queries))


def check_finite(what: str, vectors: Embeddings, together: bool = False) -> None:
    """Raise ValueError, with `what` they are, where any of the vectors holds NaN or infinity.

    With `together` each of several processes looks at its share of them, and all raise the same error.
    """
    process, count = processes.process_index_and_count() if together else (0, 1)
    num_bad, first_bad = 0, len(vectors)
    for start, block in vectors.blocks(vectors.share(process, count), _CHUNK_BLOCK):
        is_finite = np.isfinite(block).all(axis=1)
        bad_places = np.flatnonzero(~is_finite)
        if len(bad_places):
            num_bad += len(bad_places)
            first_bad = min(first_bad, start + int(bad_places[0]))

    # What all have found.
    if count > 1:
        found = gather_hosts(np.array([num_bad, first_bad]))
        num_bad, first_bad = int(found[:, 0].sum()), int(found[:, 1].min())
    if num_bad:
        raise ValueError(
            f"index: expected finite {what}, got NaN or infinity in {num_bad} of {len(vectors)}, "
            f"the first in row {first_bad}. Look at the encoder."
        )


def _near_best(
    embeddings: Embeddings,
    queries: Queries,
    k: int,
    exclude: ExcludedRows,
    rows: range,
    margin: Float[np.ndarray, " Q"],
) -> Candidates:
    """For a block of queries, every row whose product is at most `margin` below the query's k-th best.

    −1 fills up. The best are sorted out of the first rows alone: few of the others come near those.
    """
    num_queries = len(queries)
    best = np.full((num_queries, k), -np.inf, np.float32)  # the k highest products so far
    floor = best[:, 0]  # the lowest of them
    # What is near the best so far, as three arrays a block: the query, the chunk's row, the product.
    near_queries = [np.empty(0, int)]
    near_rows = [np.empty(0, int)]
    near_products = [np.empty(0, np.float32)]

    for number, (start, block) in enumerate(embeddings.blocks(rows, _CHUNK_BLOCK)):
        products = queries @ block.T
        # An excluded row is near nothing.
        is_here = (exclude >= start) & (exclude < start + len(block))
        excluding = np.flatnonzero(is_here)
        products[excluding, exclude[excluding] - start] = -np.inf
        if number == 0:  # a floor to begin with, from a sort of few products
            first = np.concatenate([best, products[:, :_NUM_FIRST]], axis=1)
            floor = _top(first, k).min(axis=1)

        # Keep what is near, and raise the floor by it.
        is_near = products >= (floor - margin)[:, None]
        query, place = np.divmod(np.flatnonzero(is_near), len(block))
        near_queries.append(query)
        near_rows.append(place + start)
        near_products.append(products[query, place])
        table = _table(query, near_products[-1], num_queries, -np.inf)
        best = _top(np.concatenate([best, table], axis=1), k)
        floor = best.min(axis=1)

    # What was near an early floor may be far below the last one.
    query = np.concatenate(near_queries)
    row = np.concatenate(near_rows)
    product = np.concatenate(near_products)
    lowest = (floor - margin)[query]
    is_near = (product >= lowest) & np.isfinite(product)
    query = query[is_near]
    row = row[is_near].astype(np.int32)
    order = np.argsort(query, kind="stable")
    return _table(query[order], row[order], num_queries, -1)


def _table(
    query_index: Int[np.ndarray, " n"],
    values: np.ndarray,
    num_queries: int,
    fill: int | float,
) -> np.ndarray:
    """Each query's values in a row of its own, `fill` after the last; `query_index` is sorted.

    >>> _table(np.array([0, 2, 2]), np.array([5, 6, 7]), 3, fill=-1).tolist()
    [[5, -1], [-1, -1], [6, 7]]
    """
    # A value's column is its place among the values of its query.
    counts = np.bincount(query_index, minlength=num_queries)
    starts = np.cumsum(counts) - counts
    columns = np.arange(len(values)) - starts[query_index]
    width = counts.max(initial=0)
    table = np.full((num_queries, width), fill, values.dtype)
    table[query_index, columns] = values
    return table


def _top(
    scores: Float[np.ndarray, "Q n"],
    k: int,
) -> Float[np.ndarray, "Q m"]:
    """The k highest of each row, in any order; all of a shorter row."""
    if scores.shape[1] <= k:
        return scores
    return np.partition(scores, -k, axis=1)[:, -k:]
