"""Ids that have to be unique in a corpus of any size."""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from etils import epath

from radit_jax.data.readers.lines import quoted

_BYTES_PER_HASH = 8
_HASHES_AT_ONCE = 1 << 18  # ids compared with each other in memory


class UniqueIds:
    """Finds an id that stands twice, with 8 bytes an id on disk and none in memory.

    Ids are compared by their hashes first. Only where two hashes are equal are the ids read again, to tell a
    repeated id from two ids that share a hash.
    """

    def __init__(self, path: epath.PathLike | None = None, num_bytes: int = 0):
        """Ids in a temporary file, or in that at `path`, whose first `num_bytes` are of an earlier run."""
        self._path = path
        self._num_bytes = num_bytes

    def __enter__(self) -> "UniqueIds":
        self.file = tempfile.TemporaryFile() if self._path is None else open(self._path, "a+b")
        self.file.truncate(self._num_bytes)
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, name: str) -> None:
        """Remember an id."""
        self.file.write(hash_bytes(name))

    def add_hashes(self, hashes: bytes) -> None:
        """Remember ids by their `hash_bytes`."""
        self.file.write(hashes)

    def check(self, read: Callable[[], Iterable[tuple[str, str]]]) -> None:
        """Refuse ids that were added twice; `read` gives all ids again, each with its place."""
        suspects = self._repeated_hashes()
        if not suspects:
            return
        # Among the suspects are ids that only share a hash.
        places: dict[str, list[str]] = {}
        for name, where in read():
            if int.from_bytes(hash_bytes(name), "little") in suspects:
                places.setdefault(name, []).append(where)
                refuse_repeated_id(name, places[name])

    def _repeated_hashes(self) -> set[int]:
        self.file.flush()
        count = self.file.seek(0, 2) // _BYTES_PER_HASH
        hashes = np.memmap(self.file, np.dtype("<u8"), "r") if count else np.zeros(0, np.uint64)
        # Equal hashes have equal remainders. So each remainder is a part that is sorted alone, and the file
        # is read block by block for every part.
        num_parts = -(-count // _HASHES_AT_ONCE)
        repeated: set[int] = set()
        for part in range(num_parts):
            blocks = []
            for start in range(0, count, _HASHES_AT_ONCE):
                block = hashes[start : start + _HASHES_AT_ONCE]
                blocks.append(block[block % num_parts == part])
            ordered = np.sort(np.concatenate(blocks))
            equals_the_one_before = ordered[1:] == ordered[:-1]
            repeated.update(ordered[1:][equals_the_one_before].tolist())
        return repeated


def refuse_repeated_id(name: str, places: Sequence[str]) -> None:
    """ValueError where an id stands at more than one of `places`, whose first two the message names."""
    if len(places) < 2:
        return
    first, second = places[:2]
    raise ValueError(
        f"{second}: expected an id that no other passage or chunk has, got {quoted(name)}, which is also "
        f"that of {first}. Rename one; the chunks of a long passage P are named P#1, P#2 and so on."
    )


def hash_bytes(name: str) -> bytes:
    """An id's hash, as it is remembered."""
    return hashlib.blake2b(name.encode(), digest_size=_BYTES_PER_HASH).digest()
