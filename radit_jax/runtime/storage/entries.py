"""Files and folders inside a stage's folder, on a disk or in a bucket: list, measure, move aside, remove."""

import fnmatch
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage import bucket
from radit_jax.runtime.storage.files import sync_folder, write_whole
from radit_jax.runtime.storage.hashes import hash_files, hash_listing

SIDECAR_SUFFIX = ".sha256"  # of the file with another file's size and hash
_EDITED = (".json", ".jsonl", ".md", ".txt", ".jinja")  # of files that people edit


# ---- list ----


def bytes_or_none(path: epath.Path) -> bytes | None:
    """A file's bytes; None where there is no file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def subfolders(path: epath.Path) -> list[epath.Path]:
    """The folders directly under `path`; none where there is no such folder."""
    if bucket.is_bucket(path):
        return bucket.list_prefixes(path)
    children = path.iterdir() if path.exists() else ()
    return [child for child in children if child.is_dir()]


def names_in(path: epath.Path) -> list[str]:
    """The names of files and folders directly under `path`; none where there is no such folder."""
    if bucket.is_bucket(path):
        names = {name.partition("/")[0] for name in bucket.sizes(path)}
        return sorted(names - {""})
    return sorted(child.name for child in path.iterdir()) if path.exists() else []


def files_under(path: epath.Path) -> list[epath.Path]:
    """Every file under the folder `path`, in order."""
    children = sorted(path.iterdir()) if path.exists() else []
    files = []
    for child in children:
        files += files_under(child) if child.is_dir() else [child]
    return files


def committed_names(folder: epath.Path) -> list[str]:
    """Names with a sidecar. A committed folder's sidecar stands for all that is in it."""
    if bucket.is_bucket(folder):
        names = list(bucket.sizes(folder))
    else:
        names = [os.path.relpath(file, folder) for file in files_under(folder)]
    sidecars = [name for name in names if name.endswith(SIDECAR_SUFFIX)]
    return [name.removesuffix(SIDECAR_SUFFIX) for name in sidecars]


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name matches one of the shell patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def is_link(path: epath.Path) -> bool:
    """Whether `path` is a symbolic link; a bucket has none."""
    return not bucket.is_bucket(path) and os.path.islink(path)


# ---- measure ----


def modified(path: epath.Path) -> float:
    """When a file was written last, in seconds since 1970."""
    if bucket.is_bucket(path):
        return bucket.last_modified(path)
    return float(path.stat().mtime)


def num_bytes_of(path: epath.Path) -> int:
    """Bytes of a file, or of all files under a folder; −1 where there is neither."""
    if bucket.is_bucket(path):
        sizes = bucket.sizes(path)
        return sum(sizes.values()) if sizes else -1
    if not path.exists():
        return -1
    return sum(file.stat().length for file in _files_of(path))


class StoredFile(NamedTuple):
    """A file on a disk, which may have several names, or an object of a bucket, which has one."""

    identity: tuple[int, int] | str  # the same for all names of a file
    size: int
    num_names: int


def bytes_stored(folders: Iterable[epath.Path]) -> list[int]:
    """Bytes that each folder takes; a file with names in several folders counts in the first of them."""
    files = [_stored_files(folder) for folder in folders]
    return _bytes_of_new(files, is_counted=lambda file: True)


def bytes_freed(folders: Iterable[epath.Path]) -> list[int]:
    """Bytes that are free once all of the folders are deleted, each file's in the first folder that has it.

    A file that has another name elsewhere, as an exported model has, frees nothing.
    """
    files = [_stored_files(folder) for folder in folders]
    # How many of a file's names go.
    names_gone: Counter[tuple[int, int] | str] = Counter()
    for files_of_folder in files:
        names_gone.update(file.identity for file in files_of_folder)
    return _bytes_of_new(files, lambda file: names_gone[file.identity] >= file.num_names)


def _bytes_of_new(
    files: Iterable[Sequence[StoredFile]],
    is_counted: Callable[[StoredFile], bool],
) -> list[int]:
    """For each folder's files the bytes of those that count and were in no folder before."""
    seen: set[tuple[int, int] | str] = set()
    sizes = []
    for files_of_folder in files:
        new = {file.identity: file for file in files_of_folder if file.identity not in seen}
        seen.update(new)
        sizes.append(sum(file.size for file in new.values() if is_counted(file)))
    return sizes


