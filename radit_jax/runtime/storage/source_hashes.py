"""Hashes of what stages read from outside the workdir, remembered so that only new content is read again.

A file's state (size, two times, inode) tells whether it has changed. It belongs to the host that sees it, for
another host may see other times of the same bytes. So it is remembered by host, and enters no fingerprint.
"""

import contextlib
import json
import os
import pathlib
import re
import socket
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from radit_jax.runtime.storage import bucket
from radit_jax.runtime.storage.files import has_seal, read_json, sealed, write_whole
from radit_jax.runtime.storage.hashes import hash_file, hash_listing, in_parallel

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_HOSTS = 64  # remembered; a cluster may give its hosts new names in each run
_EVERYWHERE = "objects"  # in place of a host: an object's state is the same for all hosts

Entry = list[Any]  # a file's state, and its hash at the end
Memory = dict[str, dict[str, Entry]]  # by host and path


class SourceHashes:
    """SHA-256 of files and folders. `save` remembers computed hashes in `file`."""

    def __init__(self, file: epath.PathLike):
        self.file = epath.Path(file)
        self._host = socket.gethostname()
        self._new: Memory = {}

    def of(self, path: epath.PathLike, files: Iterable[epath.PathLike] | None = None) -> str:
        """SHA-256 of a file's bytes, or of the names and bytes of all that is read in a folder.

        That is `files` where the folder's reader names them; else all files, except hidden ones and workdirs.
        Symbolic links are followed, as readers do. Raises ValueError where there is nothing.
        """
        # A bucket's objects, a folder and a file are listed and hashed in different ways.
        in_bucket = bucket.is_bucket(path)
        root = epath.Path(path) if in_bucket else pathlib.Path(path)
        if not root.exists():
            raise ValueError(f"{root}: expected a file or a folder, got none of that name. Correct the path.")
        memory = self._merged()
        if files is not None:
            return self._hash_named(root, files, memory)
        if in_bucket:
            return self._hash_objects(epath.Path(root), memory)
        local = pathlib.Path(root)
        if local.is_dir():
            return self._hash_folder(local, memory)
        return self._hash_file(local, memory)

    def save(self) -> None:
        """Write down the hashes computed since the last time. The caller holds the workdir's lock."""
        if not self._new:
            return
        # The hosts seen last are at the end.
        last_hosts = list(self._merged().items())[-_MAX_HOSTS:]
        memory = sealed(dict(last_hosts))
        write_whole(self.file, json.dumps(memory, indent=1) + "\n")
        self._new = {}

    # -- what is hashed --

    def _hash_named(
        self,
        root: epath.PathLike,
        files: Iterable[epath.PathLike],
        memory: Memory,
    ) -> str:
        def named_hash(file: epath.PathLike) -> tuple[str, str]:
            if bucket.is_bucket(file):
                size = bucket.sizes(file)[""]
                digest = self._hash_object(file, size, memory)
            else:
                digest = self._hash_file(pathlib.Path(file), memory)
            return _name_below(root, file), digest

        named_hashes = in_parallel(named_hash, list(files))
        # In the order of names, whatever order the reader has.
        named_hashes.sort()
        hashes = [digest for _, digest in named_hashes]
        names = [name for name, _ in named_hashes]
        return hash_listing(hashes, names)

    def _hash_objects(self, root: epath.Path, memory: Memory) -> str:
        sizes = _without_workdirs(bucket.sizes(root))

        def object_hash(name: str) -> str:
            # The root itself may be an object.
            path = root / name if name else root
            return self._hash_object(path, sizes[name], memory)

        hashes = in_parallel(object_hash, list(sizes))
        return hash_listing(hashes, sizes)

    def _hash_folder(self, root: pathlib.Path, memory: Memory) -> str:
        listing = list_folder(root)

        def entry_hash(entry: pathlib.Path | str) -> str:
            # A folder's second name stands in the place of a hash.
            return self._hash_file(entry, memory) if isinstance(entry, pathlib.Path) else entry

        hashes = in_parallel(entry_hash, listing.values())
        return hash_listing(hashes, listing)

    def _hash_file(self, file: pathlib.Path, memory: Memory) -> str:
        status = file.stat()
        # A program can set mtime back, but not ctime, which the system keeps.
        state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        return self._recall(self._host, str(file.resolve()), state, memory)

    def _hash_object(self, path: epath.PathLike, size: int, memory: Memory) -> str:
        state = [size, bucket.last_modified(path)]
        return self._recall(_EVERYWHERE, os.fspath(path), state, memory)

    # -- memory --

    def _recall(
        self,
        host: str,
        path: str,
        state: list[Any],
        memory: Memory,
    ) -> str:
        """The remembered hash of the file at `path` if its state is the remembered one; else a new hash."""
        entry = memory.get(host, {}).get(path)
        if isinstance(entry, list) and entry:
            *known_state, digest = entry
            if known_state == state and _SHA256.fullmatch(str(digest)):
                return digest
        # New, or changed since.
        digest = hash_file(path)
        for known in (self._new, memory):
            known.setdefault(host, {})[path] = [*state, digest]
        return digest

    def _merged(self) -> Memory:
        """Remembered and new entries. A file that is damaged or has an older form counts as empty."""
        memory: Memory = {}
        with contextlib.suppress(FileNotFoundError, ValueError):
            saved = read_json(self.file, "It is read again.")
            if has_seal(saved):
                # The seal is not a host.
                hosts = [name for name in saved if isinstance(saved[name], dict)]
                memory = {host: saved[host] for host in hosts}
        for host, paths in self._new.items():
            # The host goes to the end: `save` drops the hosts that come first.
            memory[host] = memory.pop(host, {}) | paths
        return memory


