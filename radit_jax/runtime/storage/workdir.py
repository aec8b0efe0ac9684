"""The workdir: the folder of one experiment, on a disk or in a bucket, with its stages' output."""

import contextlib
import json
import os
import re
import socket
import tempfile
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
    names_in,
    remove,
    size_and_hash,
    subfolders,
)
from radit_jax.runtime.storage.files import as_object, parse_json, write_whole
from radit_jax.runtime.storage.manifests import read_manifest
from radit_jax.runtime.storage.source_hashes import SourceHashes
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.runtime.storage.top_level_folder import TopLevelFolder

_FINGERPRINT = re.compile(r"[0-9a-f]{12}")
# What a stage writes first, by which its folder is known to be one.
_LEFT_BY_STAGES = ("manifest.json", "*.sha256", "metrics.jsonl", "checkpoints", ".sessions.json")
# What may lie in a workdir before its first run: hidden files, logs, and what a start leaves that was killed.
_OF_NO_ACCOUNT = (
    ".*",
    "lost+found",
    "*.log",
    "log",
    "*.out",
    "*.err",
    "lock",
    "lease*",
    "probe-*",
    "compiled",
    "workdir.json",
    "sources.json",
)
_CLAIM = "workdir.json"
_REMEDY = "Delete it, or name another --workdir."


