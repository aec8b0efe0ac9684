"""Workdirs in a bucket, `gs://…` or `s3://…`: what an object store does otherwise than a disk.

An object is written whole or not at all. There are no folders, renames or appends. So a stage works in a
folder of this machine, the local copy. Its files are uploaded one by one, and a reader downloads them into
its own local copy. The packages for stores are gcsfs and s3fs (extras `gcs` and `s3`), imported on use.
"""

import concurrent.futures
import contextlib
import os
import uuid
from collections.abc import Callable
from typing import Any

from etils import epath

from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage.patience import patiently

SCHEMES = ("gs", "s3")
_NUM_TRANSFERS = 16  # files that are transferred at once
_DELETES_PER_CALL = 500
_PART = ".part"  # at the end of a file's name while it is downloaded
_MAX_REASON = 200  # characters of a store's message in an error
_homes: dict[str, epath.Path] = {}  # folder on this machine -> the folder in a bucket that it is a copy of


def is_bucket(path: epath.PathLike) -> bool:
    """Whether `path` has a scheme, as `gs://lab/run`."""
    return "://" in os.fspath(path)


def check_path(path: epath.PathLike) -> None:
    """Refuse a bucket's path with an unknown scheme, or with `.` or `..` in it; any path on a disk passes."""
    scheme, separator, rest = os.fspath(path).partition("://")
    if not separator:
        return
    if scheme not in SCHEMES or not rest.strip("/"):
        raise ValueError(
            f"{path}: expected a folder, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER, got {scheme}://. "
            "Name another --workdir."
        )
    # `local_copy` puts the path after the scratch folder's, and `..` would lead out of that.
    if {".", ".."} & set(rest.split("/")):
        raise ValueError(f"{path}: expected a path without '.' and '..', got one with. Write the path out.")


def local_copy(home: epath.PathLike, scratch: epath.PathLike | None = None) -> epath.Path:
    """The folder of this machine in which files of `home` are written and read.

    That is `home` itself on a disk; else a folder in `scratch`, by default in the user's cache.
    """
    check_path(home)
    home = epath.Path(home)
    if not is_bucket(home):
        return home
    if scratch is None:
        scratch = scratch_folder()
    relative = os.fspath(home).replace("://", "/")
    local = epath.Path(os.path.abspath(scratch)) / relative
    _homes[os.fspath(local)] = home
    return local


def scratch_folder() -> epath.Path:
    """Where local copies lie by default: in the user's cache, as other programs have it."""
    cache = os.environ.get("XDG_CACHE_HOME") or epath.Path("~/.cache").expanduser()
    return epath.Path(cache) / "radit_jax"


def home_of(local: epath.PathLike) -> epath.Path | None:
    """The path in a bucket of a path inside a local copy; None for any other path."""
    if not is_bucket(local):
        local = os.path.abspath(local)
    local = epath.Path(local)
    for parent in (local, *local.parents):
        home = _homes.get(os.fspath(parent))
        if home is not None:
            return home / os.path.relpath(local, parent)
    return None


# ---- objects ----


def _store(path: epath.PathLike) -> tuple[Any, str]:
    """fsspec's filesystem of a path, and the path's key in it."""
    try:
        import fsspec.config
        import fsspec.core
    except ImportError:
        raise _no_package(path) from None
    # With listings from a cache, what others write after a listing would stay unseen.
    for protocol in ("gs", "gcs", "s3"):
        fsspec.config.conf.setdefault(protocol, {})["use_listings_cache"] = False
    # gcsfs asks each bucket for its kind over gRPC, which takes a minute where there is none.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        return fsspec.core.url_to_fs(os.fspath(path))
    except ImportError:
        raise _no_package(path) from None


def _no_package(path: epath.PathLike) -> ValueError:
    scheme = os.fspath(path).partition("://")[0]
    extra = {"gs": "gcs"}.get(scheme, scheme)
    return ValueError(
        f"{path}: expected a package for {scheme}://, got none. pip install 'radit_jax[{extra}]'."
    )


