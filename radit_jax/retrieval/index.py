"""Maximum inner product search over chunk embeddings: exact, or ScaNN's tree for large corpora.

Both return the same thing: for each query the k chunks with the highest retrieval scores (Eq. 1), highest
first and the lower row first among equals, with the scores themselves. ScaNN only proposes rows; scores
and order always come from the stored embeddings, so that nothing downstream sees its approximations.
"""

import contextlib
import json
import logging
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

SMALL_CORPUS = 20_000  # chunks below which exact search is as fast as ScaNN's
_QUERY_BLOCK, _CHUNK_BLOCK = 512, 16_384  # one block of scores takes 32 MB
_TUNING_K = 10  # the k of the recall that ScaNN is tuned to

Queries = Float[np.ndarray, "Q D"]
Embeddings = Float[np.ndarray, "C D"]
Rows = Int[np.ndarray, "Q K"]


class ExactIndex:
    """Exact search in blocks of float32 products."""

    def __init__(self, embeddings: Embeddings):
        self.embeddings = embeddings
        self.facts: dict[str, Any] = {"kind": "exact", "num_chunks": len(embeddings), "recall@10": 1.0}

    def search(
        self, queries: Queries, k: int, exclude: Int[np.ndarray, " Q"] | None = None
    ) -> tuple[Rows, Float[np.ndarray, "Q K"]]:
        """Rows and float32 scores of each query's k best chunks.

        `exclude` names one row for each query that must not be returned; −1 excludes none.
        """
        _check_k(k, len(self.embeddings), exclude)
        _check_finite("queries", queries)
        exclude = np.full(len(queries), -1) if exclude is None else exclude
        rows, scores = np.empty((len(queries), k), np.int32), np.empty((len(queries), k), np.float32)
        for start in range(0, len(queries), _QUERY_BLOCK):
            block = slice(start, start + _QUERY_BLOCK)
            rows[block], scores[block] = _exact_block(self.embeddings, queries[block], k, exclude[block])
        return rows, scores

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes what `load` needs beside the embeddings."""
        _write_facts(folder, self.facts)


class ScannIndex:
    """ScaNN: a tree of √C leaves, anisotropic hashing in the leaves that are searched, exact reordering."""

    def __init__(self, embeddings: Embeddings, searcher: Any, facts: dict[str, Any]):
        self.embeddings, self.facts = embeddings, facts
        self._searcher = searcher
        self._exact = ExactIndex(embeddings)

    def search(
        self, queries: Queries, k: int, exclude: Int[np.ndarray, " Q"] | None = None
    ) -> tuple[Rows, Float[np.ndarray, "Q K"]]:
        """As `ExactIndex.search`, but a query may miss a chunk: see `facts["recall@10"]`."""
        _check_k(k, len(self.embeddings), exclude)
        _check_finite("queries", queries)
        if not len(queries):  # which ScaNN refuses
            return self._exact.search(queries, k)
        exclude = np.full(len(queries), -1) if exclude is None else exclude
        wanted = min(k + 1, len(self.embeddings))  # one may be excluded
        rows, proposed = self._searcher.search_batched_parallel(
            np.ascontiguousarray(queries, np.float32),
            final_num_neighbors=wanted,
            pre_reorder_num_neighbors=max(self.facts["reorder"], 4 * wanted),
            leaves_to_search=self.facts["leaves_to_search"],
        )
        rows = rows.astype(np.int32)
        # Where the searched leaves hold too few chunks, ScaNN fills up with row 0 and a score of NaN.
        real = ~np.isnan(proposed) & (rows != exclude[:, None])
        enough = real.sum(axis=1) >= k
        query_index, slots = np.nonzero(real[enough])
        best, scores = np.empty((len(queries), k), np.int32), np.empty((len(queries), k), np.float32)
        best[enough], scores[enough] = _rank(
            self.embeddings, queries[enough], query_index, rows[enough][query_index, slots], k
        )
        best[~enough], scores[~enough] = self._exact.search(queries[~enough], k, exclude[~enough])
        return best, scores

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes what `load` needs beside the embeddings."""
        _write_facts(folder, self.facts)
        self._searcher.serialize(os.fspath(folder), relative_path=True)


Index = ExactIndex | ScannIndex


