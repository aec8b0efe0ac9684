"""What the stages leave behind: `<workdir>/<stage>/<fingerprint>/`, committed by its manifest.

A stage's folder is named by everything that its content depends on, so settings themselves say what is
current: nothing is moved or overwritten, and settings that return find their data. A file counts once
the sidecar with its size and hash exists, a stage once `manifest.json` exists; both are written after
the data, so a process killed anywhere leaves nothing that a reader could take for whole.

A workdir may be a bucket. Then stages work in a copy of their folder on this machine, `StageFolder.path`, and
what they commit goes up to `StageFolder.home`; what is read comes down once, and is checked like any file.

Of several processes all call the same methods in the same order. The first writes, the others wait until it
has; and what is there and what is not the first says, for a disk that many see may show it to some later.

Nothing here imports jax: the command line says what would run without starting an accelerator.
"""

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from radit_jax.errors import naming
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage import bucket, locks
from radit_jax.runtime.storage.entries import (
    committed_names,
    files_under,
    num_bytes_of,
    remove,
    size_and_hash,
    size_and_hash_of_bytes,
    sync,
)
from radit_jax.runtime.storage.files import (
    parse_json,
    sealed,
    write_whole,
)
from radit_jax.runtime.storage.fingerprints import commit_of_source, package_versions
from radit_jax.runtime.storage.manifests import parse_jsonl, read_manifest, read_sidecar

_LOGS = ("metrics.jsonl", "tensorboard")


# ---- a stage's folder ----