def _find_files(path: epath.PathLike) -> tuple[str, dict[str, Any]]:
    """The key of `path`, and what the store says of each object under it, by key."""
    fs, key = _store(path)
    entries: Any = {}
    with contextlib.suppress(FileNotFoundError):
        entries = patiently(path, fs.find, key, detail=True)
    # Some stores list prefixes, too, as folders.
    infos = {}
    for name, info in entries.items():
        if info["type"] == "file":
            infos[os.fspath(name)] = info
    return key, infos


def sizes(path: epath.PathLike) -> dict[str, int]:
    """Bytes of every object under `path` by its name relative to it; of the object `path` itself, as ''."""
    key, infos = _find_files(path)
    by_name = {}
    for name, info in infos.items():
        # A store finds prefixes: `run2/x` has the prefix `run`.
        if name == key or name.startswith(f"{key}/"):
            relative = name[len(key) :].lstrip("/")
            by_name[relative] = info["size"]
    return by_name


def checksums(path: epath.PathLike) -> dict[str, list[Any]]:
    """[bytes, the store's checksum or None] of every object under a folder, by relative name."""
    key, infos = _find_files(path)
    by_name = {}
    for name, info in infos.items():
        # The names that Google's store and Amazon's have for it.
        digest = info.get("crc32c") or info.get("ETag") or info.get("etag")
        relative = os.path.relpath(name, key)
        by_name[relative] = [info["size"], digest]
    return by_name


def list_prefixes(path: epath.PathLike) -> list[epath.Path]:
    """The names directly under `path` that have objects under them, as a folder has."""
    prefixes = set()
    for name in sizes(path):
        prefix, slash, _ = name.partition("/")
        if slash:
            prefixes.add(prefix)
    return [epath.Path(path) / prefix for prefix in sorted(prefixes)]


def last_modified(path: epath.PathLike) -> float:
    """When an object was written, in seconds since 1970."""
    fs, key = _store(path)
    return patiently(path, fs.modified, key).timestamp()


def put(path: epath.PathLike, data: bytes) -> None:
    """Write an object."""
    fs, key = _store(path)
    patiently(path, fs.pipe_file, key, data)


def put_new(path: epath.PathLike, data: bytes) -> bool:
    """Write an object or a file that does not exist; False where it does, whoever wrote it first."""
    try:
        # Both refuse a name that exists, in one step.
        if is_bucket(path):
            fs, key = _store(path)
            patiently(path, fs.pipe_file, key, data, mode="create")
        else:
            with open(path, "xb") as file:
                file.write(data)
    except FileExistsError:
        return False
    return True


def get(path: epath.PathLike) -> bytes | None:
    """An object's bytes; None where there is none."""
    fs, key = _store(path)
    try:
        return patiently(path, fs.cat_file, key)
    except FileNotFoundError:
        return None


def delete_objects(path: epath.PathLike, keep: frozenset[str] = frozenset()) -> None:
    """Delete an object, if it exists, or all under a folder except the relative names in `keep`."""
    fs, key = _store(path)
    names = [name for name in sizes(path) if name not in keep]
    keys = [_join(key, name) for name in names]
    for start in range(0, len(keys), _DELETES_PER_CALL):
        patiently(path, fs.rm, keys[start : start + _DELETES_PER_CALL])


# ---- files ----


def upload(local: epath.PathLike, home: epath.PathLike) -> None:
    """Make `home` in the bucket what `local`, a file or a folder, is; each file with one write."""
    local = epath.Path(local)
    fs, key = _store(home)
    names = _relative_names(local)
    # What an earlier run left there, but for objects that are overwritten.
    if local.is_dir():
        delete_objects(home, keep=frozenset(names))

    def upload_one(name: str) -> None:
        file = os.fspath(_below(local, name))
        patiently(home, fs.put_file, file, _join(key, name))

    _transfer(upload_one, names)


