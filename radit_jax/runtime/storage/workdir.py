"""The folder of one experiment, on a disk or in a bucket: its stages, its lock, its sources' hashes."""

import contextlib
import json
import os
import re
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage import bucket, locks
from radit_jax.runtime.storage.entries import (
    bytes_or_none,
    is_link,
    matches,
    modified,
    move_aside,
    remove,
    size_and_hash,
    subfolders,
)
from radit_jax.runtime.storage.files import (
    as_object,
    parse_json,
    write_whole,
)
from radit_jax.runtime.storage.manifests import read_manifest
from radit_jax.runtime.storage.source_hashes import SourceHashes
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.runtime.storage.top_level_folder import TopLevelFolder

_FINGERPRINT = re.compile(r"[0-9a-f]{12}")
_LEFT_BY_STAGES = ("manifest.json", "*.sha256", "metrics.jsonl", "checkpoints")


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
        written = bytes_or_none(identity)
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
        names = [name for name in folder.manifest["files"] if matches(name, patterns)]
        # First of all, so that a kill leaves no file of ours that the record does not name.
        for name in names:
            remembered[name] = sorted({*remembered.get(name, ()), folder.manifest["files"][name]["sha256"]})
        write_whole(record, json.dumps(remembered, indent=1) + "\n")
        for file in list(self.path.iterdir()):
            if not matches(file.name, patterns) or is_link(file):
                continue
            if (file.name, size_and_hash(file)["sha256"]) not in ours:
                if file.name in names:
                    move_aside(file)
            elif file.name not in names:
                remove(file)
        for name in names:
            write_whole(self.path / name, folder.read(name))

    def _published(self, stage: str) -> dict[str, list[str]]:
        """The hashes of each file that `publish` has written, of runs that were deleted since as well."""
        try:
            found = parse_json(bytes_or_none(self.path / stage / "published.json") or b"{}", stage, "")
        except ValueError:
            return {}
        values = found.items() if isinstance(found, dict) else ()
        return {name: digests for name, digests in values if isinstance(digests, list)}

    def manifests(self, stage: str) -> list[dict[str, Any]]:
        """The manifests of all finished runs of `stage`, the latest last."""
        files = [run / "manifest.json" for run in subfolders(self.path / stage)]
        written = sorted((modified(file), file) for file in files if file.exists())
        found = []
        for _, file in written:
            with contextlib.suppress(ValueError):  # who reads that stage is told
                found.append(read_manifest(file))
        return [manifest for manifest in found if manifest is not None]

    def superseded(self, current: Iterable["StageFolder"]) -> "list[StageFolder]":
        """The stage folders, whole or half-written, that no current setting asks for.

        Only what looks like this program's own: a folder below a stage's, named by a fingerprint, with
        something in it that a stage leaves. Nothing that a symbolic link leads to.
        """
        kept = {os.fspath(folder.home) for folder in current}
        stages = {folder.stage for folder in current}
        stale = []
        for stage in subfolders(self.path):
            for run in subfolders(stage) if stage.name in stages and not is_link(stage) else ():
                if os.fspath(run) not in kept and _FINGERPRINT.fullmatch(run.name) and _is_ours(run):
                    stale.append(run)
        return [self.folder(run.parent.name, run.name) for run in sorted(stale)]


def _is_ours(run: epath.Path) -> bool:
    """Whether a stage began to fill the folder."""
    return not is_link(run) and any(matches(child.name, _LEFT_BY_STAGES) for child in run.iterdir())
