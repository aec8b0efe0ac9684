"""The chunks' embeddings, mapped from the files of the embed stage and never joined in memory."""

import os
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy.lib.format import open_memmap

from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage.stage_folder import StageFolder

Vectors = Float[np.ndarray, "V D"]
Queries = Float[np.ndarray, "Q D"]


class Embeddings:
    """Vectors [C, D] in parts that follow each other; what is asked for is read, and nothing else.

    >>> embeddings = Embeddings([np.eye(3, dtype=np.float32)[:2], np.eye(3, dtype=np.float32)[2:]])
    >>> embeddings.shape, embeddings[np.array([2, 0])].tolist()
    ((3, 3), [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    """

    def __init__(self, parts: Sequence[Vectors]):
        self._parts = list(parts)
        self._starts = np.cumsum([0, *map(len, parts)])

    @classmethod
    def load(cls, folder: StageFolder) -> "Embeddings":
        """All shards of the embed stage, in the order of the corpus."""
        names = sorted(name for name in folder.manifest["files"] if name.startswith("embeddings-"))
        parts = [folder.map_array(name) for name in names]
        shapes = [part.shape for part in parts]
        if not parts or len({shape[1:] for shape in shapes}) > 1 or any(len(shape) != 2 for shape in shapes):
            raise ValueError(
                f"{folder.home}: expected shards of vectors of one width, got {shapes[:3]}. "
                f"Delete the folder and rerun --stage={folder.stage}."
            )
        return cls(parts)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shape(self) -> tuple[int, int]:
        """The number of chunks and their width."""
        return len(self), self._parts[0].shape[1]

    def __getitem__(self, rows: Int[np.ndarray, "*some"]) -> Float[np.ndarray, "*some D"]:
        """The embeddings of chunks by their rows; −1 is the last one, as in any array."""
        if rows.size and not -len(self) <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows from {rows.min()} to {rows.max()} of {len(self)} embeddings")
        if len(self._parts) == 1:
            return self._parts[0][rows]
        wanted = np.where(rows < 0, rows + len(self), rows).ravel()
        order = np.argsort(wanted, kind="stable")  # so that each part is read once, and forwards
        bounds = np.searchsorted(wanted[order], self._starts)
        found = np.empty((len(wanted), self.shape[1]), np.float32)
        for number in np.flatnonzero(np.diff(bounds)):
            some = order[bounds[number] : bounds[number + 1]]
            found[some] = self._parts[number][wanted[some] - self._starts[number]]
        return found.reshape(*rows.shape, self.shape[1])

    def blocks(self, rows: range, size: int) -> Iterator[tuple[int, Vectors]]:
        """The chunks of `rows` in blocks of at most `size`, each with its first row; none is copied."""
        for first, part in zip(self._starts, self._parts, strict=False):
            begin, end = max(rows.start - first, 0), min(rows.stop - first, len(part))
            for start in range(int(begin), int(end), size):
                processes.stop_if_asked("a block of embeddings")
                yield int(first) + start, part[start : min(start + size, int(end))]

    def take(self, rows: range, into: str | os.PathLike[str] | None = None) -> Vectors:
        """The embeddings of `rows`: mapped where one part has them all, else a copy.

        With `into` the copy is mapped too, from that `.npy` file.
        """
        blocks = [block for _, block in self.blocks(rows, len(self))]
        if len(blocks) == 1:
            return blocks[0]
        shape, filled = (len(rows), self.shape[1]), 0
        taken = np.empty(shape, np.float32) if into is None else open_memmap(into, "w+", np.float32, shape)
        for block in blocks:
            taken[filled : filled + len(block)] = block
            filled += len(block)
        return taken


def as_embeddings(embeddings: Embeddings | Vectors) -> Embeddings:
    """One array as embeddings of one part."""
    return embeddings if isinstance(embeddings, Embeddings) else Embeddings([embeddings])