class StageFolder:
    """One stage's data under one fingerprint; whole once its manifest exists.

    Names are paths inside the folder, without the folder. `home` is where it is kept, `path` where this
    machine writes and reads it: the same folder, unless home is in a bucket.
    """

    def __init__(self, home: str | os.PathLike[str], path: str | os.PathLike[str] | None = None):
        self.home = epath.Path(home)
        self.path = epath.Path(path) if path is not None else bucket.local_copy(self.home)
        self.stage, self.fingerprint = self.home.parent.name, self.home.name
        self._manifest: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"{self.stage}/{self.fingerprint}"

    @property
    def complete(self) -> bool:
        """Whether the stage has finished: its manifest is there and whole, as far as this process sees."""
        if self._manifest is None:
            self._manifest = self._read_manifest()
        return self._manifest is not None

    def _read_manifest(self) -> dict[str, Any] | None:
        manifest = read_manifest(self.home / "manifest.json", self._remedy)
        if manifest is not None:
            self._demand_own(manifest)
        return manifest

    def _demand_own(self, manifest: Mapping[str, Any]) -> None:
        """Refuse the manifest of a stage whose folder was renamed or copied to this one's name."""
        found = f"{manifest['stage']}/{manifest['fingerprint']}"
        if found != f"{self.stage}/{self.fingerprint}":
            raise ValueError(
                f"{self.home / 'manifest.json'}: expected that of {self}, got that of {found}. "
                f"Give the folder its name back, or d{self._remedy[1:]}"
            )

    @property
    def size(self) -> int:
        """Bytes of all that is in the folder."""
        return max(num_bytes_of(self.home), 0)

    @property
    def half_written(self) -> bool:
        """Whether a run began to fill the folder and did not finish."""
        return not self.complete and self.home.exists() and any(self.home.iterdir())

    @property
    def _is_copy(self) -> bool:
        return bucket.is_bucket(self.home)

    @property
    def manifest(self) -> dict[str, Any]:
        """What `finish` recorded: the stage's facts, files and versions."""
        if not self.complete or self._manifest is None:
            raise ValueError(
                f"{self}: half-written or not there, a finished stage is needed; run --stage={self.stage}"
            )
        return self._manifest

    def write(self, name: str, data: bytes) -> None:
        """Writes a file and then, which commits it, the sidecar with its size and hash."""
        processes.on_process_zero(f"{self} {name}", lambda: self._write(name, data))

    def _write(self, name: str, data: bytes) -> None:
        locks.check_held(self.home)
        # An old sidecar must not vouch for new bytes.
        remove(self._sidecar(name))
        write_whole(self.path / name, data)
        self._send(name)
        self._commit(name, size_and_hash_of_bytes(data))

    def copy_from(self, other: "StageFolder", name: str) -> None:
        """Copies a committed file or folder of another stage under its own name."""
        processes.on_process_zero(f"{self} {name}", lambda: self._adopt(other, name))

    def _adopt(self, other: "StageFolder", name: str) -> None:
        locks.check_held(self.home)
        source = other.verified_path(name)
        for file in files_under(source) if source.is_dir() else [source]:
            copy = self.path / os.path.relpath(file, other.path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            file.copy(copy, overwrite=True)
        sync(self.path / name)
        self._send(name)
        self._commit(name, other._committed(name))

    def commit(self, name: str) -> None:
        """Commits a file or a folder that another library wrote under this folder."""
        processes.on_process_zero(f"{self} {name}", lambda: self._commit_written(name))

    def commit_local(self, name: str) -> None:
        """Commits what this process wrote while the others write under other names.

        They may count on it once all have met.
        """
        self._commit_written(name)

    def _commit_written(self, name: str) -> None:
        locks.check_held(self.home)
        sync(self.path / name)
        self._send(name)
        self._commit(name, size_and_hash(self.path / name))

    def _send(self, name: str) -> None:
        if self._is_copy:
            remove(self._sidecar(name))
            bucket.upload(self.path / name, self.home / name)

    def _commit(self, name: str, record: dict[str, Any]) -> None:
        locks.check_held(self.home)
        write_whole(self._sidecar(name), json.dumps(record) + "\n")

    def _sidecar(self, name: str) -> epath.Path:
        return self.home / f"{name}.sha256"

    def _record(self, name: str) -> dict[str, Any] | None:
        """Size and hash that were committed for `name`, by the manifest or else by its sidecar."""
        if self.complete:
            return self.manifest["files"].get(name)
        return read_sidecar(self._sidecar(name))

    def has(self, name: str) -> bool:
        """Whether `name` was made and, where the stage is not finished, still has the size that it had.

        Raises ValueError where a finished stage's file is missing or of another size: that is damage, and
        whoever took it for "not made" would go on with other data.
        """
        return processes.on_process_zero(f"{self} {name}", lambda: self._has(name))

    def _has(self, name: str) -> bool:
        record = self._record(name)
        if record is None:
            return False
        size = num_bytes_of(self.home / name)
        if self.complete:
            self._demand_size(name, size, record)
        return size == record["size"]

    def verified_path(self, name: str) -> epath.Path:
        """The path of a committed file or folder whose bytes are those that were written."""
        record = self._committed(name)
        if self._is_copy:
            return self._fetch(name, record)
        self._demand_size(name, num_bytes_of(self.path / name), record)
        self._demand_hash(name, size_and_hash(self.path / name), record)
        return self.path / name

    def _fetch(self, name: str, record: dict[str, Any]) -> epath.Path:
        """The path of this machine's copy, which comes down from the bucket unless it is there and whole.

        Where processes share the folder of copies, the first fetches for all.
        """
        if not processes.is_process_zero():
            processes.barrier(f"{self} {name} fetched")
        copy = self._fetch_own(name, record)
        if processes.is_process_zero():
            processes.barrier(f"{self} {name} fetched")
        return copy

    def verified_local_path(self, name: str) -> epath.Path:
        """As `check`, of what this process reads and the others do not."""
        return self._fetch_own(name, self._committed(name)) if self._is_copy else self.verified_path(name)

    def _fetch_own(self, name: str, record: dict[str, Any]) -> epath.Path:
        copy = self.path / name
        if num_bytes_of(copy) == record["size"] and size_and_hash(copy) == record:
            return copy
        self._demand_size(name, num_bytes_of(self.home / name), record)
        bucket.download(self.home / name, copy)
        self._demand_hash(name, size_and_hash(copy), record)
        return copy

    def read(self, name: str) -> bytes:
        """The bytes of a committed file, checked against their size and hash."""
        if self._is_copy:
            return self.verified_path(name).read_bytes()
        record = self._committed(name)
        data = (self.path / name).read_bytes() if (self.path / name).exists() else b""
        self._demand_size(name, len(data), record)
        self._demand_hash(name, size_and_hash_of_bytes(data), record)
        return data

    def _committed(self, name: str) -> dict[str, Any]:
        record = self._record(name)
        if record is None:
            raise ValueError(
                f"{self}: no whole file {name!r} came, which is needed; run --stage={self.stage}"
            )
        return record

    def _demand_size(self, name: str, size: int, record: dict[str, Any]) -> None:
        if size != record["size"]:
            raise ValueError(
                f"{self.home / name}: expected the {record['size']} bytes that were written, got "
                f"{max(size, 0)}. {self._remedy}"
            )

    def _demand_hash(self, name: str, found: dict[str, Any], record: dict[str, Any]) -> None:
        if found != record:
            raise ValueError(
                f"{self.home / name}: expected the bytes that were written, got altered bytes. {self._remedy}"
            )

    def finish(self, **facts: Any) -> None:
        """Commits the stage: writes the manifest with its facts, files and versions, last of all."""
        processes.on_process_zero(f"{self} manifest.json", lambda: self._finish(facts))

    def _finish(self, facts: Mapping[str, Any]) -> None:
        locks.check_held(self.home)
        self.keep_logs()
        names = sorted(committed_names(self.home))
        manifest = {
            "stage": self.stage,
            "fingerprint": self.fingerprint,
            **facts,
            "files": {name: self._committed(name) for name in names},
            "versions": package_versions(),
            "commit": commit_of_source(),
        }
        write_whole(self.home / "manifest.json", json.dumps(sealed(manifest), indent=1) + "\n")
        for name in names:  # the manifest now says what the sidecars said
            remove(self._sidecar(name))

    def clear(self) -> None:
        """Deletes the folder: its manifest, which vouches for the rest, first."""
        processes.on_process_zero(f"{self} clear", self._clear)
        self._manifest = None

    def _clear(self) -> None:
        locks.check_held(self.home)
        remove(self.home / "manifest.json")
        if self._is_copy:
            bucket.delete_objects(self.home)
        if self.path.exists():
            with naming(self.path):
                self.path.rmtree()

    def drop(self, name: str) -> None:
        """Delete a folder that a stage needed to go on, and that no manifest names."""
        processes.on_process_zero(f"{self} without {name}", lambda: self._drop(name))

    def _drop(self, name: str) -> None:
        locks.check_held(self.home)
        for folder in {self.home / name, self.path / name}:
            if bucket.is_bucket(folder):
                bucket.delete_objects(folder)
            elif folder.exists():
                folder.rmtree()

    def keep_logs(self) -> None:
        """Sends up what is not committed, but should be there for people and for a run that goes on."""
        for name in _LOGS if self._is_copy else ():
            if processes.is_process_zero() and (self.path / name).exists():
                bucket.upload(self.path / name, self.home / name)

    def fetch_logs(self) -> None:
        """Takes over the logs of a run that may have been another machine's."""
        for name in _LOGS if self._is_copy else ():
            if processes.is_process_zero() and num_bytes_of(self.home / name) >= 0:
                bucket.download(self.home / name, self.path / name)

    # -- typed files --

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())

    def read_json(self, name: str) -> Any:
        return parse_json(self.read(name), str(self.home / name), self._remedy)

    def write_jsonl(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        self.write(name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())

    def read_jsonl(self, name: str) -> list[dict[str, Any]]:
        return parse_jsonl(self.read(name), str(self.home / name), remedy=self._remedy)

    def write_arrays(self, name: str, **arrays: np.ndarray) -> None:
        """Writes named arrays as one `.npz` file."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        self.write(name, buffer.getvalue())

    def read_arrays(self, name: str, *fields: str) -> dict[str, np.ndarray]:
        """The named arrays of a `.npz` file, which are `fields` where some are given."""
        data = io.BytesIO(self.read(name))
        with self._no_array_file(name):
            with np.load(data, allow_pickle=False) as arrays:
                found = dict(arrays)
            if fields and set(found) != set(fields):
                raise ValueError(f"arrays {sorted(found)}, not {sorted(fields)}")
        return found

    def write_array(self, name: str, array: np.ndarray) -> None:
        """Writes one array as a `.npy` file, for `map_array`."""
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        self.write(name, buffer.getvalue())

    def map_array(self, name: str) -> np.ndarray:
        """A `.npy` file's array, checked once and then read from disk as it is used."""
        path = self.verified_path(name)
        with self._no_array_file(name):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(array, np.ndarray):
                raise ValueError("an archive of arrays, not one")
        return array

    @contextlib.contextmanager
    def _no_array_file(self, name: str) -> Iterator[None]:
        """Names the file where numpy finds no arrays in it."""
        try:
            yield
        except (
            ValueError,
            OSError,
            EOFError,
            KeyError,
            TypeError,
            AttributeError,
            zipfile.BadZipFile,
        ) as error:
            raise ValueError(
                f"{self.home / name}: expected arrays of numpy, got something else ({error}). {self._remedy}"
            ) from None

    @property
    def _remedy(self) -> str:
        return f"Delete the folder {self.home} and rerun --stage={self.stage}."
