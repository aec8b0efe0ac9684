"""ScaNN: a tree of 1.5 √n leaves over the vectors of one shard, and the trees of all shards.

A tree has leaves from k-means, and each vector lies in two of them (SOAR, arXiv 2404.00774). In the leaves
that are searched, codes of 4 bits for every three dimensions of the residuals give rough scores. The best of
those are put in order by products in int8, and the scores of the stored embeddings choose from the first.
"""

import contextlib
import math
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int

from radit_jax.command_line import run_stage
from radit_jax.retrieval.embeddings import Embeddings, Queries, Vectors
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage.files import read_text
from radit_jax.runtime.storage.fingerprints import shard_name
from radit_jax.runtime.storage.stage_folder import StageFolder

MIN_CHUNKS = 16  # of a tree: as many as a code of 4 bits tells apart

# At most so many vectors are used to learn the leaves, and the codes.
_LEAVES_SAMPLE = 100_000
_CODES_SAMPLE = 20_000

# ScaNN takes other leaves where it searches a dozen queries or fewer at once, and cuts many by its threads.
# In whole batches a query has the same answer in any company and on any machine.
_BATCH_SIZE = 32
_MAX_BATCHES = 8  # batches searched as one: the queries share the reading of a leaf


def has_scann() -> bool:
    """Whether there is a ScaNN for this system."""
    return _scann() is not None


def num_leaves(num_chunks: int) -> int:
    """The number of leaves of a shard's tree, by the number of its chunks."""
    return max(1, round(1.5 * math.sqrt(num_chunks)))