# ---- listings ----


def list_folder(root: pathlib.Path) -> dict[str, pathlib.Path | str]:
    """What is read in a folder, by its relative name: files, and folders that were listed by another name.

    Symbolic links to folders are followed. A folder's second name maps to its first one instead of what is
    inside, so a loop of links ends.
    """
    entries: dict[pathlib.Path, pathlib.Path | str] = {}
    first_names: dict[tuple[int, int], str] = {}  # by device and inode
    folders = [root]
    while folders:
        folder = folders.pop()
        status = folder.stat()
        name = folder.relative_to(root).as_posix()
        first_name = first_names.setdefault((status.st_dev, status.st_ino), name)
        if first_name != name:
            entries[folder] = first_name
            continue
        # In reverse, because the last one is popped first.
        children = sorted(folder.iterdir(), reverse=True)
        children = [child for child in children if not _is_hidden(child.name)]
        is_workdir = any(child.name == "workdir.json" for child in children)
        if is_workdir and folder != root:
            continue  # a run's workdir inside its data
        for child in children:
            if child.is_dir():
                folders.append(child)
            if child.is_file():
                entries[child] = child
    listing = {}
    for path in sorted(entries):
        name = path.relative_to(root).as_posix()
        listing[name] = entries[path]
    return listing


def _name_below(root: epath.PathLike, file: epath.PathLike) -> str:
    """A file's name relative to `root`; outside of it `../` and the last part, for the rest may vary."""
    name = os.path.relpath(file, root)
    if name.startswith("../"):
        return f"../{os.path.basename(name)}"
    return name


def _without_workdirs(sizes: Mapping[str, int]) -> dict[str, int]:
    """A bucket's objects in order, by the rules of `list_folder`: none hidden, none of a run's workdir."""
    # A folder with a `workdir.json` is a run's.
    workdirs = []
    for name in sizes:
        folder, _, last = name.rpartition("/")
        if folder and last == "workdir.json":
            workdirs.append(f"{folder}/")
    listed = {}
    for name in sorted(sizes):
        if not _is_hidden(name) and not name.startswith(tuple(workdirs)):
            listed[name] = sizes[name]
    return listed


def _is_hidden(name: str) -> bool:
    """Whether a part of the name begins with a dot: the system's files, an editor's, git's."""
    return any(part.startswith(".") for part in name.split("/"))