def download(home: epath.PathLike, local: epath.PathLike, resume: bool = False) -> None:
    """Make `local` what `home` in the bucket is; a file has its name once it is whole.

    With `resume` files that have their size are kept, as an interrupted download left them.
    """
    local = epath.Path(local)
    fs, key = _store(home)
    # What is here may have other files.
    if not resume:
        _remove(local)
    by_name = sizes(home)
    whole = _keep_whole(local, by_name)
    missing = [name for name in by_name if name not in whole]
    for name in missing:
        _below(local, name).parent.mkdir(parents=True, exist_ok=True)

    def download_one(name: str) -> None:
        file = os.fspath(_below(local, name))
        part = f"{file}{_PART}"
        patiently(home, fs.get_file, _join(key, name), part)
        os.replace(part, file)

    _transfer(download_one, missing)


def _remove(local: epath.Path) -> None:
    """Remove a file, or a folder with all that is in it."""
    if local.is_dir():
        local.rmtree()
    else:
        local.unlink(missing_ok=True)


def _keep_whole(local: epath.Path, by_name: dict[str, int]) -> set[str]:
    """The names under `local` of files that have their size; all other files are removed."""
    if not local.exists():
        return set()
    whole = set()
    for name in _relative_names(local):
        file = _below(local, name)
        if file.stat().length == by_name.get(name):
            whole.add(name)
        else:
            file.unlink()
    return whole


def copy(home: epath.PathLike, target: epath.PathLike) -> None:
    """Make `target` in the bucket what `home` in it is. The store copies: nothing comes to this machine."""
    fs, key = _store(home)
    _, target_key = _store(target)
    names = list(sizes(home))
    # What an earlier run left there, but for objects that are overwritten.
    delete_objects(target, keep=frozenset(names))

    def copy_one(name: str) -> None:
        patiently(home, fs.cp_file, _join(key, name), _join(target_key, name))

    _transfer(copy_one, names)


def put_file(local: epath.PathLike, target: epath.PathLike) -> None:
    """Copy a file of this machine to `target`, in a bucket or on a disk."""
    if is_bucket(target):
        upload(local, target)
    else:
        epath.Path(target).parent.mkdir(parents=True, exist_ok=True)
        epath.Path(local).copy(target, overwrite=True)


def get_file(source: epath.PathLike, local: epath.PathLike) -> None:
    """Copy a file from a bucket or a disk to this machine."""
    if is_bucket(source):
        download(source, local)
    else:
        epath.Path(source).copy(local, overwrite=True)


def _relative_names(local: epath.Path) -> list[str]:
    """Names of the files in a folder; of a file, ''."""
    if not local.is_dir():
        return [""]
    names = []
    for folder, _, files in os.walk(local):
        for file in files:
            path = os.path.join(folder, file)
            names.append(os.path.relpath(path, local))
    return names


def _below(folder: epath.Path, name: str) -> epath.Path:
    return folder / name if name else folder


def _join(key: str, name: str) -> str:
    return f"{key}/{name}" if name else key


def _transfer(transfer_one: Callable[[str], None], names: list[str]) -> None:
    def unless_stopped(name: str) -> None:
        processes.stop_if_asked(f"the transfer of {name}")
        transfer_one(name)

    # `list` raises the first error of a thread.
    with concurrent.futures.ThreadPoolExecutor(_NUM_TRANSFERS) as pool:
        list(pool.map(unless_stopped, names))


# ---- access ----


def check_access(workdir: epath.PathLike, write: bool) -> None:
    """Refuse a bucket that this machine may not list and read, or may not write and delete in."""
    # A name of its own, for other machines may check at the same time.
    probe = epath.Path(workdir) / f"probe-{uuid.uuid4().hex}"
    try:
        sizes(epath.Path(workdir) / "workdir.json")
        if write:
            put(probe, b"")
            delete_objects(probe)
    except ValueError:
        raise
    except FileNotFoundError:
        raise ValueError(
            f"{workdir}: expected a workdir in a bucket that exists, got one that does not. Create it, or "
            "name another --workdir."
        ) from None
    except Exception as error:  # gcsfs, s3fs, botocore and google.auth have no error class in common
        message = " ".join(str(error).split())
        reason = message[:_MAX_REASON] or type(error).__name__
        what = "write and delete" if write else "list and read"
        raise ValueError(
            f"{workdir}: expected a bucket in which this account may {what} objects, got {reason}. Log in "
            "with an account that may (gcloud auth application-default login, or AWS's credentials), or name "
            "another --workdir."
        ) from error
