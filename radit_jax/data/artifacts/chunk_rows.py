"""The row of a chunk by its id: 8 bytes a chunk in a mapped file, and no id in memory.

A key is a number of 64 bits: above, 32 bits of the hash of a chunk's id, and below, the chunk's row. Keys are
sorted, so those of one hash lie together. The stored chunks say which of them has the id: two ids with one
hash cost the reading of a chunk, and never give a wrong row.
"""

import hashlib
import io
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import Int
from numpy.lib.format import open_memmap

from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage.stage_folder import StageFolder

CHUNK_ROWS = "chunk_rows.npy"
CHUNK_HASHES = "chunk_hashes"  # next to chunks that Beam prepared: the hashes of each file's ids
HASH_BYTES = 4
_ROW_BITS = np.uint64(32)
_ROW_MASK = np.uint64((1 << 32) - 1)
_IDS_AT_ONCE = 4096  # that are looked up together
_HASHES_AT_ONCE = 1 << 20  # that are made keys together


def id_hash(chunk_id: str) -> bytes:
    """The 32 bits of a chunk's id that its key has."""
    return hashlib.blake2b(chunk_id.encode(), digest_size=HASH_BYTES).digest()


def write_chunk_rows(folder: StageFolder, hashes: io.BufferedIOBase) -> None:
    """Write and commit the keys of all chunks; `hashes` holds the `id_hash` of each, in the order of rows."""
    num_chunks = hashes.seek(0, 2) // HASH_BYTES
    keys = open_memmap(folder.path / CHUNK_ROWS, "w+", np.dtype("<u8"), (num_chunks,))
    _fill(keys, hashes)
    keys.flush()
    folder.commit(CHUNK_ROWS)


def _fill(keys: np.ndarray, hashes: io.BufferedIOBase) -> None:
    """Make keys of the hashes and sort them, in the file that `keys` is mapped from."""
    hashes.seek(0)
    start = 0
    while block := hashes.read(_HASHES_AT_ONCE * HASH_BYTES):
        above = np.frombuffer(block, "<u4").astype(np.uint64)
        stop = start + len(above)
        rows = np.arange(start, stop, dtype=np.uint64)
        keys[start:stop] = above << _ROW_BITS | rows
        start = stop
    keys.sort()


class ChunkRows(Mapping[str, int]):
    """The row of every chunk id; of an id that stands twice, the last row."""

    def __init__(self, keys: np.ndarray, chunks: Chunks):
        self._keys = keys
        self._chunks = chunks

    @classmethod
    def load(cls, path: epath.Path, chunks: Chunks) -> "ChunkRows":
        """The keys that `write_chunk_rows` left in the file `path`."""
        keys = np.load(path, mmap_mode="r", allow_pickle=False)
        if keys.shape != (len(chunks),) or keys.dtype != np.dtype("<u8"):
            raise ValueError(
                f"{path}: expected {len(chunks)} keys of 64 bits, a chunk's each, got {keys.dtype} of "
                f"{keys.shape}. Delete the folder that holds it, and make it again."
            )
        return cls(keys, chunks)

    @classmethod
    def of(cls, chunks: Chunks) -> "ChunkRows":
        """The keys of a corpus that has none, as an earlier version made it: all chunks are read once."""
        with tempfile.TemporaryFile() as hashes:
            for chunk in chunks:
                hashes.write(id_hash(chunk.id))
            # The file has no name, and lasts as long as it is mapped.
            with tempfile.TemporaryFile() as file:
                file.truncate(8 * max(len(chunks), 1))
                keys = np.memmap(file, np.dtype("<u8"), "r+", shape=(len(chunks),))
                _fill(keys, hashes)
        return cls(keys, chunks)

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[str]:
        return (chunk.id for chunk in self._chunks)

    def __getitem__(self, chunk_id: str) -> int:
        return self.rows_of([chunk_id])[chunk_id]

    def rows_of(self, ids: Sequence[str]) -> dict[str, int]:
        """The row of each of the chunks with these ids; KeyError where there is no such chunk."""
        row_of = dict(zip(ids, self.find(ids).tolist(), strict=True))
        unknown = [chunk_id for chunk_id, row in row_of.items() if row < 0]
        if unknown:
            raise KeyError(unknown[0])
        return row_of

    def find(self, ids: Sequence[str]) -> Int[np.ndarray, " N"]:
        """The row of each of the chunks with these ids; −1 is no chunk."""
        rows = np.full(len(ids), -1)
        for start in range(0, len(ids), _IDS_AT_ONCE):
            processes.stop_if_asked("the look-up of chunks")
            block = ids[start : start + _IDS_AT_ONCE]
            rows[start : start + len(block)] = self._find_block(block)
        return rows

    def _find_block(self, ids: Sequence[str]) -> list[int]:
        # 1) The rows whose ids have the same hash: hardly ever more than one.
        digests = b"".join(map(id_hash, ids))
        least = np.frombuffer(digests, "<u4").astype(np.uint64) << _ROW_BITS
        starts = self._keys.searchsorted(least)
        stops = self._keys.searchsorted(least | _ROW_MASK, "right")
        candidates = []
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            rows = self._keys[start:stop] & _ROW_MASK
            candidates.append(rows.tolist())

        # 2) The one whose chunk has the id.
        all_rows = list(itertools.chain.from_iterable(candidates))
        chunk_of = self._chunks.by_row(np.array(all_rows, np.int64))
        found = []
        for chunk_id, rows in zip(ids, candidates, strict=True):
            same = [row for row in rows if chunk_of[row].id == chunk_id]
            found.append(same[-1] if same else -1)
        return found
