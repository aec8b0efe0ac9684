"""The hashes of what stages read from outside the workdir, remembered so that only new content is read.

What tells that a file has changed (size, both times, inode) belongs to the host that sees it: another host
may see other times of the same bytes. It is kept by host and never enters a fingerprint.
"""

import hashlib
import json
import os
import pathlib
import re
import socket
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage import bucket
from radit_jax.runtime.storage.files import has_seal, read_json, sealed, write_whole

_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOCK = 1 << 24  # bytes read at once: a file that is hashed need not fit in memory
_MAX_HOSTS = 64  # remembered; names of hosts in a cluster may be new in each run
_EVERYWHERE = "objects"  # in the place of a host: what tells an object's change is the same for all

Memory = dict[str, dict[str, list[Any]]]  # host -> path -> what tells a change, and the hash at the end


class SourceHashes:
    """SHA-256 of files and folders; `save` remembers those that were computed in `file`."""

    def __init__(self, file: str | os.PathLike[str]):
        self.file = epath.Path(file)
        self._host = socket.gethostname()
        self._new: Memory = {}

    def of(self, path: str | os.PathLike[str], files: Iterable[os.PathLike[str]] | None = None) -> str:
        """SHA-256 of a file's bytes, or of the names and bytes of all that is read under a folder.

        Those are `files`, where their reader names them; else all, without hidden ones and workdirs. Symbolic
        links are followed, as readers do. Raises ValueError where there is nothing.
        """
        root = epath.Path(path) if bucket.is_bucket(path) else pathlib.Path(path)
        if not root.exists():
            raise ValueError(f"{root}: no such file or folder, needed as a source; correct its path")
        memory = self._merged()
        if files is not None:
            pairs = sorted((_name_below(root, file), self._hash_of(file, memory)) for file in files)
            return hash_listing([digest for _, digest in pairs], [name for name, _ in pairs])
        if bucket.is_bucket(path):
            sizes = _without_workdirs(bucket.sizes(path))
            hashes = [self._object_hash(root / name if name else root, sizes[name], memory) for name in sizes]
            return hash_listing(hashes, sizes)
        if not root.is_dir():
            return self._file_hash(pathlib.Path(root), memory)
        listing = list_folder(pathlib.Path(root))
        hashes = [
            self._file_hash(what, memory) if isinstance(what, pathlib.Path) else what
            for what in listing.values()
        ]
        return hash_listing(hashes, listing)

    def save(self) -> None:
        """Write down what was computed since the last time; whoever calls this holds the workdir's lock."""
        if not self._new:
            return
        merged = self._merged()
        kept = dict(list(merged.items())[-_MAX_HOSTS:])
        write_whole(self.file, json.dumps(sealed(kept), indent=1) + "\n")
        self._new = {}

    def _hash_of(self, file: os.PathLike[str], memory: Memory) -> str:
        if bucket.is_bucket(file):
            return self._object_hash(file, bucket.sizes(file)[""], memory)
        return self._file_hash(pathlib.Path(file), memory)

    def _file_hash(self, file: pathlib.Path, memory: Memory) -> str:
        status = file.stat()
        # Whoever sets a file's time back cannot set back the time of that: ctime, which the system keeps.
        state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        return self._remembered(self._host, str(file.resolve()), state, memory)

    def _object_hash(self, path: os.PathLike[str], size: int, memory: Memory) -> str:
        return self._remembered(_EVERYWHERE, os.fspath(path), [size, bucket.last_modified(path)], memory)

    def _remembered(self, host: str, path: str, state: list[Any], memory: Memory) -> str:
        """The hash of what is at `path`: the remembered one if `state` is, too."""
        known = memory.get(host, {}).get(path)
        if isinstance(known, list) and known[:-1] == state and _SHA256.fullmatch(str(known[-1])):
            return known[-1]
        entry = [*state, hash_file(path)]
        self._new.setdefault(host, {})[path] = entry
        memory.setdefault(host, {})[path] = entry
        return entry[-1]

    def _merged(self) -> Memory:
        """What is remembered, with what is new; a file that is damaged, or of an older form, is forgotten."""
        try:
            found = read_json(self.file, "It is read again.")
        except (FileNotFoundError, ValueError):
            found = {}
        found = (
            {host: paths for host, paths in found.items() if isinstance(paths, dict)}
            if has_seal(found)
            else {}
        )
        for host, paths in self._new.items():
            found[host] = found.pop(host, {}) | paths  # the hosts of late are last
        return found


def list_folder(root: pathlib.Path) -> dict[str, pathlib.Path | str]:
    """What is read under a folder, by its name there: files, and folders that were listed by another name.

    Symbolic links to folders are followed. A folder's second name has its first one for a value instead of
    what is inside, so a loop of links ends.
    """
    found: dict[pathlib.Path, pathlib.Path | str] = {}
    first_names: dict[tuple[int, int], str] = {}
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        status = folder.stat()
        name = folder.relative_to(root).as_posix()
        first = first_names.setdefault((status.st_dev, status.st_ino), name)
        if first != name:
            found[folder] = first
            continue
        children = [child for child in sorted(folder.iterdir(), reverse=True) if not _is_hidden(child.name)]
        if folder != root and any(child.name == "workdir.json" for child in children):
            continue  # a run's workdir inside its data
        waiting.extend(child for child in children if child.is_dir())
        found.update({child: child for child in children if child.is_file()})
    return {path.relative_to(root).as_posix(): found[path] for path in sorted(found)}


def _name_below(root: os.PathLike[str], file: os.PathLike[str]) -> str:
    """A file's name under `root`; of one elsewhere the last part, for its way there says nothing of it."""
    name = os.path.relpath(file, root)
    return f"../{os.path.basename(name)}" if name.startswith("../") else name


def _without_workdirs(sizes: Mapping[str, int]) -> dict[str, int]:
    """A bucket's objects in order, as `list_folder` has files: none hidden, none of a run's workdir."""
    heads = (name.rpartition("/") for name in sizes)
    inside = tuple(f"{folder}/" for folder, _, name in heads if folder and name == "workdir.json")
    return {
        name: sizes[name] for name in sorted(sizes) if not _is_hidden(name) and not name.startswith(inside)
    }


def _is_hidden(name: str) -> bool:
    """Whether a file or a folder above it has a name with a dot before it: a system's, an editor's, git's."""
    return any(part.startswith(".") for part in name.split("/"))


def hash_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's or an object's bytes."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while block := file.read(_BLOCK):
            processes.stop_if_asked(f"the hash of {path}")
            digest.update(block)
    return digest.hexdigest()


def hash_listing(hashes: Iterable[str], names: Iterable[str]) -> str:
    """One hash for many files: of the lines that `sha256sum` would print for them."""
    lines = "".join(f"{digest}  {name}\n" for digest, name in zip(hashes, names, strict=True))
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()