def build(
    embeddings: Embeddings,
    held_out: Queries,
    *,
    kind: Literal["auto", "exact", "scann"] = "auto",
    target_recall: float = 0.95,
) -> Index:
    """An index of the chunks, tuned until recall@10 on the `held_out` queries reaches the target.

    `auto` takes ScaNN from 20,000 chunks on. The index' `facts` say what was built and its recall. There
    is no seed: equal embeddings and queries give equal indexes.
    """
    if not len(embeddings):
        raise ValueError("index: 0 chunks came, at least one is needed; look at the corpus")
    _check_finite("chunks", embeddings)
    if kind == "exact" or (kind == "auto" and len(embeddings) < SMALL_CORPUS):
        return ExactIndex(embeddings)
    scann = _import_scann()
    if scann is None:
        logging.getLogger(__name__).warning("index: ScaNN has no package here, so exact search serves")
        return ExactIndex(embeddings)
    if not len(held_out):
        raise ValueError("index: 0 queries to tune ScaNN with came, some are needed; set index.kind=exact")
    num_leaves = max(1, round(math.sqrt(len(embeddings))))
    # k-means++ and not ScaNN's default, a random start, with which two builds give different trees.
    builder = (
        scann.builder(embeddings, _TUNING_K, "dot_product")
        .tree(num_leaves, num_leaves, training_sample_size=100_000, random_init=False)
        .score_ah(2, anisotropic_quantization_threshold=0.2)
        .reorder(100)
    )
    with _quiet_stderr():
        searcher = builder.build()
    facts = {"kind": "scann", "num_chunks": len(embeddings), "num_leaves": num_leaves}
    return _tune(ScannIndex(embeddings, searcher, facts), held_out, target_recall)


def load(folder: str | os.PathLike[str], embeddings: Embeddings) -> Index:
    """The index that was saved in `folder`, over the embeddings it was built from."""
    facts = json.loads((pathlib.Path(folder) / "index.json").read_text())
    if facts["num_chunks"] != len(embeddings):
        raise ValueError(
            f"{folder}: an index of {facts['num_chunks']} chunks came, needed is one of {len(embeddings)}; "
            f"delete it and rerun --stage=index"
        )
    if facts["kind"] == "exact":
        return ExactIndex(embeddings)
    scann = _import_scann()
    if scann is None:
        logging.getLogger(__name__).warning("index: ScaNN has no package here, so exact search serves")
        return ExactIndex(embeddings)
    with _quiet_stderr():
        return ScannIndex(embeddings, scann.load_searcher(os.fspath(folder)), facts)


def recall_at_k(found: Int[np.ndarray, "Q F"], wanted: Int[np.ndarray, "Q K"]) -> float:
    """The share of `wanted` rows that are among the `found` ones, mean over the queries.

    >>> recall_at_k(np.array([[1, 2], [5, 6]]), np.array([[2, 3], [6, 5]]))
    0.75
    """
    return float(_recalls(found, wanted).mean())


def _recalls(found: Int[np.ndarray, "Q F"], wanted: Int[np.ndarray, "Q K"]) -> Float[np.ndarray, " Q"]:
    return (wanted[:, :, None] == found[:, None, :]).any(axis=2).mean(axis=1)


