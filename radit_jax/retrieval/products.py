"""The highest products of queries with many embeddings, on the devices of one process.

The embeddings are cut over the devices; each makes its products in float32 and keeps its best, of which the
best are the answer. What fits the devices at once stays there, more goes through them in turns.
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
from radit_jax.retrieval.ranking import Ranked, merge
from radit_jax.runtime.distributed import processes

MIN_CHUNKS = 20_000  # a smaller corpus is searched faster than a program is compiled
_QUERY_BLOCK = 512  # with the rows below, products take up to 512 MiB of a device
_MAX_ROWS, _MAX_BYTES = 1 << 18, 1 << 30  # of embeddings that a device has at once


def search_devices(mesh: Mesh, num_chunks: int) -> tuple[Any, ...]:
    """This process's devices of `mesh`, for a corpus of that size; none where numpy is as good."""
    devices = tuple(mesh.local_devices)
    is_cpu = len(devices) == 1 and devices[0].platform == "cpu"
    return () if is_cpu or num_chunks < MIN_CHUNKS else devices


class DeviceProducts:
    """The products with the embeddings of `rows`."""

    def __init__(self, embeddings: Embeddings, rows: range, devices: Sequence[Any]):
        self.rows = rows
        self._embeddings = embeddings
        self._mesh = jax.make_mesh((len(devices),), ("rows",), (AxisType.Auto,), devices=list(devices))
        most = min(_MAX_ROWS, _MAX_BYTES // (4 * embeddings.shape[1]))
        self._turn = min(most, -(-len(rows) // len(devices))) * len(devices)  # rows
        self._resident = self._place(rows) if len(rows) <= self._turn else None

    def best(self, queries: Queries, k: int) -> Ranked:
        """The k highest products of each query, highest first, as floats have them; −inf where none is."""
        found = Ranked.empty(len(queries), k)
        for rows, placed in self._turns():
            for start in range(0, len(queries), _QUERY_BLOCK):
                processes.stop_if_asked("a search")
                some = slice(start, start + _QUERY_BLOCK)
                products, at = self._best_of(queries[some], placed, len(rows), k)
                part = Ranked(np.where(np.isfinite(products), at + rows.start, -1), products)
                found.put(some, merge(Ranked(found.rows[some], found.scores[some]), part))
        return found

    def _best_of(
        self, queries: Queries, placed: Float[Array, "n D"], count: int, k: int
    ) -> tuple[Float[np.ndarray, "Q K"], Int[np.ndarray, "Q K"]]:
        """Of one block of queries, padded to one of few sizes, and the rows of one turn."""
        size = min(_QUERY_BLOCK, max(8, 1 << (len(queries) - 1).bit_length()))
        padded = np.zeros((size, queries.shape[1]), np.float32)
        padded[: len(queries)] = queries
        found = _best_products(padded, placed, count, k, self._mesh)
        products, at = (np.asarray(array)[: len(queries)] for array in found)
        missing = ((0, 0), (0, k - products.shape[1]))  # where there are fewer rows than k
        return np.pad(products, missing, constant_values=-np.inf), np.pad(at, missing)

    def _turns(self) -> Iterator[tuple[range, Float[Array, "n D"]]]:
        if self._resident is not None:
            yield self.rows, self._resident
            return
        for start in range(self.rows.start, self.rows.stop, self._turn):
            rows = range(start, min(start + self._turn, self.rows.stop))
            yield rows, self._place(rows)

    def _place(self, rows: range) -> Float[Array, "n D"]:
        """The embeddings of `rows` over the devices, zeros behind the last."""
        shape = (self._turn, self._embeddings.shape[1])

        def part(index: Any) -> Vectors:
            wanted = range(self._turn)[index[0]]
            start, stop = (min(rows.start + bound, rows.stop) for bound in (wanted.start, wanted.stop))
            taken = self._embeddings.take(range(start, stop))
            return np.pad(taken, ((0, len(wanted) - len(taken)), (0, 0)))

        return jax.make_array_from_callback(shape, NamedSharding(self._mesh, P("rows")), part)


@functools.partial(jax.jit, static_argnames=("k", "mesh"))
def _best_products(
    queries: Float[Array, "Q D"], embeddings: Float[Array, "n D"], count: Int[Array, ""], k: int, mesh: Mesh
) -> tuple[Float[Array, "Q K"], Int[Array, "Q K"]]:
    """The k highest products of each query with the first `count` embeddings, and where those are."""

    def best_of_device(
        queries: Float[Array, "Q D"], embeddings: Float[Array, "m D"]
    ) -> tuple[Float[Array, "Q _"], Int[Array, "Q _"]]:
        own = jax.lax.axis_index("rows") * len(embeddings) + jnp.arange(len(embeddings))
        products = jnp.matmul(queries, embeddings.T, precision=jax.lax.Precision.HIGHEST)
        products = jnp.where((own < count)[None], products, -jnp.inf)
        best, at = jax.lax.top_k(products, min(k, len(embeddings)))
        return best, own[at]

    spread = jax.shard_map(best_of_device, mesh=mesh, in_specs=(P(), P("rows")), out_specs=P(None, "rows"))
    products, at = spread(queries, embeddings)
    best, places = jax.lax.top_k(products, min(k, products.shape[1]))
    return best, jnp.take_along_axis(at, places, axis=1)
