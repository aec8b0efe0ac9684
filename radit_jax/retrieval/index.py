"""Maximum inner product search over chunk embeddings: exact, or ScaNN's trees for large corpora.

Both return the same thing: for each query the k chunks with the highest retrieval scores (Eq. 1), highest
first and the lower row first among equals, with the scores themselves. ScaNN only proposes rows; scores
and order always come from the stored embeddings, so that nothing downstream sees its approximations.

A large corpus is an index of shards. Each has a tree of its own, and a query's answer is the best of what all
find. Of several processes each searches its own shards, and all have the same answer.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from radit_jax.config import IndexConfig
from radit_jax.retrieval.embeddings import Embeddings, Queries, Vectors, as_embeddings
from radit_jax.retrieval.exact import FACTS, ExactIndex, check_finite, check_search
from radit_jax.retrieval.ranking import Ranked, merge_hosts, rank, split
from radit_jax.retrieval.scann import MIN_CHUNKS, ScannShards, has_scann, num_leaves
from radit_jax.runtime.storage.stage_folder import StageFolder

SMALL_CORPUS = 20_000  # chunks below which exact search is as fast as ScaNN's
_TUNING_K = 10  # the k of the recall that ScaNN is tuned to
_REORDERED = 70  # chunks whose codes are put in order by finer products, unless that is too few
_SPARE = 4  # proposals beyond k: one may be excluded, and ScaNN's order is of int8


class ScannIndex:
    """Shards with a tree each, of which a query searches some leaves; what they propose is scored exactly."""

    def __init__(self, exact: ExactIndex, trees: ScannShards, facts: dict[str, Any]):
        self.embeddings, self.facts = exact.embeddings, facts
        self._trees, self._exact = trees, exact

    def search(self, queries: Queries, k: int, exclude: Int[np.ndarray, " Q"] | None = None) -> Ranked:
        """As `ExactIndex.search`, but a query may miss a chunk: see `facts["recall@10"]`."""
        check_search(queries, k, exclude, len(self.embeddings))
        if not len(queries):  # which ScaNN refuses
            return Ranked.empty(0, k)
        exclude = np.full(len(queries), -1) if exclude is None else exclude
        proposed = [self._propose(number, queries, k) for number in self._trees.own]
        candidates = np.hstack([np.empty((len(queries), 0), np.int32), *proposed])
        candidates[candidates == exclude[:, None]] = -1
        found = merge_hosts(rank(self.embeddings, queries, candidates, k))
        short = np.flatnonzero(found.rows[:, -1] < 0)
        if len(short):
            found.put(short, self._exact.search(queries[short], k, exclude[short]))
        return found

    def _propose(self, number: int, queries: Queries, k: int) -> Int[np.ndarray, "Q M"]:
        """Rows of one shard for each query; −1 where its leaves hold too few."""
        shard = self._trees.shards[number]
        wanted = min(k + _SPARE, len(shard))
        leaves = min(self.facts["leaves_to_search"], num_leaves(len(shard)))
        reorder = max(self.facts["reorder"], 4 * wanted)
        rows = self._trees[number].near(queries, wanted, leaves, reorder)
        return np.where(rows < 0, rows, rows + shard.start)

    def save(self, folder: StageFolder) -> None:
        """Writes what `load` needs beside the embeddings."""
        self._trees.save(folder)
        folder.write_json(FACTS, self.facts)


Index = ExactIndex | ScannIndex


def build_index(
    embeddings: Embeddings | Vectors,
    held_out: Queries,
    *,
    kind: Literal["auto", "exact", "scann"] = "auto",
    target_recall: float = 0.95,
    shard_size: int = IndexConfig.shard_size,
    folder: StageFolder | None = None,
    devices: Sequence[Any] = (),
) -> Index:
    """An index of the chunks, tuned until recall@10 on the `held_out` queries reaches the target.

    `auto` takes ScaNN from 20,000 chunks on. The index' `facts` say what was built and its recall. There
    is no seed: equal embeddings and queries give equal indexes. With a `folder` no more than one shard of at
    most `shard_size` chunks is in memory while trees are built, and those that a killed build left are taken.
    """
    embeddings = as_embeddings(embeddings)
    if not len(embeddings):
        raise ValueError("index: 0 chunks came, at least one is needed; look at the corpus")
    check_finite("chunks", embeddings)
    exact = ExactIndex(embeddings, devices)
    if kind == "exact" or (kind == "auto" and len(embeddings) < SMALL_CORPUS) or not _can_use_scann():
        return exact
    if not len(held_out):
        raise ValueError("index: 0 queries to tune ScaNN with came, some are needed; set index.kind=exact")
    shards = split(len(embeddings), -(-len(embeddings) // shard_size))
    if min(map(len, shards)) < MIN_CHUNKS:
        raise ValueError(
            f"index: shards of {min(map(len, shards))} chunks came, ScaNN needs {MIN_CHUNKS} or more; "
            "raise index.shard_size, or set index.kind=exact"
        )
    trees = ScannShards(shards, folder)
    trees.build(embeddings)
    leaves = num_leaves(max(map(len, shards)))
    facts = {"kind": "scann", "num_chunks": len(embeddings), "shards": len(shards), "num_leaves": leaves}
    return _tune(ScannIndex(exact, trees, facts), exact, held_out, target_recall)


def load_index(folder: StageFolder, embeddings: Embeddings | Vectors, devices: Sequence[Any] = ()) -> Index:
    """The index that was saved in `folder`, over the embeddings it was built from."""
    facts = folder.read_json(FACTS)
    numbers = ("num_chunks", "shards", "num_leaves", "leaves_to_search", "reorder")
    known = isinstance(facts, dict) and facts.get("kind") in ("exact", "scann")
    wanted = numbers if known and facts["kind"] == "scann" else numbers[:1]
    if not known or not all(type(facts.get(name)) is int and facts[name] > 0 for name in wanted):
        raise ValueError(
            f"{folder.home / FACTS}: expected the facts of an index, got {str(facts)[:80]}. "
            f"Delete the folder and rerun --stage=index."
        )
    if facts["num_chunks"] != len(embeddings):
        raise ValueError(
            f"{folder}: an index of {facts['num_chunks']} chunks came, needed is one of {len(embeddings)}; "
            f"delete it and rerun --stage=index"
        )
    exact = ExactIndex(embeddings, devices)
    if facts["kind"] == "exact" or not _can_use_scann():
        return exact
    return ScannIndex(exact, ScannShards(split(len(embeddings), facts["shards"]), folder), facts)


def index_files(folder: StageFolder) -> list[str]:
    """The names of what `load` reads from a finished stage's folder."""
    return [name for name in folder.manifest["files"] if name.startswith("index/")]


