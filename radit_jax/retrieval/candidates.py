"""The chunks that examples retrieve: a corpus example neither its own nor one that gives its answer away."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from radit_jax.data.artifacts.corpus import Chunks
from radit_jax.data.overlap import SPARE_CANDIDATES, without_copies
from radit_jax.data.records import Example
from radit_jax.retrieval.search import Searcher


def search_examples(
    searcher: Searcher, chunks: Chunks, examples: Sequence[Example], sources: Int[np.ndarray, " E"], k: int
) -> tuple[Int[np.ndarray, "E K"], Float[np.ndarray, "E K"], int]:
    """Rows and scores of each example's top k chunks, best first, and how many were left out as copies.

    `sources` are the rows of the chunks that corpus examples were cut from, −1 elsewhere. An example with a
    Background of its own retrieves nothing: its rows are −1, as are places that no chunk is left for.
    """
    rows, scores = np.full((len(examples), k), -1), np.zeros((len(examples), k), np.float32)
    asks = np.array([example.background is None for example in examples], bool)
    tasks, texts = np.flatnonzero(asks & (sources < 0)), np.flatnonzero(asks & (sources >= 0))
    if len(tasks):
        rows[tasks], scores[tasks] = searcher.search([examples[n].query for n in tasks.tolist()], k)
    if not len(texts):
        return rows, scores, 0
    some = [examples[n] for n in texts.tolist()]
    depth = min(k + SPARE_CANDIDATES, len(chunks) - 1)
    found = searcher.search([example.query for example in some], max(k, depth), exclude=sources[texts])
    rows[texts], scores[texts], num_copies = without_copies(some, sources[texts], *found, chunks, k)
    return rows, scores, num_copies
