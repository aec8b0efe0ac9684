"""The chunks that examples retrieve: a corpus example neither its own nor one that gives its answer away."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.records import Example
from radit_jax.retrieval.copied_answers import SPARE_CANDIDATES, without_copies
from radit_jax.retrieval.search import Searcher
from radit_jax.runtime.row_parts import read_each
from radit_jax.runtime.shards import Shards
from radit_jax.runtime.storage.fingerprints import shard_name
from radit_jax.runtime.storage.stage_folder import StageFolder

EXAMPLES_PER_SHARD = 1024

Places = Int[np.ndarray, " _"]  # of examples in their list


@dataclass(frozen=True)
class ExampleSearch:
    """Searches chunks for examples, in shards that `folder` keeps as `name`-….

    `sources` are the rows of the chunks that corpus examples were cut from, −1 elsewhere. An example with a
    Background of its own retrieves nothing.
    """

    searcher: Searcher
    chunks: Chunks
    folder: StageFolder
    name: str
    examples: Sequence[Example]
    sources: Int[np.ndarray, " E"]
    k: int

    def make(self) -> None:
        """Search for the shards of examples that no earlier run has searched for."""
        # Examples of the corpus need spares in place of copies, and so another depth.
        for parts in self._kinds():
            sizes = {file: len(places) for file, places in parts.items()}
            shards = Shards.find(self.folder, sizes, self.searcher.encoder.own)
            for turn in shards.turns():
                self._make_turn(shards, [(file, parts[file]) for file in turn])

    def read(self) -> tuple[Int[np.ndarray, "E K"], Float[np.ndarray, "E K"], int]:
        """What `make` has left: rows and scores of each example's top k chunks, best first, and a count.

        All processes call it, and all have all.

        The count is how many were left out as copies. Places that no chunk is left for have row −1.
        """
        shape = len(self.examples), self.k
        rows = np.full(shape, -1)
        scores = np.zeros(shape, np.float32)
        num_copies = 0
        for parts in self._kinds():
            # Each of several processes reads some of the shards.
            files = read_each(self.folder, list(parts))
            for (file, places), data in zip(parts.items(), files, strict=True):
                arrays = self.folder.parse_arrays(file, data, "rows", "scores", "num_copies")
                rows[places] = arrays["rows"]
                scores[places] = arrays["scores"]
                num_copies += int(arrays["num_copies"])
        return rows, scores, num_copies

    def _kinds(self) -> Iterator[dict[str, Places]]:
        """The examples of datasets by shard, and then those of the corpus."""
        has_no_background = [example.background is None for example in self.examples]
        needs_chunks = np.array(has_no_background, bool)
        yield self._parts("tasks", np.flatnonzero(needs_chunks & (self.sources < 0)))
        yield self._parts("texts", np.flatnonzero(needs_chunks & (self.sources >= 0)))

    def _parts(self, kind: str, places: Places) -> dict[str, Places]:
        """The places of the examples of each shard, by its file."""
        starts = range(0, len(places), EXAMPLES_PER_SHARD)
        parts = {}
        for number, start in enumerate(starts):
            file = f"{shard_name(f'{self.name}-{kind}', number, len(starts))}.npz"
            parts[file] = places[start : start + EXAMPLES_PER_SHARD]
        return parts

    def _make_turn(self, shards: Shards, turn: Sequence[tuple[str, Places]]) -> None:
        """Search for a turn's examples together; each process writes what was found for its own."""
        # 1) Those of all, in the order of the processes, and this process's.
        lengths = [len(places) for _, places in turn]
        lengths += [0] * (shards.count - len(turn))
        file, own = turn[shards.index] if shards.index < len(turn) else ("", np.empty(0, int))
        exclude = np.concatenate([self.sources[places] for _, places in turn])

        # 2) Their best chunks; spares only for examples of the corpus, which exclude their own.
        depth = self.k
        if exclude[0] >= 0:
            spare_depth = min(self.k + SPARE_CANDIDATES, len(self.chunks) - 1)
            depth = max(self.k, spare_depth)
        examples = [self.examples[place] for place in own.tolist()]
        queries = [example.query for example in examples]
        rows, scores = self.searcher.search_own(queries, lengths, depth, exclude)

        # 3) Without copies of what the examples are to continue with.
        with shards.by_itself():
            if not file:
                return
            num_copies = 0
            if exclude[0] >= 0:
                sources = self.sources[own]
                rows, scores, num_copies = without_copies(
                    examples, sources, rows, scores, self.chunks, self.k
                )
            self.folder.write_arrays(file, rows=rows, scores=scores, num_copies=np.array(num_copies))