def _tune(index: ScannIndex, held_out: Queries, target_recall: float) -> ScannIndex:
    """Searches more leaves, then reorders more of what they hold, until the recall is reached.

    The recall has to be two standard errors above the target, so that other queries reach it too.
    """
    k = min(_TUNING_K, len(index.embeddings))
    wanted, _ = ExactIndex(index.embeddings).search(held_out, k)
    num_leaves, leaves, reorder = index.facts["num_leaves"], max(1, index.facts["num_leaves"] // 20), 200
    while True:
        index.facts |= {"leaves_to_search": leaves, "reorder": reorder}
        recalls = _recalls(index.search(held_out, k)[0], wanted)
        reached = recalls.mean() - 2 * recalls.std() / math.sqrt(len(recalls)) >= target_recall
        if reached or (leaves == num_leaves and reorder >= len(index.embeddings)):
            index.facts |= {"recall@10": float(recalls.mean()), "held_out_queries": len(held_out)}
            return index
        if leaves < num_leaves:
            leaves = min(num_leaves, math.ceil(leaves * 1.4))
        else:
            reorder *= 2


def _exact_block(
    embeddings: Embeddings, queries: Queries, k: int, exclude: Int[np.ndarray, " Q"]
) -> tuple[Rows, Float[np.ndarray, "Q K"]]:
    """Exact search for one block of queries.

    Blocked products round differently from one shape to another, so they only narrow the choice: every
    chunk that the rounding could have kept from the best k is scored again by itself.
    """
    kth = np.full((len(queries), k), -np.inf, np.float32)  # the best k products so far
    margin = _rounding_bound(embeddings, queries)
    query_index, rows, products = [], [], []
    for start in range(0, len(embeddings), _CHUNK_BLOCK):
        block = embeddings[start : start + _CHUNK_BLOCK]
        scores = queries @ block.T
        own = np.flatnonzero((exclude >= start) & (exclude < start + len(block)))
        scores[own, exclude[own] - start] = -np.inf
        kth = _top(np.concatenate([kth, _top(scores, k)], axis=1), k)
        near = np.nonzero(scores >= (kth.min(axis=1) - margin)[:, None])
        query_index.append(near[0])
        rows.append(near[1] + start)
        products.append(scores[near])
    query_index, rows, products = (np.concatenate(parts) for parts in (query_index, rows, products))
    kept = (products >= (kth.min(axis=1) - margin)[query_index]) & np.isfinite(products)
    return _rank(embeddings, queries, query_index[kept], rows[kept], k)


def _rank(
    embeddings: Embeddings,
    queries: Queries,
    query_index: Int[np.ndarray, " n"],
    rows: Int[np.ndarray, " n"],
    k: int,
) -> tuple[Rows, Float[np.ndarray, "Q K"]]:
    """The k best of the candidate rows of each query; candidate i is for query `query_index[i]`.

    Scores are summed in float64 and rounded once: the same wherever and in whatever company.
    """
    scores = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _CHUNK_BLOCK):
        part = slice(start, start + _CHUNK_BLOCK)
        embedded = queries[query_index[part]].astype(np.float64)
        scores[part] = np.einsum("nd,nd->n", embedded, embeddings[rows[part]].astype(np.float64))
    order = np.lexsort((rows, -scores, query_index))
    firsts = np.searchsorted(query_index[order], np.arange(len(queries)))
    chosen = order[firsts[:, None] + np.arange(k)]
    return rows[chosen].astype(np.int32), scores[chosen]


def _top(scores: Float[np.ndarray, "Q n"], k: int) -> Float[np.ndarray, "Q m"]:
    """The k highest of each row, in any order; all of a shorter row."""
    return scores if scores.shape[1] <= k else np.partition(scores, -k, axis=1)[:, -k:]


def _rounding_bound(embeddings: Embeddings, queries: Queries) -> Float[np.ndarray, " Q"]:
    """How far apart two float32 products of a query can be whose exact values are equal."""
    longest = max(np.sqrt(np.einsum("cd,cd->c", b, b).max()) for b in np.array_split(embeddings, 8) if len(b))
    return queries.shape[1] * np.finfo(np.float32).eps * np.linalg.norm(queries, axis=1) * longest


def _check_k(k: int, num_chunks: int, exclude: np.ndarray | None) -> None:
    available = num_chunks - (exclude is not None and bool((exclude >= 0).any()))
    if not 0 < k <= available:
        raise ValueError(
            f"index: {k} chunks a query came, needed are 1 to {available} of a corpus of {num_chunks}; "
            f"lower the number of chunks to retrieve"
        )


def _check_finite(what: str, vectors: Float[np.ndarray, "n D"]) -> None:
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise ValueError(
            f"index: {len(bad)} of {len(vectors)} {what} came with NaN or infinity "
            f"(the first is row {bad[0]}), finite vectors are needed; look at the encoder"
        )


def _write_facts(folder: str | os.PathLike[str], facts: dict[str, Any]) -> None:
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    (pathlib.Path(folder) / "index.json").write_text(json.dumps(facts, indent=1) + "\n")


def _import_scann() -> Any:
    """ScaNN's numpy interface; `None` on systems that it has no wheel for."""
    try:
        from scann.scann_ops.py import scann_ops_pybind
    except ImportError:
        return None
    return scann_ops_pybind


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Drops what C++ code writes to stderr: ScaNN reports phases, and has no setting that stops it."""
    stderr, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nothing)
