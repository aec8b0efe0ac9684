"""Files of JSON and of arrays in a folder whose files are verified when they are read."""

import abc
import contextlib
import io
import json
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from radit_jax.runtime.storage.files import parse_json
from radit_jax.runtime.storage.manifests import parse_jsonl
from radit_jax.runtime.storage.open_files import MappedArrays

# What numpy raises for a file without arrays.
_NO_ARRAYS = (ValueError, OSError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile)


class TypedFiles(abc.ABC):
    """Reads and writes a folder's files as values; a subclass writes and verifies the bytes."""

    home: epath.Path  # the folder

    @abc.abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a file and commit it."""

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of a committed file, verified."""

    @abc.abstractmethod
    def verified_path(self, name: str) -> epath.Path:
        """The path of a committed file, verified."""

    @abc.abstractmethod
    def verified_local_path(self, name: str) -> epath.Path:
        """The path of a committed file that this process reads by itself, verified."""

    @property
    @abc.abstractmethod
    def remedy(self) -> str:
        """What to do where a file is damaged, as a sentence."""

    # -- JSON --

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON value."""
        text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
        self.write(name, text.encode())

    def read_json(self, name: str) -> Any:
        """The JSON value in a file."""
        where = str(self.home / name)
        return parse_json(self.read(name), where, self.remedy)

    def write_jsonl(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write JSON objects, one a line."""
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        self.write(name, "".join(lines).encode())

    def read_jsonl(self, name: str) -> list[dict[str, Any]]:
        """The JSON objects in a file's lines."""
        return self.parse_jsonl(name, self.read(name))

    def parse_jsonl(self, name: str, data: bytes) -> list[dict[str, Any]]:
        """`read_jsonl` of a file whose bytes were read."""
        return parse_jsonl(data, str(self.home / name), remedy=self.remedy)

    # -- arrays --

    def write_arrays(self, name: str, **arrays: np.ndarray) -> None:
        """Write named arrays as one `.npz` file."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        self.write(name, buffer.getvalue())

    def read_arrays(self, name: str, *fields: str) -> dict[str, np.ndarray]:
        """The named arrays of a `.npz` file; if `fields` are given, they must be exactly these."""
        return self.parse_arrays(name, self.read(name), *fields)

    def parse_arrays(self, name: str, data: bytes, *fields: str) -> dict[str, np.ndarray]:
        """`read_arrays` of a file whose bytes were read."""
        with self._naming_arrays(name):
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays = dict(archive)
            # A file of another version may have others.
            if fields and set(arrays) != set(fields):
                raise ValueError(f"arrays {sorted(arrays)}, not {sorted(fields)}")
        return arrays

    def write_array(self, name: str, array: np.ndarray) -> None:
        """Write one array as a `.npy` file, for `map_arrays`."""
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        self.write(name, buffer.getvalue())

    def map_arrays(self, names: Sequence[str]) -> MappedArrays:
        """The arrays of `.npy` files, each verified when a process first uses it, and read as it is used.

        So a process fetches and opens none that it does not use.
        """
        paths: dict[str, epath.Path] = {}
        lock = threading.Lock()

        def load(name: str) -> np.ndarray:
            # Several threads may ask for it at once.
            with lock:
                if name not in paths:
                    paths[name] = self.verified_local_path(name)
            with self._naming_arrays(name):
                array = np.load(paths[name], mmap_mode="r", allow_pickle=False)
                if not isinstance(array, np.ndarray):
                    raise ValueError("an archive of arrays, not one")
            return array

        return MappedArrays(names, load)

    @contextlib.contextmanager
    def _naming_arrays(self, name: str) -> Iterator[None]:
        """Name the file in errors for files without arrays."""
        try:
            yield
        except _NO_ARRAYS as error:
            raise ValueError(
                f"{self.home / name}: expected arrays of numpy, got something else ({error}). {self.remedy}"
            ) from None
