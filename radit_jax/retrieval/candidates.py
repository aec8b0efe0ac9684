"""The chunks that examples retrieve: a corpus example neither its own nor one that gives its answer away."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.records import Example
from radit_jax.retrieval.copied_answers import SPARE_CANDIDATES, without_copies
from radit_jax.retrieval.search import Searcher


def search_examples(
    searcher: Searcher,
    chunks: Chunks,
    examples: Sequence[Example],
    sources: Int[np.ndarray, " E"],
    k: int,
) -> tuple[Int[np.ndarray, "E K"], Float[np.ndarray, "E K"], int]:
    """Rows and scores of each example's top k chunks, best first, and how many were left out as copies.

    `sources` are the rows of the chunks that corpus examples were cut from, −1 elsewhere. An example with a
    Background of its own retrieves nothing: its rows are −1, as are places that no chunk is left for.
    """
    # Places that stay as they are have no chunk.
    shape = len(examples), k
    rows = np.full(shape, -1)
    scores = np.zeros(shape, np.float32)
    has_no_background = [example.background is None for example in examples]
    needs_chunks = np.array(has_no_background, bool)

    # 1) Examples of datasets: the best chunks.
    from_datasets = np.flatnonzero(needs_chunks & (sources < 0))
    if len(from_datasets):
        queries = [examples[place].query for place in from_datasets.tolist()]
        rows[from_datasets], scores[from_datasets] = searcher.search(queries, k)

    # 2) Examples of the corpus: the best chunks except their own, with spares in place of copies.
    from_corpus = np.flatnonzero(needs_chunks & (sources >= 0))
    if not len(from_corpus):
        return rows, scores, 0
    corpus_examples = [examples[place] for place in from_corpus.tolist()]
    queries = [example.query for example in corpus_examples]
    own_chunks = sources[from_corpus]
    depth = min(k + SPARE_CANDIDATES, len(chunks) - 1)
    candidates = searcher.search(queries, max(k, depth), exclude=own_chunks)
    rows[from_corpus], scores[from_corpus], num_copies = without_copies(
        corpus_examples,
        own_chunks,
        *candidates,
        chunks,
        k,
    )
    return rows, scores, num_copies
