"""The chunks' embeddings, mapped from the files of the embed stage and never joined in memory."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.lib.format import open_memmap

from radit_jax.command_line import run_stage
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage.open_files import MappedArrays
from radit_jax.runtime.storage.stage_folder import StageFolder

_HEADER_BYTES = 128  # of a `.npy` file of a matrix
_PARTS_PER_PROCESS = 4  # with as many parts, processes can have whole ones and still have about as many rows
Vectors = Float[np.ndarray, "V D"]  # chunk embeddings
Queries = Float[np.ndarray, "Q D"]  # query embeddings


class Embeddings:
    """Chunk embeddings [num_chunks, D] in consecutive parts; only the rows that are asked for are read.

    >>> embeddings = Embeddings([np.eye(3, dtype=np.float32)[:2], np.eye(3, dtype=np.float32)[2:]])
    >>> embeddings.shape, embeddings[np.array([2, 0])].tolist()
    ((3, 3), [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    """

    def __init__(
        self,
        parts: Sequence[Vectors] | MappedArrays,
        shapes: Sequence[tuple[int, int]] | None = None,
    ):
        """Embeddings of `parts`, which are opened for their `shapes` if these are not given."""
        self._parts = parts
        if shapes is None:
            shapes = [part.shape for part in parts]
        lengths = [num_rows for num_rows, _ in shapes]
        self._width = shapes[0][1]
        self._starts = np.cumsum([0, *lengths])

    @classmethod
    def load(cls, folder: StageFolder) -> "Embeddings":
        """The arrays of a finished embed stage, each (chunks, D), mapped and in the order of the corpus."""
        # Numbers in the names have leading zeros, so the names sort in that order.
        files = folder.manifest["files"]
        names = sorted(name for name in files if name.startswith("embeddings-"))
        parts = folder.map_arrays(names)

        # The embed stage's own manifest says what there is, so that no file has to be opened for its shape.
        shapes = _recorded_shapes(folder.manifest, names)
        if shapes is not None:
            return cls(parts, shapes)

        # The folder may be from someone else, and hashes do not say that its arrays fit each other.
        shapes = [part.shape for part in parts]
        are_matrices = all(len(shape) == 2 for shape in shapes)
        widths = {shape[1:] for shape in shapes}
        if not are_matrices or len(widths) != 1:
            raise ValueError(
                f"{folder.home}: expected shards of vectors of one width, got {shapes[:3]}. "
                f"Delete the folder and run {run_stage(folder.stage)}."
            )
        return cls(parts)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shape(self) -> tuple[int, int]:
        """The number of chunks, and the width D of their embeddings."""
        return len(self), self._width

    def __getitem__(
        self,
        rows: Int[np.ndarray, "*some"],
    ) -> Float[np.ndarray, "*some D"]:
        """The embeddings of chunks by their rows; −1 is the last one, as in any array."""
        num_chunks, width = self.shape
        if rows.size and (rows.min() < -num_chunks or rows.max() >= num_chunks):
            raise IndexError(
                f"embeddings: expected rows from {-num_chunks} to {num_chunks - 1}, "
                f"got {rows.min()} to {rows.max()} of {num_chunks} embeddings. "
                f"Pass rows of the corpus that was embedded."
            )
        if len(self._parts) == 1:
            return self._parts[0][rows]

        # Sort the rows, so that each part is read once, and forwards.
        flat_rows = np.where(rows < 0, rows + num_chunks, rows).ravel()
        order = np.argsort(flat_rows, kind="stable")
        bounds = np.searchsorted(flat_rows[order], self._starts)

        # Gather from the parts that hold any of the rows.
        gathered = np.empty((len(flat_rows), width), np.float32)
        for part in np.flatnonzero(np.diff(bounds)).tolist():
            places = order[bounds[part] : bounds[part + 1]]
            rows_of_part = flat_rows[places] - self._starts[part]
            gathered[places] = self._parts[part][rows_of_part]
        return gathered.reshape(*rows.shape, width)

    def share(self, number: int, count: int) -> range:
        """The rows of one of `count` processes: whole parts, where there are enough of them."""
        bounds = [len(self) * place // count for place in (number, number + 1)]
        if len(self._parts) >= _PARTS_PER_PROCESS * count:
            bounds = [self._nearest_start(bound) for bound in bounds]
        return range(*bounds)

    def _nearest_start(self, row: int) -> int:
        """The first row of a part, or the end, that is nearest to `row`."""
        distances = np.abs(self._starts - row)
        return int(self._starts[distances.argmin()])

    def blocks(
        self,
        rows: range,
        size: int,
    ) -> Iterator[tuple[int, Vectors]]:
        """The embeddings of `rows` in blocks of at most `size`, each after its first row; none is copied."""
        starts = self._starts.tolist()
        for number, first_row in enumerate(starts[:-1]):
            # What of the part lies in `rows`, counted from the part's own start.
            begin = max(rows.start - first_row, 0)
            end = min(rows.stop, starts[number + 1]) - first_row
            if begin >= end:
                continue
            part = self._parts[number]
            for start in range(begin, end, size):
                processes.stop_if_asked("a block of embeddings")
                stop = min(start + size, end)
                yield first_row + start, part[start:stop]

    def take(
        self,
        rows: range,
        into: str | os.PathLike[str] | None = None,
    ) -> Vectors:
        """The embeddings of `rows`: mapped where one part has them all, else a copy.

        With `into` the copy is mapped too, from that `.npy` file.
        """
        # Make room in memory or in the file, unless the first part with any of the rows has all of them.
        joined = None
        start = 0
        # A part is one block here, whatever its length. No two are held: each holds its file open.
        for _, block in self.blocks(rows, len(self)):
            if len(block) == len(rows):
                return block
            if joined is None:
                joined = self._room(len(rows), into)
            stop = start + len(block)
            joined[start:stop] = block
            start = stop
        return self._room(0, into) if joined is None else joined

    def _room(self, num_rows: int, into: str | os.PathLike[str] | None) -> Vectors:
        """An array for as many rows, in memory or in the file `into`."""
        shape = num_rows, self.shape[1]
        if into is None:
            return np.empty(shape, np.float32)
        return open_memmap(into, "w+", np.float32, shape)


def _recorded_shapes(manifest: Mapping[str, Any], names: Sequence[str]) -> list[tuple[int, int]] | None:
    """The arrays' shapes by their width and their files' sizes; None where the manifest says too little."""
    width, num_chunks = manifest.get("width"), manifest.get("chunks")
    if type(width) is not int or width < 1:
        return None
    shapes = []
    for name in names:
        num_rows, rest = divmod(manifest["files"][name]["size"] - _HEADER_BYTES, 4 * width)
        if rest or num_rows < 0:
            return None
        shapes.append((num_rows, width))
    total = sum(num_rows for num_rows, _ in shapes)
    return shapes if shapes and total == num_chunks else None


def as_embeddings(embeddings: Embeddings | Vectors) -> Embeddings:
    """`embeddings`; an array becomes embeddings of one part."""
    if isinstance(embeddings, Embeddings):
        return embeddings
    return Embeddings([embeddings])
