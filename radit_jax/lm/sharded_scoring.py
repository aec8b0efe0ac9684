"""Scores of many pairs, in shards that a stage's folder keeps and that processes have between them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from radit_jax.data.records import ChunkReader, Example
from radit_jax.lm.scoring import Pairs, PairScorer, PairScores, order_by_chunk
from radit_jax.runtime.row_parts import read_each
from radit_jax.runtime.shards import Shards
from radit_jax.runtime.storage.fingerprints import shard_name
from radit_jax.runtime.storage.stage_folder import StageFolder


@dataclass(frozen=True)
class ShardedScorer:
    """A language model, and the folder that keeps its scores."""

    load: Callable[[], PairScorer]  # called by all processes, where a shard is missing
    folder: StageFolder
    chunks: ChunkReader
    shard_size: int  # pairs

    def score(self, name: str, examples: Sequence[Example], pairs: Pairs, title: str) -> PairScores:
        """The scores of `pairs`, kept as `name`-…, on every process."""
        self.make(name, examples, pairs, title)
        return self.read(name, pairs)

    def make(self, name: str, examples: Sequence[Example], pairs: Pairs, title: str) -> None:
        """Score the shards of `pairs` that no earlier run has scored.

        A run that is killed loses the shards that it was scoring, one for each process.
        """
        parts = self._parts(name, pairs)
        sizes = {file: len(part) for file, part in parts.items()}
        if not self.folder.missing(list(sizes)):
            return
        scorer = self.load()
        shards = Shards.find(self.folder, sizes, scorer.own)
        with shards.progress(title, "pairs") as bar:
            own_pairs = (pairs[parts[file]] for file in shards.own)
            shards.write_each(scorer.score_each(own_pairs, examples, self.chunks, bar), self._write)

    def read(self, name: str, pairs: Pairs) -> PairScores:
        """The scores that `make` has left, in the order of `pairs`, on every process."""
        scores = PairScores.empty(len(pairs))
        parts = self._parts(name, pairs)
        # Each of several processes reads some of the shards.
        files = read_each(self.folder, list(parts))
        for (file, part), data in zip(parts.items(), files, strict=True):
            arrays = self.folder.parse_arrays(file, data)
            scores.put(part, PairScores(**arrays))
        return scores

    def _write(self, file: str, scores: PairScores) -> None:
        self.folder.write_arrays(file, **scores._asdict())

    def _parts(self, name: str, pairs: Pairs) -> dict[str, Int[np.ndarray, " _"]]:
        """The numbers of each shard's pairs, by its file."""
        if not len(pairs):
            return {}
        # Ordered by chunk, most chunks are read in one shard only.
        order = order_by_chunk(pairs)
        count = -(-len(order) // self.shard_size)
        parts = np.array_split(order, count)
        return {shard_name(name, index, count): part for index, part in enumerate(parts)}
