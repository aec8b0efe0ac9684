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
import dataclasses
import fnmatch
import hashlib
import importlib.metadata
import io
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from radit_jax.runtime.distributed import processes
from radit_jax.runtime.errors import naming
from radit_jax.runtime.storage import bucket, locks
from radit_jax.runtime.storage.files import (
    SEAL,
    as_object,
    has_seal,
    parse_json,
    sealed,
    sync_folder,
    write_whole,
)
from radit_jax.runtime.storage.source_hashes import SourceHashes, hash_file, hash_listing

_FINGERPRINT = re.compile(r"[0-9a-f]{12}")
_LEFT_BY_STAGES = ("manifest.json", "*.sha256", "metrics.jsonl", "checkpoints")
_LOGS = ("metrics.jsonl", "tensorboard")


# ---- fingerprints ----


def canonical(settings: Any) -> Any:
    """`settings` as plain JSON: equal exactly when the settings mean the same.

    A dataclass carries its class' name, which tells the members of a union apart; a tuple is a list; a
    whole float is an int, because `1` and `1.0` are one setting.

    >>> from radit_jax.config import RetrieveConfig
    >>> canonical({"retrieve": RetrieveConfig(num_chunks=3), "rates": (1.0, 0.5)})
    {'retrieve': {'class': 'RetrieveConfig', 'num_chunks': 3}, 'rates': [1, 0.5]}
    """
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        fields = {f.name: canonical(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
        return {"class": type(settings).__name__, **fields}
    if isinstance(settings, Mapping):
        return {str(key): canonical(value) for key, value in settings.items()}
    if isinstance(settings, tuple | list):
        return [canonical(value) for value in settings]
    if isinstance(settings, float) and settings.is_integer():
        return int(settings)
    if settings is None or isinstance(settings, bool | int | float | str):
        return settings
    raise TypeError(f"a setting of type {type(settings).__name__} has no canonical form: {settings!r}")


def fingerprint(
    stage: str, version: int, settings: Any, parents: Mapping[str, str], sources: Mapping[str, str]
) -> str:
    """Twelve hex digits that name what `stage` makes from these settings, parent stages and sources.

    `parents` maps stage names to their fingerprints, `sources` maps what the stage reads from outside to
    its identity: a revision, or a hash (`Workdir.source_hash`).
    """
    identity = {
        "stage": stage,
        "version": version,
        "settings": canonical(settings),
        "parents": dict(parents),
        "sources": dict(sources),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def shard_name(name: str, index: int, count: int) -> str:
    """The name of shard `index` (from 0) of `count`.

    >>> shard_name("scores", 3, 10)
    'scores-00003-of-00010'
    """
    return f"{name}-{index:05d}-of-{count:05d}"


# ---- the workdir ----


class Workdir:
    """The folder of one experiment: its stages' folders, its lock, and its memory of source hashes."""

    def __init__(self, path: str | os.PathLike[str], scratch: str | os.PathLike[str] | None = None):
        bucket.check_path(path)
        self.path = epath.Path(path)
        self.local = bucket.local_copy(self.path, scratch)  # the same folder, where it is no bucket
        self.in_bucket = bucket.is_bucket(self.path)
        self._hashes = SourceHashes(self.path / "sources.json")
        if self.in_bucket:
            bucket.check_access(self.path, write=False)

    def claim(self, experiment: str) -> None:
        """Make the folder this experiment's, under its lock; another experiment's folder is refused."""
        processes.on_process_zero("workdir.json", lambda: self._claim(experiment))
        if not (self.path / "workdir.json").exists():
            raise ValueError(
                f"{self.path}: a folder came that {socket.gethostname()} has for itself, needed is one that "
                "all hosts see; name one on a shared filesystem with --workdir, or use gs://"
            )

    def _claim(self, experiment: str) -> None:
        identity, remedy = self.path / "workdir.json", "Delete it, or name another --workdir."
        written = _bytes_or_none(identity)
        if not written or not written.strip():  # a power cut may leave a name without bytes
            write_whole(identity, json.dumps({"experiment": experiment}) + "\n")
            written = identity.read_bytes()
        found = as_object(parse_json(written, str(identity), remedy), str(identity), remedy)
        if found.get("experiment") != experiment:
            raise ValueError(
                f"{self.path}: it holds the experiment {found.get('experiment')!r}, needed is one of "
                f"{experiment!r}; name another folder with --workdir"
            )
        self._hashes.save()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes out while the context lasts, and makes the folder.

        The system frees it however we end; a lease, in a bucket, is free a minute after a holder was killed.
        """
        if self.in_bucket:
            bucket.check_access(self.path, write=True)
        with locks.hold(self.path):
            yield

    def folder(self, stage: str, fingerprint: str) -> "StageFolder":
        """The folder of `stage` under these settings, whether or not it exists."""
        return StageFolder(self.path / stage / fingerprint, self.local / stage / fingerprint)

    def published(self, stage: str, fingerprint: str) -> "TopLevelFolder":
        """The folder of a stage whose output stands at the workdir's top, where people look for it."""
        return TopLevelFolder(self.path / stage, fingerprint, self.local / stage)

    def source_hash(
        self, path: str | os.PathLike[str], files: Sequence[os.PathLike[str]] | None = None
    ) -> str:
        """SHA-256 of a file's bytes, or of a folder's file names and their bytes (`SourceHashes.of`).

        What was read is remembered once the folder is claimed.
        """
        return self._hashes.of(path, files)

    def publish(self, folder: "StageFolder", patterns: Sequence[str]) -> None:
        """Copy a finished stage's files of these patterns to the top, in place of its earlier runs'.

        What no run of the stage wrote is a person's: it stays, under another name where ours takes its own.
        """
        locks.check_held(self.path)
        files = [manifest["files"].items() for manifest in self.manifests(folder.stage)]
        ours = {(name, record["sha256"]) for run in files for name, record in run}
        record, remembered = self.path / folder.stage / "published.json", self._published(folder.stage)
        ours |= {(name, digest) for name, digests in remembered.items() for digest in digests}
        names = [name for name in folder.manifest["files"] if _matches(name, patterns)]
        # First of all, so that a kill leaves no file of ours that the record does not name.
        for name in names:
            remembered[name] = sorted({*remembered.get(name, ()), folder.manifest["files"][name]["sha256"]})
        write_whole(record, json.dumps(remembered, indent=1) + "\n")
        for file in list(self.path.iterdir()):
            if not _matches(file.name, patterns) or _is_link(file):
                continue
            if (file.name, _measure(file)["sha256"]) not in ours:
                if file.name in names:
                    _move_aside(file)
            elif file.name not in names:
                _remove(file)
        for name in names:
            write_whole(self.path / name, folder.read(name))

    def _published(self, stage: str) -> dict[str, list[str]]:
        """The hashes of each file that `publish` has written, of runs that were deleted since as well."""
        try:
            found = parse_json(_bytes_or_none(self.path / stage / "published.json") or b"{}", stage, "")
        except ValueError:
            return {}
        values = found.items() if isinstance(found, dict) else ()
        return {name: digests for name, digests in values if isinstance(digests, list)}

    def manifests(self, stage: str) -> list[dict[str, Any]]:
        """The manifests of all finished runs of `stage`, the latest last."""
        files = [run / "manifest.json" for run in _subfolders(self.path / stage)]
        written = sorted((_modified(file), file) for file in files if file.exists())
        found = []
        for _, file in written:
            with contextlib.suppress(ValueError):  # who reads that stage is told
                found.append(_read_manifest(file))
        return [manifest for manifest in found if manifest is not None]

    def superseded(self, current: Iterable["StageFolder"]) -> "list[StageFolder]":
        """The stage folders, whole or half-written, that no current setting asks for.

        Only what looks like this program's own: a folder below a stage's, named by a fingerprint, with
        something in it that a stage leaves. Nothing that a symbolic link leads to.
        """
        kept = {os.fspath(folder.home) for folder in current}
        stages = {folder.stage for folder in current}
        stale = []
        for stage in _subfolders(self.path):
            for run in _subfolders(stage) if stage.name in stages and not _is_link(stage) else ():
                if os.fspath(run) not in kept and _FINGERPRINT.fullmatch(run.name) and _is_ours(run):
                    stale.append(run)
        return [self.folder(run.parent.name, run.name) for run in sorted(stale)]


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
        manifest = _read_manifest(self.home / "manifest.json", self._remedy)
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
        return max(_size(self.home), 0)

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
        _remove(self._sidecar(name))
        write_whole(self.path / name, data)
        self._send(name)
        self._commit(name, _measure_bytes(data))

    def copy_from(self, other: "StageFolder", name: str) -> None:
        """Copies a committed file or folder of another stage under its own name."""
        processes.on_process_zero(f"{self} {name}", lambda: self._adopt(other, name))

    def _adopt(self, other: "StageFolder", name: str) -> None:
        locks.check_held(self.home)
        source = other.check(name)
        for file in _files(source) if source.is_dir() else [source]:
            copy = self.path / os.path.relpath(file, other.path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            file.copy(copy, overwrite=True)
        _sync(self.path / name)
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
        _sync(self.path / name)
        self._send(name)
        self._commit(name, _measure(self.path / name))

    def _send(self, name: str) -> None:
        if self._is_copy:
            _remove(self._sidecar(name))
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
        return _read_sidecar(self._sidecar(name))

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
        size = _size(self.home / name)
        if self.complete:
            self._demand_size(name, size, record)
        return size == record["size"]

    def check(self, name: str) -> epath.Path:
        """The path of a committed file or folder whose bytes are those that were written."""
        record = self._committed(name)
        if self._is_copy:
            return self._fetch(name, record)
        self._demand_size(name, _size(self.path / name), record)
        self._demand_hash(name, _measure(self.path / name), record)
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

    def check_own(self, name: str) -> epath.Path:
        """As `check`, of what this process reads and the others do not."""
        return self._fetch_own(name, self._committed(name)) if self._is_copy else self.check(name)

    def _fetch_own(self, name: str, record: dict[str, Any]) -> epath.Path:
        copy = self.path / name
        if _size(copy) == record["size"] and _measure(copy) == record:
            return copy
        self._demand_size(name, _size(self.home / name), record)
        bucket.download(self.home / name, copy)
        self._demand_hash(name, _measure(copy), record)
        return copy

    def read(self, name: str) -> bytes:
        """The bytes of a committed file, checked against their size and hash."""
        if self._is_copy:
            return self.check(name).read_bytes()
        record = self._committed(name)
        data = (self.path / name).read_bytes() if (self.path / name).exists() else b""
        self._demand_size(name, len(data), record)
        self._demand_hash(name, _measure_bytes(data), record)
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
        names = sorted(_committed_names(self.home))
        manifest = {
            "stage": self.stage,
            "fingerprint": self.fingerprint,
            **facts,
            "files": {name: self._committed(name) for name in names},
            "versions": _versions(),
            "commit": _commit_of_source(),
        }
        write_whole(self.home / "manifest.json", json.dumps(sealed(manifest), indent=1) + "\n")
        for name in names:  # the manifest now says what the sidecars said
            _remove(self._sidecar(name))

    def clear(self) -> None:
        """Deletes the folder: its manifest, which vouches for the rest, first."""
        processes.on_process_zero(f"{self} clear", self._clear)
        self._manifest = None

    def _clear(self) -> None:
        locks.check_held(self.home)
        _remove(self.home / "manifest.json")
        if self._is_copy:
            bucket.remove(self.home)
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
                bucket.remove(folder)
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
            if processes.is_process_zero() and _size(self.home / name) >= 0:
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
        path = self.check(name)
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


class TopLevelFolder(StageFolder):
    """A stage's folder at the workdir's top: it holds one fingerprint's output at a time."""

    def __init__(
        self,
        home: str | os.PathLike[str],
        fingerprint: str = "",
        path: str | os.PathLike[str] | None = None,
    ):
        super().__init__(home, path)
        self.stage = self.home.name
        self.fingerprint = fingerprint
        if not fingerprint and self.complete and self._manifest:
            self.fingerprint = self._manifest["fingerprint"]

    def _demand_own(self, manifest: Mapping[str, Any]) -> None:
        """Any manifest will do: people may move what is published, and other settings replace it."""

    def commit_each(self, name: str) -> None:
        """Commits what is in a folder one by one, so that a person may put other files next to it."""
        processes.on_process_zero(f"{self} {name}/*", lambda: self._commit_each(name))

    def _commit_each(self, name: str) -> None:
        locks.check_held(self.home)
        # Folders in it stay whole: Orbax reads none of its own that a sidecar was left in.
        for child in sorted((self.path / name).iterdir()):
            self._commit(f"{name}/{child.name}", _measure(child))
        _remove(self._sidecar(name))  # of the whole, from which the files are copied

    def holds(self, name: str) -> bool:
        """Whether the finished folder's manifest names a file, or a folder or files in it."""
        return any(f"{one}/".startswith(f"{name}/") for one in self.manifest["files"])

    def check(self, name: str) -> epath.Path:
        """The path of a file or folder whose bytes are those that were written.

        Of a folder whose content is committed one by one nothing else is checked, nor a README.md: people
        write their own model cards.
        """
        names = self.manifest["files"] if self.complete else _committed_names(self.home)
        inside = [one for one in names if one.startswith(f"{name}/")]
        for one in inside:
            if not one.endswith("/README.md"):
                super().check(one)
        return self.path / name if inside else super().check(name)

    def _clear(self) -> None:
        """Deletes the folder; one in which a person has put something is kept whole, under another name."""
        if not self._is_copy and self._strangers():
            locks.check_held(self.home)
            _move_aside(self.home, "it holds files that no run wrote")
        super()._clear()

    def _strangers(self) -> list[str]:
        """What no run wrote in a finished folder, but for hidden files; model cards that were edited."""
        _ = self.complete  # it reads the manifest, of whichever fingerprint
        if self._manifest is None:
            return []
        own, found = self._manifest["files"], []
        for file in _files(self.home):
            name = pathlib.PurePosixPath(os.path.relpath(file, self.home))
            if str(name) == "manifest.json" or name.suffix == ".sha256":  # a kill may leave the latter
                continue
            if any(part.startswith(".") for part in name.parts):
                continue
            if str(name) in own:
                edited = name.name == "README.md" and _measure(file) != own[str(name)]
            else:
                edited = not any(str(folder) in own for folder in name.parents)
            found += [str(name)] * edited
        return found

    @property
    def half_written(self) -> bool:
        """Whether a run began to fill the folder and did not finish; another fingerprint's may be whole."""
        return super().half_written and self._manifest is None

    @property
    def complete(self) -> bool:
        """Whether what stands there is whole and of this fingerprint."""
        return super().complete and self.fingerprint in ("", (self._manifest or {})["fingerprint"])


# ---- reading and measuring ----


def parse_jsonl(
    data: bytes, where: str, fields: Iterable[str] = (), remedy: str = "Correct the line."
) -> list[dict[str, Any]]:
    """The objects of JSON lines, each of which must have `fields`; `where` names the file in errors."""
    rows = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        place = f"{where} line {number}"
        row = as_object(parse_json(line, place, remedy), place, remedy)
        missing = [field for field in fields if field not in row]
        if missing:
            raise ValueError(f"{place}: expected the field {missing[0]!r}, got {sorted(row)}. {remedy}")
        rows.append(row)
    return rows


def _bytes_or_none(path: epath.Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _read_manifest(path: epath.Path, remedy: str = "") -> dict[str, Any] | None:
    """The manifest at `path`; None where there is none, or only a name without bytes, as a power cut leaves.

    Raises ValueError for one that is not as it was written.
    """
    data = _bytes_or_none(path)
    if not data or not data.strip():
        return None
    manifest = as_object(parse_json(data, str(path), remedy), str(path), remedy)
    if SEAL in manifest and not has_seal(manifest):  # older ones have none
        raise ValueError(f"{path}: expected the facts that were written, got altered ones. {remedy}")
    names, files = (manifest.get("stage"), manifest.get("fingerprint")), manifest.get("files")
    is_listing = isinstance(files, dict) and all(_is_inside(n) and _is_record(r) for n, r in files.items())
    if not is_listing or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{path}: expected a stage, a fingerprint and files with sizes and hashes, got others. {remedy}"
        )
    return manifest


def _read_sidecar(path: epath.Path) -> dict[str, Any] | None:
    """The size and hash in a sidecar; None where there is none that could be one."""
    try:
        found = parse_json(_bytes_or_none(path) or b"", str(path), "")
    except ValueError:
        return None
    return found if _is_record(found) else None


def _is_record(found: Any) -> bool:
    """Whether JSON is `{"size": bytes, "sha256": hash}`."""
    if not isinstance(found, dict) or set(found) != {"size", "sha256"}:
        return False
    return type(found["size"]) is int and isinstance(found["sha256"], str)


def _is_inside(name: str) -> bool:
    """Whether a name in a manifest is that of a file inside its folder."""
    return not os.path.isabs(name) and ".." not in pathlib.PurePosixPath(name).parts


def _sync(path: epath.Path) -> None:
    """Bring to the disk what another library wrote, before a sidecar vouches for it."""
    files = _files(path) if path.is_dir() else [path]
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    for folder in {file.parent for file in files}:
        sync_folder(folder)


def _subfolders(path: epath.Path) -> list[epath.Path]:
    if bucket.is_bucket(path):
        return bucket.subfolders(path)
    return [child for child in path.iterdir() if child.is_dir()] if path.exists() else []


def _files(path: epath.Path) -> list[epath.Path]:
    """Every file under the folder `path`, in order."""
    children = sorted(path.iterdir()) if path.exists() else []
    return [file for child in children for file in (_files(child) if child.is_dir() else [child])]


def _committed_names(folder: epath.Path) -> list[str]:
    """Names with a sidecar; what lies inside a committed folder is covered by that folder's sidecar."""
    if bucket.is_bucket(folder):
        names = [*bucket.sizes(folder)]
    else:
        names = [os.path.relpath(file, folder) for file in _files(folder)]
    return [name.removesuffix(".sha256") for name in names if name.endswith(".sha256")]


def _remove(path: epath.Path) -> None:
    """Removes a file, which need not be there."""
    if bucket.is_bucket(path):
        bucket.remove(path)
    else:
        path.unlink(missing_ok=True)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _is_ours(run: epath.Path) -> bool:
    """Whether a stage began to fill the folder."""
    return not _is_link(run) and any(_matches(child.name, _LEFT_BY_STAGES) for child in run.iterdir())


def _is_link(path: epath.Path) -> bool:
    return not bucket.is_bucket(path) and os.path.islink(path)


def _move_aside(path: epath.Path, why: str = "this run did not write it") -> None:
    """Give a file that is not ours a name with a number behind it, and say so."""
    number = 1
    while (aside := path.parent / f"{path.name}.{number}").exists():
        number += 1
    if bucket.is_bucket(path):
        write_whole(aside, path.read_bytes())
        _remove(path)
    else:
        os.rename(path, aside)
    print(f"{path}: {why}, so it was kept as {aside.name}", file=sys.stderr)


def _modified(path: epath.Path) -> float:
    """When a file was written last, in seconds since 1970."""
    return bucket.modified(path) if bucket.is_bucket(path) else float(path.stat().mtime)


def _size(path: epath.Path) -> int:
    """Bytes of a file, or of all files under a folder; −1 where there is neither."""
    if bucket.is_bucket(path):
        found = bucket.sizes(path)
        return sum(found.values()) if found else -1
    if not path.exists():
        return -1
    if path.is_dir():
        return sum(file.stat().length for file in _files(path))
    return path.stat().length


def _measure(path: epath.Path) -> dict[str, Any]:
    """Size and SHA-256 of a file; of a folder, over the names and hashes of its files."""
    if not path.is_dir():
        return {"size": path.stat().length, "sha256": hash_file(path)}
    files = _files(path)
    names = [os.path.relpath(file, path) for file in files]
    return {"size": _size(path), "sha256": hash_listing([hash_file(file) for file in files], names)}


def _measure_bytes(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _versions() -> dict[str, str]:
    versions = {}
    for package in ("radit_jax", "jax", "flax", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # run from a checkout
            versions[package] = importlib.metadata.version(package)
    return versions


def _commit_of_source() -> str | None:
    """The git commit that the package was run from; `None` for an installed package."""
    checkout = pathlib.Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError):  # no git
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    return None
