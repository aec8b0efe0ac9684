"""The corpus' chunks in numbered ArrayRecord files, read by row.

Every file but the last has as many chunks as the first. A reader holds its file open, so files are opened
when they are read, and few of them stay open. From a bucket a machine fetches those that it reads.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, SupportsIndex

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath
from jaxtyping import Int

from radit_jax.data.records import Chunk, record_from_json
from radit_jax.runtime.storage.files import parse_json
from radit_jax.runtime.storage.listed_folder import ListedFolder
from radit_jax.runtime.storage.open_files import max_open
from radit_jax.runtime.storage.stage_folder import StageFolder

CHUNKS = "chunks.array_record"  # a folder of numbered files
_MOST_READERS = 1024  # each remembers 0.5 MB of where its records are, and takes some ms to open
_ROWS_AT_ONCE = 4096  # of chunks, when all are read
_AGAIN = "Delete the folder that holds it, and make it again."


def open_chunk_file(file: epath.Path, where: str, remedy: str) -> Any:
    """A reader of one of the numbered files, which a ValueError calls `where` if it is damaged.

    OSError where it cannot be opened.
    """
    reader = ArrayRecordReader(str(file))
    if not reader.ok():  # it would say that there are no records, whatever is wrong
        # The system says why a file cannot be opened: it is gone, not ours, or one too many.
        with file.open("rb"):
            pass
        raise ValueError(f"{where}: expected an ArrayRecord file, got a damaged one. {remedy}")
    return reader


class Chunks:
    """The corpus' chunks by row, read from ArrayRecord files when asked for.

    ValueError for a file with fewer or more chunks than the stage's manifest says.
    """

    def __init__(self, folder: StageFolder):
        self._folder = ListedFolder(folder, CHUNKS)
        self._files = self._folder.names
        self._where = str(folder.home / CHUNKS)
        self._open = functools.lru_cache(max_open(_MOST_READERS))(open_chunk_file)
        self._per_file = self._num_chunks = 0
        # The first file says how many each has, and the last one how many there are.
        if self._files:
            last = len(self._files) - 1
            self._per_file = self._reader(0).num_records()
            self._num_chunks = last * self._per_file + self._reader(last).num_records()
        # An export's manifest has no such number, nor has a folder that is being filled.
        written = folder.manifest.get("chunks") if folder.complete else None
        if type(written) is int and written != self._num_chunks:
            self._refuse_count(written)

    def __len__(self) -> int:
        return self._num_chunks

    def __getitem__(self, row: int) -> Chunk:
        return self.take([row])[0]

    def __iter__(self) -> Iterator[Chunk]:
        for start in range(0, len(self), _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, len(self))
            yield from self.take(range(start, stop))

    def take(self, rows: Iterable[SupportsIndex]) -> list[Chunk]:
        """The chunks at `rows`, read in one parallel access to each file."""
        asked = np.array([int(row) for row in rows], np.int64)
        if not len(asked):
            return []
        if not 0 <= asked.min() <= asked.max() < len(self):
            raise IndexError(
                f"chunks: expected rows from 0 to {len(self) - 1}, got {asked.min()} to {asked.max()}. Ask "
                "for rows of this corpus."
            )
        # Read every file once, and each row once, however often it is asked for.
        chunk_of: dict[int, Chunk] = {}
        file_of_row = asked // self._per_file
        for file in np.unique(file_of_row):
            rows_in_file = np.unique(asked[file_of_row == file])
            places = rows_in_file - file * self._per_file
            chunks = self._read(int(file), places.tolist())
            chunk_of.update(zip(rows_in_file.tolist(), chunks, strict=True))
        return [chunk_of[row] for row in asked.tolist()]

    def by_row(self, rows: Int[np.ndarray, "*axes"]) -> dict[int, Chunk]:
        """Each of the chunks at `rows` once, by its row; −1 is no chunk."""
        real_rows = np.unique(rows[rows >= 0])
        return dict(zip(real_rows.tolist(), self.take(real_rows), strict=True))

    def _read(self, file: int, places: list[int]) -> list[Chunk]:
        """The records of a file at `places`."""
        reader = self._reader(file)
        try:
            records = reader.read(places)
        except (RuntimeError, IndexError) as error:
            raise ValueError(
                f"{self._name(file)}: expected whole records, got damaged ones ({error}). {_AGAIN}"
            ) from None
        chunks = []
        where = self._name(file)
        for record in records:
            value = parse_json(record, where, _AGAIN)
            chunks.append(record_from_json(Chunk, value, where))
        return chunks

    def _reader(self, file: int) -> Any:
        """The reader of one file, which stays open until others are used."""
        path = self._folder.path(self._files[file])
        reader = self._open(path, self._name(file), _AGAIN)
        # The first and the last file are opened to learn this number.
        num_records = reader.num_records()
        if 0 < file < len(self._files) - 1 and num_records != self._per_file:
            raise ValueError(
                f"{self._name(file)}: expected {self._per_file} chunks, as the first file has, got "
                f"{num_records}. {_AGAIN}"
            )
        return reader

    def _name(self, file: int) -> str:
        """What errors call a file."""
        return f"{self._where}/{self._files[file]}"

    def _refuse_count(self, written: int) -> NoReturn:
        """The error of another number of chunks than the manifest's; the last file may be the short one."""
        suspect = self._name(-1) if self._files else self._where
        raise ValueError(
            f"{suspect}: expected the last of the {written} chunks that the manifest says, got {len(self)} "
            f"chunks in {len(self._files)} files. {_AGAIN}"
        )