def _stored_files(folder: epath.Path) -> list[StoredFile]:
    """The files under a folder, one for each name."""
    if bucket.is_bucket(folder):
        return [StoredFile(f"{folder}/{name}", size, 1) for name, size in bucket.sizes(folder).items()]
    found = []
    for file in files_under(folder):
        status = os.lstat(file)
        found.append(StoredFile((status.st_dev, status.st_ino), status.st_size, status.st_nlink))
    return found


def size_and_hash(path: epath.Path) -> dict[str, Any]:
    """`{"size": bytes, "sha256": hash}` of a file; of a folder, the hash of its files' names and hashes."""
    return _of_hashes(path, hash_files(_files_of(path)))


def size_and_hash_together(where: str, path: epath.Path, check: Callable[[], None]) -> dict[str, Any]:
    """`size_and_hash` by all processes, which see one disk: each makes `check`, and hashes some files."""

    def hash_own(files: Sequence[epath.Path]) -> list[str]:
        check()
        return hash_files(files)

    return _of_hashes(path, processes.in_shares(f"the hash of {where}", _files_of(path), hash_own))


def _of_hashes(path: epath.Path, hashes: Sequence[str]) -> dict[str, Any]:
    """Size and hash of a file or a folder by its files' hashes."""
    digest = hashes[0] if hashes else ""
    if path.is_dir():
        names = [os.path.relpath(file, path) for file in files_under(path)]
        digest = hash_listing(hashes, names)
    return {"size": num_bytes_of(path), "sha256": digest}


def is_whole(path: epath.Path, record: Mapping[str, Any]) -> bool:
    """Whether a file or a folder is what its record says; the size first, which costs no reading."""
    return num_bytes_of(path) == record["size"] and size_and_hash(path) == record


def _files_of(path: epath.Path) -> list[epath.Path]:
    return files_under(path) if path.is_dir() else [path]


def size_and_hash_of_bytes(data: bytes) -> dict[str, Any]:
    """`size_and_hash` of a file that holds `data`."""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


# ---- change ----


def sync(path: epath.Path) -> None:
    """Bring to the disk what another library wrote, before a sidecar vouches for it."""
    files = _files_of(path)
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    # Their names, too.
    for folder in {file.parent for file in files}:
        sync_folder(folder)


def link_or_copy(source: epath.Path, target: epath.Path) -> None:
    """Make `target` what `source` is, a file or a folder on a disk; its files get a second name.

    Text is copied: people edit settings, and an editor may write into the file that it opened.
    """
    if target.exists() and target.is_dir():
        target.rmtree()
    files = files_under(source) if source.is_dir() else [source]
    for file in files:
        # A folder's files keep their names in it.
        copy = target / os.path.relpath(file, source) if source.is_dir() else target
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.unlink(missing_ok=True)
        if file.suffix in _EDITED or not _link(file, copy):
            file.copy(copy, overwrite=True)


def _link(file: epath.Path, name: epath.Path) -> bool:
    """Give a file a second name, if its filesystem can; whether it did."""
    try:
        os.link(file, name)
    except OSError:  # another filesystem, or one without links
        return False
    return True


def remove(path: epath.Path) -> None:
    """Remove a file, if it exists."""
    if bucket.is_bucket(path):
        bucket.delete_objects(path)
    else:
        path.unlink(missing_ok=True)


def move_aside(path: epath.Path, why: str = "this run did not write it") -> None:
    """Rename a file that is not this run's to `NAME.1`, or the next free number, and say so on stderr."""
    # The next free number.
    number = 1
    while (aside := path.parent / f"{path.name}.{number}").exists():
        number += 1
    # A bucket cannot rename.
    if bucket.is_bucket(path):
        write_whole(aside, path.read_bytes())
        remove(path)
    else:
        os.rename(path, aside)
    print(f"{path}: {why}, so it was kept as {aside.name}", file=sys.stderr)
