"""A stage's output, `<workdir>/<stage>/<fingerprint>/`, committed by its manifest.

The folder's name stands for everything that its content depends on. So the settings themselves say which
folder is current, nothing is moved or overwritten, and settings that return find their data. A file counts
once its sidecar, with its size and hash, exists, and a stage once `manifest.json` exists. Both are written
after the data, so a process that is killed anywhere leaves nothing that a reader could take for whole.

A workdir may be in a bucket. Then a stage works in a copy of its folder on this machine, `StageFolder.path`.
What it commits is uploaded to `StageFolder.home`. What is read is downloaded once, and verified like any
file.

Several processes all call the same methods in the same order. Process 0 writes, and the others wait for it.
It also says what exists, because a shared disk may show a file to some processes later. Inside
`processes.apart` a process writes and reads by itself, under names that no other writes. The others can rely
on that after the next barrier.

Nothing here imports jax: the command line says what would run without starting an accelerator.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from radit_jax.command_line import run_stage
from radit_jax.errors import naming
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage import bucket, locks
from radit_jax.runtime.storage.entries import (
    SIDECAR_SUFFIX,
    committed_names,
    is_whole,
    link_or_copy,
    num_bytes_of,
    remove,
    size_and_hash,
    size_and_hash_of_bytes,
    size_and_hash_together,
    sync,
)
from radit_jax.runtime.storage.files import sealed, write_whole
from radit_jax.runtime.storage.fingerprints import commit_of_source, package_versions
from radit_jax.runtime.storage.manifests import read_manifest, read_sidecar
from radit_jax.runtime.storage.typed_files import TypedFiles

_MANIFEST = "manifest.json"
_LOGS = ("metrics.jsonl", "tensorboard")  # not committed

Record = dict[str, Any]  # {"size": bytes, "sha256": hash}


class StageFolder(TypedFiles):
    """One stage's data under one fingerprint; complete once its manifest exists.

    Names are paths relative to the folder. `home` is where it is kept, and `path` where this machine writes
    and reads it: the same folder, unless home is in a bucket.
    """

    def __init__(self, home: epath.PathLike, path: epath.PathLike | None = None):
        self.home = epath.Path(home)
        self.path = bucket.local_copy(self.home) if path is None else epath.Path(path)
        self.stage = self.home.parent.name
        self.fingerprint = self.home.name
        self._manifest: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"{self.stage}/{self.fingerprint}"

    # -- state --

    @property
    def complete(self) -> bool:
        """Whether the stage has finished: its manifest exists and is whole, as far as this process sees."""
        if self._manifest is None:
            self._manifest = self._read_manifest()
        return self._manifest is not None

    @property
    def half_written(self) -> bool:
        """Whether a run began to fill the folder and did not finish."""
        if self.complete or not self.home.exists():
            return False
        # A hidden file says how long it took, and is no output.
        return any(not child.name.startswith(".") for child in self.home.iterdir())

    @property
    def manifest(self) -> dict[str, Any]:
        """What `finish` recorded: the stage's facts, files and versions."""
        if not self.complete or self._manifest is None:
            raise ValueError(
                f"{self}: expected a finished stage, got a half-written folder, or none. "
                f"Run {run_stage(self.stage)}."
            )
        return self._manifest

    def has(self, name: str) -> bool:
        """Whether `name` was committed; if the stage is not finished, whether it still has its size.

        Raises ValueError where a finished stage's file is missing or has another size. That is damage, and a
        caller that took it for "not made" would go on with other data.
        """
        return processes.on_process_zero(f"{self} {name}", lambda: self._has(name))

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those of `names` that it does not have, in their order."""

        def find() -> list[str]:
            return [name for name in names if not self._has(name)]

        return processes.on_process_zero(f"{self} {len(names)} files", find)

    def _has(self, name: str) -> bool:
        record = self._record(name)
        if record is None:
            return False
        size = num_bytes_of(self.home / name)
        if self.complete:
            self._check_size(name, size, record)
        return size == record["size"]

    # -- write --

    def write(self, name: str, data: bytes) -> None:
        """Write a file, and then its sidecar, which commits it."""
        processes.on_process_zero(f"{self} {name}", lambda: self._write(name, data))

    def _write(self, name: str, data: bytes) -> None:
        locks.check_held(self.home)
        # An old sidecar must not vouch for new bytes.
        remove(self._sidecar(name))
        write_whole(self.path / name, data)
        self._upload(name)
        self._write_sidecar(name, size_and_hash_of_bytes(data))

    def copy_from(self, other: "StageFolder", name: str, to: str = "") -> None:
        """Copy a committed file or folder of another stage, with its name or as `to`.

        On a disk weights and arrays are not stored twice: both names lead to them. In a bucket the store
        copies.
        """
        target = to or name
        processes.on_process_zero(f"{self} {target}", lambda: self._copy_from(other, name, target))

    def _copy_from(self, other: "StageFolder", name: str, target: str) -> None:
        locks.check_held(self.home)
        record = other._committed_record(name)
        if self._is_copy and other._is_copy:
            # The record is copied too, so a reader of the copy sees damage as one of the original does.
            other._check_size(name, num_bytes_of(other.home / name), record)
            remove(self._sidecar(target))
            bucket.copy(other.home / name, self.home / target)
            # This machine may have it already, and need not download the copy.
            if (other.path / name).exists():
                link_or_copy(other.path / name, self.path / target)
        else:
            # Verified on the way: damage is not copied.
            link_or_copy(other.verified_path(name), self.path / target)
            sync(self.path / target)
            self._upload(target)
        self._write_sidecar(target, record)

    def commit(self, name: str) -> None:
        """Commit a file or a folder that another library wrote in this folder."""
        processes.on_process_zero(f"{self} {name}", lambda: self._commit(name))

    def _commit(self, name: str) -> None:
        locks.check_held(self.home)
        sync(self.path / name)
        self._upload(name)
        self._write_sidecar(name, size_and_hash(self.path / name))

    def finish(self, **facts: Any) -> None:
        """Commit the stage: write the manifest with its facts, files and versions, last of all."""
        processes.on_process_zero(f"{self} {_MANIFEST}", lambda: self._finish(facts))

    def _finish(self, facts: Mapping[str, Any]) -> None:
        locks.check_held(self.home)
        self.keep_logs()
        # 1) What the manifest says: the facts, and every committed file.
        names = sorted(committed_names(self.home))
        manifest = {
            "stage": self.stage,
            "fingerprint": self.fingerprint,
            **facts,
            "files": {name: self._committed_record(name) for name in names},
            "versions": package_versions(),
            "commit": commit_of_source(),
        }
        # 2) Writing it commits the stage.
        text = json.dumps(sealed(manifest), indent=1) + "\n"
        write_whole(self.home / _MANIFEST, text)
        # 3) It now says what the sidecars said.
        for name in names:
            remove(self._sidecar(name))

    def _upload(self, name: str) -> None:
        if self._is_copy:
            # Until the upload is whole, nothing vouches for it.
            remove(self._sidecar(name))
            bucket.upload(self.path / name, self.home / name)

    # -- sizes and hashes --

    @property
    def _is_copy(self) -> bool:
        """Whether `path` is this machine's copy of a folder that is kept in a bucket."""
        return bucket.is_bucket(self.home)

    def _sidecar(self, name: str) -> epath.Path:
        return self.home / f"{name}{SIDECAR_SUFFIX}"

    def _write_sidecar(self, name: str, record: Record) -> None:
        locks.check_held(self.home)
        write_whole(self._sidecar(name), json.dumps(record) + "\n")

    def _record(self, name: str) -> Record | None:
        """Size and hash of `name` by the manifest, or else by its sidecar; None where it is not committed."""
        if self.complete:
            return self.manifest["files"].get(name)
        return read_sidecar(self._sidecar(name))

    def _committed_record(self, name: str) -> Record:
        record = self._record(name)
        if record is None:
            raise ValueError(
                f"{self}: expected a whole file {name!r}, got none. Run {run_stage(self.stage)}."
            )
        return record

    def _read_manifest(self) -> dict[str, Any] | None:
        manifest = read_manifest(self.home / _MANIFEST, self.remedy)
        if manifest is not None:
            self._check_names(manifest)
        return manifest

    def _check_names(self, manifest: Mapping[str, Any]) -> None:
        """Refuse the manifest of another stage, whose folder was renamed or copied to this one's name."""
        found = f"{manifest['stage']}/{manifest['fingerprint']}"
        if found != f"{self.stage}/{self.fingerprint}":
            raise ValueError(
                f"{self.home / _MANIFEST}: expected that of {self}, got that of {found}. "
                f"Give the folder its name back, or d{self.remedy[1:]}"
            )

    def _check_size(self, name: str, size: int, record: Record) -> None:
        if size != record["size"]:
            raise ValueError(
                f"{self.home / name}: expected the {record['size']} bytes that were written, got "
                f"{max(size, 0)}. {self.remedy}"
            )

    def _check_hash(self, name: str, found: Record, record: Record) -> None:
        if found != record:
            raise ValueError(
                f"{self.home / name}: expected the bytes that were written, got altered bytes. {self.remedy}"
            )

    @property
    def remedy(self) -> str:
        """What to do where a file is damaged."""
        return f"Delete the folder {self.home} and run {run_stage(self.stage)}."

    # -- read --

    def verified_path(self, name: str) -> epath.Path:
        """The path of a committed file or folder, verified: its bytes are those that were written.

        All processes call it, or one that works apart. Of a bucket it is this machine's copy.
        """
        record = self._committed_record(name)
        if self._is_copy:
            return self._shared_copy(name, record)
        path = self.path / name
        found = size_and_hash_together(
            f"{self} {name}",
            path,
            lambda: self._check_size(name, num_bytes_of(path), record),
        )
        self._check_hash(name, found, record)
        return path

    def verified_local_path(self, name: str) -> epath.Path:
        """`verified_path` of what a process reads by itself, in any of its threads, when it first needs it.

        Another process of this machine may fetch the same file at the same time.
        """
        record = self._committed_record(name)
        copy = self.path / name
        if is_whole(copy, record):
            return copy
        self._check_size(name, num_bytes_of(self.home / name), record)
        if not self._is_copy:
            self._check_hash(name, size_and_hash(copy), record)
            return copy
        # It gets its name when it is whole; a folder that is not gives way.
        part = self.path / f"{name}.{os.getpid()}.part"
        bucket.download(self.home / name, part)
        self._check_hash(name, size_and_hash(part), record)
        shutil.rmtree(copy, ignore_errors=True)
        os.replace(part, copy)
        return copy

    def _shared_copy(self, name: str, record: Record) -> epath.Path:
        """This machine's copy. Where processes share the folder of copies, process 0 downloads for all."""
        here = f"{self} {name} fetched"
        # The others wait before they look, process 0 after it has downloaded.
        if not processes.is_process_zero():
            processes.barrier(here)
        copy = self._local_copy(name, record)
        if processes.is_process_zero():
            processes.barrier(here)
        return copy

    def _local_copy(self, name: str, record: Record) -> epath.Path:
        """This machine's copy, downloaded unless it exists and is whole."""
        copy = self.path / name
        if is_whole(copy, record):
            return copy
        self._check_size(name, num_bytes_of(self.home / name), record)
        # An interrupted download goes on, unless what it left turns out to be of other bytes.
        bucket.download(self.home / name, copy, resume=num_bytes_of(copy) != record["size"])
        if size_and_hash(copy) != record:
            bucket.download(self.home / name, copy)
            self._check_hash(name, size_and_hash(copy), record)
        return copy

    def read(self, name: str) -> bytes:
        """The bytes of a committed file; ValueError where size or hash differ from the record."""
        if self._is_copy:
            # The file is downloaded first, unless this machine has it, and verified with that.
            return self.verified_path(name).read_bytes()
        record = self._committed_record(name)
        path = self.path / name
        # A deleted file counts as empty, so that the check of its size reports it.
        data = path.read_bytes() if path.exists() else b""
        self._check_size(name, len(data), record)
        self._check_hash(name, size_and_hash_of_bytes(data), record)
        return data

    # -- delete --

    def clear(self) -> None:
        """Delete the folder: first its manifest, which vouches for the rest."""
        processes.on_process_zero(f"{self} clear", self._clear)
        self._manifest = None

    def _clear(self) -> None:
        locks.check_held(self.home)
        remove(self.home / _MANIFEST)
        # In the bucket, and this machine's copy.
        if self._is_copy:
            bucket.delete_objects(self.home)
        if self.path.exists():
            with naming(self.path):
                self.path.rmtree()

    def drop(self, name: str) -> None:
        """Delete a folder that let a stage resume, and that no manifest names."""
        processes.on_process_zero(f"{self} without {name}", lambda: self._drop(name))

    def _drop(self, name: str) -> None:
        locks.check_held(self.home)
        # On a disk, both are the same folder.
        for folder in {self.home / name, self.path / name}:
            if bucket.is_bucket(folder):
                bucket.delete_objects(folder)
            elif folder.exists():
                folder.rmtree()

    def evict(self) -> None:
        """Delete this machine's copies of what is kept in a bucket; a reader fetches them again."""
        if self._is_copy:
            # Other processes of this machine may be at it too.
            shutil.rmtree(self.path, ignore_errors=True)

    # -- logs, which are not committed --

    def keep_logs(self) -> None:
        """Upload the logs, for people and for a run that resumes this one."""
        for name in self._copied_logs():
            if (self.path / name).exists():
                bucket.upload(self.path / name, self.home / name)

    def fetch_logs(self) -> None:
        """Download the logs of the run that is resumed, which may have been another machine's."""
        for name in self._copied_logs():
            if num_bytes_of(self.home / name) >= 0:
                bucket.download(self.home / name, self.path / name)

    def _copied_logs(self) -> tuple[str, ...]:
        return _LOGS if self._is_copy and processes.is_process_zero() else ()


StageInputs = Mapping[str, StageFolder]  # what a stage reads, by what its function calls each folder
