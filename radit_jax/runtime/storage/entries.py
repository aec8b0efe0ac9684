"""Files and folders inside a stage's folder: listing, measuring, moving aside, removing."""

import fnmatch
import hashlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from etils import epath

from radit_jax.runtime.storage import bucket
from radit_jax.runtime.storage.files import (
    sync_folder,
    write_whole,
)
from radit_jax.runtime.storage.source_hashes import hash_file, hash_listing


def bytes_or_none(path: epath.Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def sync(path: epath.Path) -> None:
    """Bring to the disk what another library wrote, before a sidecar vouches for it."""
    files = files_under(path) if path.is_dir() else [path]
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    for folder in {file.parent for file in files}:
        sync_folder(folder)


def subfolders(path: epath.Path) -> list[epath.Path]:
    if bucket.is_bucket(path):
        return bucket.list_prefixes(path)
    return [child for child in path.iterdir() if child.is_dir()] if path.exists() else []


def files_under(path: epath.Path) -> list[epath.Path]:
    """Every file under the folder `path`, in order."""
    children = sorted(path.iterdir()) if path.exists() else []
    return [file for child in children for file in (files_under(child) if child.is_dir() else [child])]


def committed_names(folder: epath.Path) -> list[str]:
    """Names with a sidecar; what lies inside a committed folder is covered by that folder's sidecar."""
    if bucket.is_bucket(folder):
        names = [*bucket.sizes(folder)]
    else:
        names = [os.path.relpath(file, folder) for file in files_under(folder)]
    return [name.removesuffix(".sha256") for name in names if name.endswith(".sha256")]


def remove(path: epath.Path) -> None:
    """Removes a file, which need not be there."""
    if bucket.is_bucket(path):
        bucket.delete_objects(path)
    else:
        path.unlink(missing_ok=True)


def matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def is_link(path: epath.Path) -> bool:
    return not bucket.is_bucket(path) and os.path.islink(path)


def move_aside(path: epath.Path, why: str = "this run did not write it") -> None:
    """Give a file that is not ours a name with a number behind it, and say so."""
    number = 1
    while (aside := path.parent / f"{path.name}.{number}").exists():
        number += 1
    if bucket.is_bucket(path):
        write_whole(aside, path.read_bytes())
        remove(path)
    else:
        os.rename(path, aside)
    print(f"{path}: {why}, so it was kept as {aside.name}", file=sys.stderr)


def modified(path: epath.Path) -> float:
    """When a file was written last, in seconds since 1970."""
    return bucket.last_modified(path) if bucket.is_bucket(path) else float(path.stat().mtime)


def num_bytes_of(path: epath.Path) -> int:
    """Bytes of a file, or of all files under a folder; −1 where there is neither."""
    if bucket.is_bucket(path):
        found = bucket.sizes(path)
        return sum(found.values()) if found else -1
    if not path.exists():
        return -1
    if path.is_dir():
        return sum(file.stat().length for file in files_under(path))
    return path.stat().length


def size_and_hash(path: epath.Path) -> dict[str, Any]:
    """Size and SHA-256 of a file; of a folder, over the names and hashes of its files."""
    if not path.is_dir():
        return {"size": path.stat().length, "sha256": hash_file(path)}
    files = files_under(path)
    names = [os.path.relpath(file, path) for file in files]
    return {"size": num_bytes_of(path), "sha256": hash_listing([hash_file(file) for file in files], names)}


def size_and_hash_of_bytes(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