def neighbour_recall(found: Int[np.ndarray, "Q F"], wanted: Int[np.ndarray, "Q K"]) -> float:
    """The share of `wanted` rows that are among the `found` ones, mean over the queries.

    >>> neighbour_recall(np.array([[1, 2], [5, 6]]), np.array([[2, 3], [6, 5]]))
    0.75
    """
    return float(_recalls(found, wanted).mean())


def _recalls(found: Int[np.ndarray, "Q F"], wanted: Int[np.ndarray, "Q K"]) -> Float[np.ndarray, " Q"]:
    return (wanted[:, :, None] == found[:, None, :]).any(axis=2).mean(axis=1)


def _tune(index: ScannIndex, exact: ExactIndex, held_out: Queries, target_recall: float) -> ScannIndex:
    """The fewest leaves that reach the recall; where all of them do not, a deeper reordering.

    The recall has to be two standard errors above the target, so that other queries reach it too.
    """
    k = min(_TUNING_K, len(index.embeddings))
    wanted = exact.search(held_out, k).rows

    def reaches(leaves: int, reorder: int) -> bool:
        index.facts |= {"leaves_to_search": leaves, "reorder": reorder}
        recalls = _recalls(index.search(held_out, k).rows, wanted)
        index.facts |= {"recall@10": float(recalls.mean()), "held_out_queries": len(held_out)}
        return bool(recalls.mean() - 2 * recalls.std() / math.sqrt(len(recalls)) >= target_recall)

    num_leaves, most = index.facts["num_leaves"], len(index.embeddings)
    too_few, leaves, reorder = 0, max(1, num_leaves // 20), _REORDERED
    while not reaches(leaves, reorder):
        if leaves == num_leaves and reorder >= most:
            return index
        if leaves < num_leaves:
            too_few, leaves = leaves, min(num_leaves, math.ceil(leaves * 1.2))
        else:
            reorder *= 2
    while leaves - too_few > max(1, leaves // 50):
        between = (too_few + leaves) // 2
        too_few, leaves = (too_few, between) if reaches(between, reorder) else (between, leaves)
    reaches(leaves, reorder)
    return index


def _can_use_scann() -> bool:
    if not has_scann():
        logging.getLogger(__name__).warning("index: ScaNN has no package here, so exact search serves")
    return has_scann()
