"""Maximum inner product search over chunk embeddings: exact, or ScaNN's trees for large corpora.

Both return the same thing: for each query the k chunks with the highest retrieval scores (Eq. 1), highest
first and the lower row first among equals, with the scores themselves. ScaNN only proposes rows; scores
and order always come from the stored embeddings, so that nothing downstream sees its approximations.

An index of a large corpus has several shards. Each shard has its own tree, and a query's answer is the best
of what all of them find. Each of several processes searches its own shards, and all get the same answer.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from radit_jax.command_line import run_stage
from radit_jax.config import IndexConfig
from radit_jax.retrieval.embeddings import Embeddings, Queries, Vectors, as_embeddings
from radit_jax.retrieval.exact import FACTS, ExactIndex, ExcludedRows, check_finite, check_search
from radit_jax.retrieval.ranking import Candidates, Ranked, Rows, merge_hosts, rank, split
from radit_jax.retrieval.scann import MIN_CHUNKS, ScannShards, has_scann, num_leaves
from radit_jax.runtime.distributed.mesh import sum_hosts
from radit_jax.runtime.storage.stage_folder import StageFolder

FoundRows = Int[np.ndarray, "Q F"]
SMALL_CORPUS = 20_000  # chunks below which exact search is as fast as ScaNN's

_TUNING_K = 10  # the k of the recall that ScaNN is tuned to
_NUM_REORDERED = 70  # chunks whose codes are put in order by finer products, unless that is too few
_NUM_SPARE = 4  # proposals beyond k: one may be excluded, and ScaNN's order is of int8
# Facts of an index that are positive integers; an exact one has only the first.
_COUNTS = ("num_chunks", "shards", "num_leaves", "leaves_to_search", "reorder")


class ScannIndex:
    """Shards with a tree each. A query searches some leaves of each; what they propose is scored exactly.

    `facts` say what was built (`kind`, `num_chunks`, `shards`, `num_leaves` of the largest shard), how it is
    searched (`leaves_to_search`, `reorder`: how many chunks are put in order by finer products), and how well
    (`recall@10` on `held_out_queries` queries).
    """

    def __init__(self, exact: ExactIndex, trees: ScannShards, facts: dict[str, Any]):
        self.embeddings = exact.embeddings
        self.facts = facts
        self._trees = trees
        self._exact = exact

    def search(
        self,
        queries: Queries,
        k: int,
        exclude: ExcludedRows | None = None,
    ) -> Ranked:
        """As `ExactIndex.search`, but a query may miss a chunk: see `facts["recall@10"]`."""
        return merge_hosts(self.search_part(queries, k, exclude))

    def search_part(
        self,
        queries: Queries,
        k: int,
        exclude: ExcludedRows | None = None,
    ) -> Ranked:
        """As `ExactIndex.search_part`."""
        check_search(queries, k, exclude, len(self.embeddings))
        num_queries = len(queries)
        if not num_queries:  # ScaNN refuses these
            return Ranked.empty(0, k)
        if exclude is None:
            exclude = np.full(num_queries, -1)

        # 1) Rank what this process's shards propose.
        no_rows = np.empty((num_queries, 0), np.int32)  # for a process without a shard
        proposed = [self._propose(number, queries, k) for number in self._trees.own]
        candidates = np.hstack([no_rows, *proposed])
        candidates[candidates == exclude[:, None]] = -1
        ranked = rank(self.embeddings, queries, candidates, k)

        # 2) Where the searched leaves of all processes held fewer than k chunks, search exactly.
        num_found = sum_hosts((ranked.rows >= 0).sum(axis=1))
        short = np.flatnonzero(num_found < k)
        if len(short):
            searched_exactly = self._exact.search_part(queries[short], k, exclude[short])
            ranked.put(short, searched_exactly)
        return ranked

    def _propose(self, number: int, queries: Queries, k: int) -> Candidates:
        """Rows of one shard for each query; −1 where its leaves hold too few."""
        # A small shard has fewer leaves, and may have fewer chunks, than the facts are about.
        shard = self._trees.shards[number]
        num_proposed = min(k + _NUM_SPARE, len(shard))
        rows = self._trees[number].search(
            queries,
            num_proposed,
            leaves=min(self.facts["leaves_to_search"], num_leaves(len(shard))),
            reorder=max(self.facts["reorder"], 4 * num_proposed),
        )
        # The tree counts from the shard's start.
        return np.where(rows < 0, rows, rows + shard.start)

    def save(self, folder: StageFolder) -> None:
        """Write what `load_index` needs besides the embeddings."""
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

    `auto` takes ScaNN from 20,000 chunks on. The index's `facts` say what was built and its recall. There
    is no seed: equal embeddings and queries give equal indexes. With a `folder` no more than one shard of at
    most `shard_size` chunks is in memory while trees are built, and trees that a killed build left are used.
    """
    embeddings = as_embeddings(embeddings)
    num_chunks = len(embeddings)
    if not num_chunks:
        raise ValueError("index: expected at least one chunk, got 0. Look at the corpus.")
    check_finite("chunks", embeddings, together=True)

    # A small corpus is searched exactly; so is a large one where ScaNN is not installed.
    exact = ExactIndex(embeddings, devices)
    is_exact = kind == "exact" or (kind == "auto" and num_chunks < SMALL_CORPUS)
    if is_exact or not _can_use_scann():
        return exact

    # Cut the corpus into as few shards of like length as the shard size allows.
    if not len(held_out):
        raise ValueError("index: expected queries to tune ScaNN with, got 0. Set index.kind=exact.")
    num_shards = -(-num_chunks // shard_size)
    shards = split(num_chunks, num_shards)
    sizes = [len(shard) for shard in shards]
    if min(sizes) < MIN_CHUNKS:
        raise ValueError(
            f"index: expected shards of {MIN_CHUNKS} chunks or more for ScaNN, got {min(sizes)}. "
            f"Raise index.shard_size, or set index.kind=exact."
        )

    # Build a tree of each shard, and tune how all of them are searched.
    trees = ScannShards(shards, folder)
    trees.build(embeddings)
    facts = {
        "kind": "scann",
        "num_chunks": num_chunks,
        "shards": num_shards,
        "num_leaves": num_leaves(max(sizes)),
    }
    index = ScannIndex(exact, trees, facts)
    _tune(index, exact, held_out, target_recall)
    return index


def load_index(
    folder: StageFolder,
    embeddings: Embeddings | Vectors,
    devices: Sequence[Any] = (),
) -> Index:
    """The index that was saved in `folder`, over the embeddings it was built from."""
    # The facts may be another's, or of another corpus.
    facts = folder.read_json(FACTS)
    if not _are_facts(facts):
        raise ValueError(
            f"{folder.home / FACTS}: expected the facts of an index, got {str(facts)[:80]}. "
            f"Delete the folder and run {run_stage('index')}."
        )
    num_chunks = len(embeddings)
    if facts["num_chunks"] != num_chunks:
        raise ValueError(
            f"{folder}: expected an index of {num_chunks} chunks, got one of {facts['num_chunks']}. "
            f"Delete it and run {run_stage('index')}."
        )

    # The shards follow from their number.
    exact = ExactIndex(embeddings, devices)
    if facts["kind"] == "exact" or not _can_use_scann():
        return exact
    shards = split(num_chunks, facts["shards"])
    return ScannIndex(exact, ScannShards(shards, folder), facts)


def index_files(folder: StageFolder) -> list[str]:
    """The names of what `load_index` reads from a finished stage's folder."""
    return [name for name in folder.manifest["files"] if name.startswith("index/")]


def neighbour_recall(found: FoundRows, nearest: Rows) -> float:
    """The share of the `nearest` rows that are among the `found` ones, mean over the queries.

    >>> neighbour_recall(np.array([[1, 2], [5, 6]]), np.array([[2, 3], [6, 5]]))
    0.75
    """
    return float(_recalls(found, nearest).mean())


def _recalls(found: FoundRows, nearest: Rows) -> Float[np.ndarray, " Q"]:
    """Each query's share of the `nearest` rows that are among the `found` ones."""
    # [Q, K, F]: every nearest row next to every found one.
    is_same = nearest[:, :, None] == found[:, None, :]
    return is_same.any(axis=2).mean(axis=1)


def _tune(
    index: ScannIndex,
    exact: ExactIndex,
    held_out: Queries,
    target_recall: float,
) -> None:
    """Set the fewest leaves that reach the recall; where all of them do not, a deeper reordering.

    The recall has to be two standard errors above the target, so that other queries reach it too.
    """
    num_chunks = len(index.embeddings)
    all_leaves = index.facts["num_leaves"]
    k = min(_TUNING_K, num_chunks)
    nearest = exact.search(held_out, k).rows

    def reaches(leaves: int, reorder: int) -> bool:
        """Set both, measure the recall, and compare it with the target."""
        index.facts |= {"leaves_to_search": leaves, "reorder": reorder}
        recalls = _recalls(index.search(held_out, k).rows, nearest)
        recall = recalls.mean()
        index.facts |= {"recall@10": float(recall), "held_out_queries": len(held_out)}
        standard_error = recalls.std() / math.sqrt(len(recalls))
        return bool(recall - 2 * standard_error >= target_recall)

    # Raise the leaves by a fifth until they suffice, then double the reordering.
    too_few = 0
    leaves = max(1, all_leaves // 20)
    reorder = _NUM_REORDERED
    while not reaches(leaves, reorder):
        if leaves == all_leaves and reorder >= num_chunks:
            return
        if leaves < all_leaves:
            too_few = leaves
            leaves = min(all_leaves, math.ceil(leaves * 1.2))
        else:
            reorder *= 2

    # Halve the distance to what was too few, down to 2 % of the leaves.
    while leaves - too_few > max(1, leaves // 50):
        between = (too_few + leaves) // 2
        if reaches(between, reorder):
            leaves = between
        else:
            too_few = between
    reaches(leaves, reorder)


def _are_facts(facts: Any) -> bool:
    """Whether `facts` say all that an index of their kind is loaded by."""
    if not isinstance(facts, dict) or facts.get("kind") not in ("exact", "scann"):
        return False
    names = _COUNTS if facts["kind"] == "scann" else _COUNTS[:1]
    for name in names:
        count = facts.get(name)
        if type(count) is not int or count <= 0:
            return False
    return True


def _can_use_scann() -> bool:
    """Whether ScaNN is installed; a warning where it is not."""
    if has_scann():
        return True
    logging.getLogger(__name__).warning("index: ScaNN has no package here, so exact search serves")
    return False
