"""The highest products of queries with many embeddings, on the devices of one process.

The embeddings are cut over the devices. Each device makes its products in float32 and keeps its best, and the
best of those are the answer. Embeddings that fit the devices at once stay there; more pass through in turns.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from radit_jax.retrieval.embeddings import Embeddings, Queries, Vectors
from radit_jax.retrieval.ranking import Ranked, Rows, Scores, merge
from radit_jax.runtime.distributed import processes

MIN_CHUNKS = 20_000  # a smaller corpus is searched faster than a program is compiled
_QUERY_BLOCK = 512  # with the rows below, products take up to 512 MiB of a device
# Embeddings that a device has at once:
_MAX_ROWS = 1 << 18
_MAX_BYTES = 1 << 30


def search_devices(mesh: Mesh, num_chunks: int) -> tuple[Any, ...]:
    """This process's devices of `mesh`, for a corpus of that size; none where numpy is as good."""
    devices = tuple(mesh.local_devices)
    is_one_cpu = len(devices) == 1 and devices[0].platform == "cpu"
    if is_one_cpu or num_chunks < MIN_CHUNKS:
        return ()
    return devices


class DeviceProducts:
    """The products of queries with the embeddings of `rows`."""

    def __init__(
        self,
        embeddings: Embeddings,
        rows: range,
        devices: Sequence[Any],
    ):
        self.rows = rows
        self._embeddings = embeddings
        num_devices = len(devices)
        self._mesh = jax.make_mesh(
            (num_devices,),
            ("rows",),
            (AxisType.Auto,),
            devices=list(devices),
        )

        # A turn is as many rows as the devices have at once, the same number on each.
        row_bytes = 4 * embeddings.shape[1]
        max_rows = min(_MAX_ROWS, _MAX_BYTES // row_bytes)
        rows_per_device = -(-len(rows) // num_devices)
        self._rows_per_turn = min(max_rows, rows_per_device) * num_devices
        fits_at_once = len(rows) <= self._rows_per_turn
        self._resident = self._place(rows) if fits_at_once else None

    def best(self, queries: Queries, k: int) -> Ranked:
        """The k highest products of each query, highest first, as devices round them; −inf fills up."""
        # Merge each turn's best into the best so far.
        best = Ranked.empty(len(queries), k)
        for rows, placed in self._turns():
            for start in range(0, len(queries), _QUERY_BLOCK):
                processes.stop_if_asked("a search")
                block = slice(start, start + _QUERY_BLOCK)
                products, places = self._best_of_turn(
                    queries[block],
                    placed,
                    len(rows),
                    k,
                )
                is_real = np.isfinite(products)
                rows_of_turn = np.where(is_real, places + rows.start, -1)
                best_of_turn = Ranked(rows_of_turn, products)
                best_before = Ranked(best.rows[block], best.scores[block])
                best.put(block, merge(best_before, best_of_turn))
        return best

    def _best_of_turn(
        self,
        queries: Queries,
        placed: Float[Array, "n D"],
        num_rows: int,
        k: int,
    ) -> tuple[Scores, Rows]:
        """Products of one block of queries with the rows of one turn, and the places of those rows in it."""
        # Pad the queries to one of few sizes, so that few programs are compiled.
        num_queries, width = queries.shape
        next_power = 1 << (num_queries - 1).bit_length()
        padded_size = min(_QUERY_BLOCK, max(8, next_power))
        padded = np.zeros((padded_size, width), np.float32)
        padded[:num_queries] = queries

        best = _best_products(padded, placed, num_rows, k, self._mesh)
        products, places = (np.asarray(array)[:num_queries] for array in best)

        # A turn of fewer rows than k has fewer products.
        missing = ((0, 0), (0, k - products.shape[1]))
        products = np.pad(products, missing, constant_values=-np.inf)
        return products, np.pad(places, missing)

    def _turns(self) -> Iterator[tuple[range, Float[Array, "n D"]]]:
        """The rows of each turn, and their embeddings on the devices."""
        # All rows at once, which have been on the devices since the start.
        if self._resident is not None:
            yield self.rows, self._resident
            return
        # Otherwise one turn replaces the other.
        for start in range(self.rows.start, self.rows.stop, self._rows_per_turn):
            stop = min(start + self._rows_per_turn, self.rows.stop)
            rows = range(start, stop)
            yield rows, self._place(rows)

    def _place(self, rows: range) -> Float[Array, "n D"]:
        """The embeddings of `rows` over the devices, zeros after the last."""
        shape = self._rows_per_turn, self._embeddings.shape[1]
        sharding = NamedSharding(self._mesh, P("rows"))

        def part(index: Any) -> Vectors:
            """What one device has."""
            # The last turn may have fewer rows than places.
            places = range(self._rows_per_turn)[index[0]]
            start = min(rows.start + places.start, rows.stop)
            stop = min(rows.start + places.stop, rows.stop)
            vectors = self._embeddings.take(range(start, stop))
            num_missing = len(places) - len(vectors)
            return np.pad(vectors, ((0, num_missing), (0, 0)))

        return jax.make_array_from_callback(shape, sharding, part)


@functools.partial(jax.jit, static_argnames=("k", "mesh"))
def _best_products(
    queries: Float[Array, "Q D"],
    embeddings: Float[Array, "n D"],
    num_rows: Int[Array, ""],
    k: int,
    mesh: Mesh,
) -> tuple[Float[Array, "Q K"], Int[Array, "Q K"]]:
    """The k highest products of each query with the first `num_rows` embeddings, and the places of those."""

    def best_of_device(
        queries: Float[Array, "Q D"],
        embeddings: Float[Array, "m D"],
    ) -> tuple[Float[Array, "Q _"], Int[Array, "Q _"]]:
        # Places count over all devices; those after the last row hold zeros and must not win.
        first = jax.lax.axis_index("rows") * len(embeddings)
        places = first + jnp.arange(len(embeddings))
        products = jnp.matmul(
            queries,
            embeddings.T,
            precision=jax.lax.Precision.HIGHEST,
        )
        is_real = places < num_rows
        products = jnp.where(is_real[None], products, -jnp.inf)
        best, at = jax.lax.top_k(products, min(k, len(embeddings)))
        return best, places[at]

    # Each device's best, next to each other, and the best of those.
    best_of_devices = jax.shard_map(
        best_of_device,
        mesh=mesh,
        in_specs=(P(), P("rows")),
        out_specs=P(None, "rows"),
    )
    products, places = best_of_devices(queries, embeddings)
    num_products = products.shape[1]
    best, at = jax.lax.top_k(products, min(k, num_products))
    return best, jnp.take_along_axis(places, at, axis=1)