class Workdir:
    """The folder of one experiment: its stages' folders, its lock, and its memory of source hashes."""

    def __init__(self, path: epath.PathLike, scratch: epath.PathLike | None = None):
        bucket.check_path(path)
        self.path = epath.Path(path)
        self.local = bucket.local_copy(self.path, scratch)  # `path` itself, unless it is in a bucket
        self.in_bucket = bucket.is_bucket(self.path)
        self._hashes = SourceHashes(self.path / "sources.json")
        if self.in_bucket:
            bucket.check_access(self.path, write=False)

    def check_free(self, experiment: str, log_file: str = "") -> None:
        """Refuse a folder in which a run of `experiment` would write among other files; writes nothing.

        It may be absent, empty, a workdir of this experiment, or one whose `workdir.json` was lost. The
        `log_file` of this command may be in it.
        """
        if not self.in_bucket and self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path}: expected a folder, got a file. Name another --workdir.")
        # 1) Whose it is, where it is somebody's.
        if self.claimed_by is not None:
            self.check_claim(experiment)
            return
        # 2) Of nobody's folder, what is in it.
        allowed = (*_OF_NO_ACCOUNT, os.path.basename(log_file))
        others = [name for name in names_in(self.path) if not matches(name, allowed)]
        if others and not self._has_stages():
            raise ValueError(
                f"{self.path}: expected a workdir or an empty folder, got one with {min(others)!r}, which no "
                f"run wrote. Name one for the run alone: --workdir={self.path / experiment}."
            )

    def check_writable(self) -> None:
        """Refuse a workdir in which nothing could be written; on a disk, leaves nothing behind."""
        if self.in_bucket:
            bucket.check_access(self.path, write=True)
            return
        # What is not there would be made in the first parent that is.
        folder = next(parent for parent in (self.path, *self.path.absolute().parents) if parent.exists())
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ValueError(
                f"{self.path}: expected a folder that a run may write in, got {error.strerror} in {folder}. "
                "Name another --workdir."
            ) from None

    def _has_stages(self) -> bool:
        """Whether the folder holds what a stage has left, by the names of folders."""
        for stage in subfolders(self.path):
            is_export = (stage / "manifest.json").exists()
            if is_export or any(_FINGERPRINT.fullmatch(run.name) for run in subfolders(stage)):
                return True
        return False

    def claim(self, experiment: str) -> None:
        """Make the folder this experiment's; ValueError where it is another's. The caller holds the lock."""
        processes.on_process_zero("workdir.json", lambda: self._claim(experiment))
        # Process 0 wrote it: who does not see it has another folder of that name.
        if not (self.path / _CLAIM).exists():
            raise ValueError(
                f"{self.path}: expected a folder that all hosts see, got one that only "
                f"{socket.gethostname()} has. Name one on a shared filesystem with --workdir, or use gs://."
            )

    def _claim(self, experiment: str) -> None:
        if self.claimed_by is None:
            text = json.dumps({"experiment": experiment}) + "\n"
            write_whole(self.path / _CLAIM, text)
        self.check_claim(experiment)
        self._hashes.save()

    @property
    def claimed_by(self) -> str | None:
        """The name of the experiment whose folder this is; None where no run has claimed it."""
        identity = self.path / _CLAIM
        data = bytes_or_none(identity)
        if not data or not data.strip():  # a power cut may leave an empty file
            return None
        value = parse_json(data, str(identity), _REMEDY)
        return str(as_object(value, str(identity), _REMEDY).get("experiment"))

    def check_claim(self, experiment: str) -> None:
        """Refuse a folder that is another experiment's."""
        claim = self.claimed_by
        if claim not in (None, experiment):
            raise ValueError(
                f"{self.path}: expected a workdir of the experiment {experiment!r}, got one of "
                f"{claim!r}. Name another folder with --workdir."
            )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runs out of the folder inside, and make it if it does not exist.

        On a disk the lock is free when the process ends; in a bucket, a minute after its holder was killed.
        """
        if self.in_bucket:
            bucket.check_access(self.path, write=True)
        with locks.hold(self.path):
            yield

    def folder(self, stage: str, fingerprint: str) -> StageFolder:
        """The folder of `stage` for a fingerprint, whether or not it exists."""
        home = self.path / stage / fingerprint
        return StageFolder(home, self.local / stage / fingerprint)

    def published(self, stage: str, fingerprint: str) -> TopLevelFolder:
        """The folder of a stage whose output is at the workdir's top, where people look for it."""
        return TopLevelFolder(self.path / stage, fingerprint, self.local / stage)

    def source_hash(self, path: epath.PathLike, files: Sequence[epath.PathLike] | None = None) -> str:
        """SHA-256 of a file's bytes, or of the names and bytes of a folder's files (`SourceHashes.of`).

        It is remembered once the workdir is claimed.
        """
        return self._hashes.of(path, files)

    def publish(self, folder: StageFolder, patterns: Sequence[str], where: str = "") -> None:
        """Copy a finished stage's files that match `patterns` to the top, in place of its earlier runs'.

        `where` is a folder below the top that takes them instead.
        A file that no run of the stage wrote is a person's. It stays, under another name where a published
        file takes its own.
        """
        locks.check_held(self.path)
        target = self.path / where
        records = folder.manifest["files"]
        names = [name for name in records if matches(name, patterns)]

        # 1) What runs of the stage have written, by their manifests and by the record of earlier calls.
        published = self._published_hashes(folder.stage)
        written: set[tuple[str, str]] = set()
        for name, digests in published.items():
            written.update((name, digest) for digest in digests)
        for manifest in self.manifests(folder.stage):
            for name, record in manifest["files"].items():
                written.add((name, record["sha256"]))

        # 2) The record first, so that a kill leaves no file at the top that it does not name.
        for name in names:
            digests = {*published.get(name, ()), records[name]["sha256"]}
            published[name] = sorted(digests)
        text = json.dumps(published, indent=1) + "\n"
        write_whole(self._published_file(folder.stage), text)

        # 3) Make room: a person's file moves aside, a file of an earlier run goes.
        for file in list(target.iterdir()) if target.exists() else []:
            if not matches(file.name, patterns) or is_link(file):
                continue
            is_ours = (file.name, size_and_hash(file)["sha256"]) in written
            if not is_ours and file.name in names:
                move_aside(file)
            elif is_ours and file.name not in names:
                remove(file)

        # 4) Copy.
        for name in names:
            write_whole(target / name, folder.read(name))

    def _published_file(self, stage: str) -> epath.Path:
        return self.path / stage / "published.json"

    def _published_hashes(self, stage: str) -> dict[str, list[str]]:
        """The hashes of each file that `publish` has written, also of runs that were deleted since."""
        data = bytes_or_none(self._published_file(stage)) or b"{}"
        try:
            saved = parse_json(data, stage, "")
        except ValueError:
            return {}
        if not isinstance(saved, dict):
            return {}
        names = [name for name in saved if isinstance(saved[name], list)]
        return {name: saved[name] for name in names}

    def manifests(self, stage: str) -> list[dict[str, Any]]:
        """The manifests of all finished runs of `stage`, the latest last; an export's is at its own top."""
        folders = [self.path / stage, *subfolders(self.path / stage)]
        files = [folder / "manifest.json" for folder in folders]
        finished = [file for file in files if file.exists()]
        by_time = sorted((modified(file), file) for file in finished)
        manifests = []
        for _, file in by_time:
            # Whoever reads that stage gets the error of a damaged one.
            with contextlib.suppress(ValueError):
                manifest = read_manifest(file)
                if manifest is not None:
                    manifests.append(manifest)
        return manifests

    def superseded(self, current: Iterable[StageFolder]) -> list[StageFolder]:
        """The stage folders, complete or half-written, that no current setting asks for.

        Only folders that look like this program's: in a stage's folder, named by a fingerprint, with
        something in it that a stage leaves. Nothing that a symbolic link leads to.
        """
        # 1) What is in use.
        current_paths = {os.fspath(folder.home) for folder in current}
        stages = {folder.stage for folder in current}
        # 2) The rest of the same stages.
        stale = []
        for stage_folder in subfolders(self.path):
            if stage_folder.name not in stages or is_link(stage_folder):
                continue
            for run in subfolders(stage_folder):
                is_current = os.fspath(run) in current_paths
                if not is_current and _FINGERPRINT.fullmatch(run.name) and _is_stage_output(run):
                    stale.append(run)
        stale.sort()
        return [self.folder(run.parent.name, run.name) for run in stale]


def _is_stage_output(run: epath.Path) -> bool:
    """Whether a stage began to fill the folder."""
    if is_link(run):
        return False
    return any(matches(child.name, _LEFT_BY_STAGES) for child in run.iterdir())