class ScannShard:
    """The chunks of one shard, to be searched approximately."""

    def __init__(self, searcher: Any):
        self._searcher = searcher
        self._num_threads = os.cpu_count() or 1
        searcher.set_num_threads(self._num_threads)

    @classmethod
    def build(cls, vectors: Vectors) -> "ScannShard":
        """A tree over the vectors; there is no seed, and equal vectors give equal trees."""
        # The names of these settings are ScaNN's own.
        leaves = num_leaves(len(vectors))
        builder = (
            _scann()
            .builder(vectors, 10, "dot_product")
            .tree(
                leaves,
                leaves,
                training_sample_size=_LEAVES_SAMPLE,
                random_init=False,  # k-means++: with ScaNN's default two builds give different trees
                soar_lambda=1.5,
                overretrieve_factor=2.0,
            )
            .score_ah(3, anisotropic_quantization_threshold=0.2, training_sample_size=_CODES_SAMPLE)
            .reorder(100, quantize=_scann().scann_builder.ReorderType.INT8)
        )
        with _quiet_stderr():
            return cls(builder.build())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "ScannShard":
        """The tree in `folder`, which may be a stranger's: ValueError where it would read anything else."""
        _check_inside(pathlib.Path(folder))
        with _quiet_stderr():
            return cls(_scann().load_searcher(os.fspath(folder)))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the tree into `folder`, so that it can be moved with it."""
        os.makedirs(folder, exist_ok=True)
        self._searcher.serialize(os.fspath(folder), relative_path=True)

    def search(
        self,
        queries: Queries,
        num_chunks: int,
        leaves: int,
        reorder: int,
    ) -> Int[np.ndarray, "Q {num_chunks}"]:
        """Rows of the shard for each query, roughly best first; −1 where the searched leaves hold fewer.

        The best `reorder` chunks of the `leaves` nearest leaves are put in order by products in int8.
        """
        # Fill up the last batch with its last query.
        num_queries = len(queries)
        padding = (0, -num_queries % _BATCH_SIZE), (0, 0)
        padded = np.pad(queries.astype(np.float32), padding, mode="edge")

        # Use the threads where there is a whole batch for each.
        depths = (num_chunks, reorder, leaves)
        num_batches = len(padded) // _BATCH_SIZE
        batches_per_thread = min(_MAX_BATCHES, num_batches // self._num_threads)
        if batches_per_thread:
            rows, scores = self._searcher.search_batched_parallel(
                padded,
                *depths,
                batch_size=batches_per_thread * _BATCH_SIZE,
            )
        else:
            rows, scores = self._searcher.search_batched(padded, *depths)

        # Where the searched leaves hold too few chunks, ScaNN fills up with row 0 and a score of NaN.
        is_missing = np.isnan(scores[:num_queries])
        return np.where(is_missing, -1, rows[:num_queries].astype(np.int32))


class ScannShards:
    """The trees of a corpus's shards. Of n processes, process i mod n has shard i.

    A tree is loaded when it is first asked for; where there is a folder, it is saved there once it is built.
    """

    def __init__(self, shards: list[range], folder: StageFolder | None = None):
        self.shards = shards
        self._folder = folder
        self._in_memory: dict[int, ScannShard] = {}

    @property
    def own(self) -> range:
        """The numbers of this process's shards."""
        process, num_processes = processes.process_index_and_count()
        return range(process, len(self.shards), num_processes)

    def __getitem__(self, number: int) -> ScannShard:
        """The tree of one of this process's shards."""
        # Stored trees are loaded once, and only those that a query needs.
        if number not in self._in_memory:
            assert self._folder is not None, "a tree without a folder is in memory"
            tree_folder = self._folder.verified_local_path(self._name(number))
            self._in_memory[number] = ScannShard.load(tree_folder)
        return self._in_memory[number]

    def build(self, embeddings: Embeddings) -> None:
        """Build this process's trees one by one, except those that a killed build left in the folder."""
        # 1) All processes ask together which trees there are, before any of them writes one.
        num_shards = len(self.shards)
        is_built = [self._is_built(number) for number in range(num_shards)]
        # 2) Build in rounds: in each, a process builds at most one tree, and then waits for the others.
        process, num_processes = processes.process_index_and_count()
        for first in range(0, num_shards, num_processes):
            number = first + process
            if number < num_shards and not is_built[number]:
                self._build_one(number, embeddings)
            processes.barrier(f"tree {first}")

    def _is_built(self, number: int) -> bool:
        """Whether the folder has the tree; all processes ask together."""
        return self._folder is not None and self._folder.has(self._name(number))

    def _build_one(self, number: int, embeddings: Embeddings) -> None:
        """Build one tree, in memory or into the folder."""
        shard = self.shards[number]
        if self._folder is None:
            self._in_memory[number] = ScannShard.build(embeddings.take(shard))
            return
        # ScaNN itself makes two copies for a while. The third is in a file, so the system may page it out.
        file = self._folder.path / f"{self._name(number)}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        tree = ScannShard.build(embeddings.take(shard, file))
        file.unlink(missing_ok=True)
        self._commit(number, tree, self._folder)

    def save(self, folder: StageFolder) -> None:
        """Write into `folder` the trees that are only in memory."""
        if self._folder is None:
            for number in self.own:
                self._commit(number, self._in_memory[number], folder)
            processes.barrier(f"{folder} trees")

    def _commit(self, number: int, tree: ScannShard, folder: StageFolder) -> None:
        """Write one tree into `folder` and commit it."""
        name = self._name(number)
        tree.save(folder.path / name)
        with processes.apart(), processes.deferring_stops():
            folder.commit(name)

    def _name(self, number: int) -> str:
        """The name of a tree in a stage's folder."""
        return f"index/{shard_name('tree', number, len(self.shards))}"


def _check_inside(folder: pathlib.Path) -> None:
    """Raise ValueError for what ScaNN would follow out of the folder, or unpickle and so run."""
    # ScaNN unpickles a file of document ids; our trees have none.
    assets = folder / "scann_assets.pbtxt"
    if not assets.exists() or (folder / "scann_docids.pkl").exists():
        raise ValueError(
            f"{folder}: expected a tree with scann_assets.pbtxt and no scann_docids.pkl, got another's. "
            f"Delete its stage's folder and run {run_stage('index')}."
        )

    # The assets name the files that ScaNN reads.
    for name in re.findall(r'asset_path:\s*["\']([^"\']*)["\']', read_text(assets)):
        path = pathlib.PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise ValueError(
                f"{assets}: expected names of files inside the folder, got {name!r}. "
                f"Delete its stage's folder and run {run_stage('index')}."
            )


def _scann() -> Any:
    """ScaNN's numpy interface; `None` on systems that it has no wheel for."""
    try:
        from scann.scann_ops.py import scann_ops_pybind
    except ImportError:
        return None
    return scann_ops_pybind


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Drop what C++ code writes to stderr: ScaNN reports phases, and has no setting that stops it."""
    # C++ writes to the file descriptor, which `contextlib.redirect_stderr` leaves as it is.
    stderr = os.dup(2)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)
