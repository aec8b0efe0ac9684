"""ScaNN: a tree of 1.5 √n leaves over the vectors of one shard, and the trees of all shards.

A tree is k-means leaves, two of which hold each vector (SOAR, arXiv 2404.00774), codes of 4 bits for three
dimensions of the residuals in the leaves that are searched, and a reordering of the best by their products in
int8, of which the scores of the stored embeddings choose.
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

from radit_jax.retrieval.embeddings import Embeddings, Queries, Vectors
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage.files import read_text
from radit_jax.runtime.storage.fingerprints import shard_name
from radit_jax.runtime.storage.stage_folder import StageFolder

_LEAVES_SAMPLE, _CODES_SAMPLE = 100_000, 20_000  # vectors that leaves and codes are learnt from at most


def has_scann() -> bool:
    """Whether there is a ScaNN for this system."""
    return _scann() is not None


MIN_CHUNKS = 16  # of a tree: as many as a code of 4 bits tells apart


def num_leaves(num_chunks: int) -> int:
    """The leaves of the tree of a shard of so many chunks."""
    return max(1, round(1.5 * math.sqrt(num_chunks)))


# ScaNN takes other leaves where it searches a dozen queries or fewer at once, and cuts many by its threads.
# In whole batches a query has the same answer in any company and on any machine.
_BATCH = 32
_LARGEST = 8  # batches searched as one: the queries share the reading of a leaf


class ScannShard:
    """The chunks of one shard, to be searched approximately."""

    def __init__(self, searcher: Any):
        self._searcher, self._threads = searcher, os.cpu_count() or 1
        searcher.set_num_threads(self._threads)

    @classmethod
    def build(cls, vectors: Vectors) -> "ScannShard":
        """Equal vectors give equal trees: there is no seed."""
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
        """The tree in `folder`, which may be of a stranger: ValueError where it would read anything else."""
        _check_inside(pathlib.Path(folder))
        with _quiet_stderr():
            return cls(_scann().load_searcher(os.fspath(folder)))

    def save(self, folder: str | os.PathLike[str]) -> None:
        os.makedirs(folder, exist_ok=True)
        self._searcher.serialize(os.fspath(folder), relative_path=True)

    def near(
        self, queries: Queries, num_chunks: int, leaves: int, reorder: int
    ) -> Int[np.ndarray, "Q {num_chunks}"]:
        """Rows of the shard for each query, −1 where the searched leaves hold fewer."""
        padded = np.pad(queries.astype(np.float32), ((0, -len(queries) % _BATCH), (0, 0)), mode="edge")
        depths = (num_chunks, reorder, leaves)
        batches = min(_LARGEST, len(padded) // _BATCH // self._threads)  # that a thread has at once
        if batches:
            found = self._searcher.search_batched_parallel(padded, *depths, batch_size=batches * _BATCH)
        else:
            found = self._searcher.search_batched(padded, *depths)
        rows, proposed = (array[: len(queries)] for array in found)
        # Where the searched leaves hold too few chunks, ScaNN fills up with row 0 and a score of NaN.
        return np.where(np.isnan(proposed), -1, rows.astype(np.int32))


class ScannShards:
    """The trees of a corpus' shards, which are dealt out to the processes: shard i to process i mod n.

    A tree is in memory once it was asked for; where there is a folder, it is kept there once it was built.
    """

    def __init__(self, shards: list[range], folder: StageFolder | None = None):
        self.shards = shards
        self._folder = folder
        self._in_memory: dict[int, ScannShard] = {}

    @property
    def own(self) -> range:
        """The numbers of this process's shards."""
        number, count = processes.process_index_and_count()
        return range(number, len(self.shards), count)

    def __getitem__(self, number: int) -> ScannShard:
        if number not in self._in_memory:
            assert self._folder is not None, "a tree without a folder is in memory"
            self._in_memory[number] = ScannShard.load(self._folder.check_own(self._name(number)))
        return self._in_memory[number]

    def build(self, embeddings: Embeddings) -> None:
        """Build this process's trees one by one, but those that a killed build left in the folder."""
        kept = [self._folder is not None and self._folder.has(self._name(n)) for n in range(len(self.shards))]
        number, count = processes.process_index_and_count()
        for first in range(0, len(self.shards), count):
            own = first + number
            if own < len(self.shards) and not kept[own]:
                self._build_one(own, embeddings)
            processes.barrier(f"tree {first}")

    def _build_one(self, number: int, embeddings: Embeddings) -> None:
        if self._folder is None:
            self._in_memory[number] = ScannShard.build(embeddings.take(self.shards[number]))
            return
        # ScaNN has two copies of its own for a while; a third is in a file, which the system may put aside.
        file = self._folder.path / f"{self._name(number)}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        tree = ScannShard.build(embeddings.take(self.shards[number], file))
        file.unlink(missing_ok=True)
        self._keep(number, tree, self._folder)

    def save(self, folder: StageFolder) -> None:
        """Keep in `folder` the trees that are only in memory."""
        if self._folder is None:
            for number in self.own:
                self._keep(number, self._in_memory[number], folder)
            processes.barrier(f"{folder} trees")

    def _keep(self, number: int, tree: ScannShard, folder: StageFolder) -> None:
        tree.save(folder.path / self._name(number))
        folder.commit_local(self._name(number))

    def _name(self, number: int) -> str:
        return f"index/{shard_name('tree', number, len(self.shards))}"


def _check_inside(folder: pathlib.Path) -> None:
    """Refuse what ScaNN would follow out of the folder, or unpickle, which can run any program."""
    assets = folder / "scann_assets.pbtxt"
    if not assets.exists() or (folder / "scann_docids.pkl").exists():
        raise ValueError(
            f"{folder}: expected a tree with scann_assets.pbtxt and no scann_docids.pkl, got another's. "
            "Delete its stage's folder and rerun --stage=index."
        )
    for name in re.findall(r'asset_path:\s*["\']([^"\']*)["\']', read_text(assets)):
        if (
            "\\" in name
            or pathlib.PurePosixPath(name).is_absolute()
            or ".." in pathlib.PurePosixPath(name).parts
        ):
            raise ValueError(
                f"{assets}: expected names of files inside the folder, got {name!r}. "
                "Delete its stage's folder and rerun --stage=index."
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
    """Drops what C++ code writes to stderr: ScaNN reports phases, and has no setting that stops it."""
    stderr, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nothing)
