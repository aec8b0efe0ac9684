"""Workdirs in a bucket, `gs://…` or `s3://…`: what an object store does otherwise than a disk.

An object is put whole or not at all; there are no folders, renames or appends. So what stages make lies in a
folder of this machine, the scratch, and goes up file by file; who reads it fetches it into theirs. The
packages for it are gcsfs and s3fs (extras `gcs` and `s3`), imported only when such a path comes.
"""

import concurrent.futures
import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from radit_jax.runtime.distributed import processes

SCHEMES = ("gs", "s3")
BEAT_SECONDS = 15.0
PATIENCE_SECONDS = 60.0  # without a beat, after which a lease may be taken over
_TRANSFERS = 16  # files on their way at once
_homes: dict[str, epath.Path] = {}  # folder on this machine -> the folder in a bucket that it is a copy of


def is_bucket(path: epath.PathLike) -> bool:
    return "://" in os.fspath(path)


def check_path(path: epath.PathLike) -> None:
    """Refuse a bucket's path that no store here has, or whose copy would lie outside the scratch."""
    scheme, separator, rest = os.fspath(path).partition("://")
    if not separator:
        return
    if scheme not in SCHEMES or not rest.strip("/"):
        raise ValueError(
            f"{path}: expected a folder, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER, got {scheme}://. "
            "Name another --workdir."
        )
    if {".", ".."} & set(rest.split("/")):
        raise ValueError(f"{path}: expected a path without '.' and '..', got one with. Write the path out.")


def local_copy(home: epath.PathLike, scratch: epath.PathLike | None = None) -> epath.Path:
    """The folder of this machine in which what belongs to `home` is written and read: itself on a disk."""
    check_path(home)
    home = epath.Path(home)
    if not is_bucket(home):
        return home
    root = epath.Path(scratch or os.environ.get("XDG_CACHE_HOME") or epath.Path("~/.cache").expanduser())
    local = epath.Path(os.path.abspath(root / ("radit_jax" if scratch is None else "")))
    local = local / os.fspath(home).replace("://", "/")
    _homes[os.fspath(local)] = home
    return local


def home_of(local: epath.PathLike) -> epath.Path | None:
    """The path in a bucket of a path under a `local_copy`; None for any other path."""
    local = epath.Path(os.path.abspath(local) if not is_bucket(local) else local)
    for parent in (local, *local.parents):
        if os.fspath(parent) in _homes:
            return _homes[os.fspath(parent)] / os.path.relpath(local, parent)
    return None


# ---- objects ----


def _store(path: epath.PathLike) -> tuple[Any, str]:
    """fsspec's filesystem of a path, and the path's key in it."""
    scheme = os.fspath(path).partition("://")[0]
    try:
        import fsspec.config
        import fsspec.core

        for protocol in ("gs", "gcs", "s3"):  # else what others write after a listing stays unseen
            fsspec.config.conf.setdefault(protocol, {})["use_listings_cache"] = False
        # gcsfs asks each bucket for its kind over gRPC, for a minute where there is none.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        return fsspec.core.url_to_fs(os.fspath(path))
    except ImportError:
        extra = {"gs": "gcs"}.get(scheme, scheme)
        raise ValueError(
            f"{path}: no package for {scheme}:// is installed, one is needed; "
            f"pip install 'radit_jax[{extra}]'"
        ) from None


def sizes(path: epath.PathLike) -> dict[str, int]:
    """Bytes of every object under `path` by its name behind it; of the object `path` itself, as ''."""
    fs, key = _store(path)
    found: Any = {}
    with contextlib.suppress(FileNotFoundError):
        found = fs.find(key, detail=True)
    names = {os.fspath(name): info["size"] for name, info in found.items() if info["type"] == "file"}
    inside = {name: size for name, size in names.items() if name == key or name.startswith(f"{key}/")}
    return {name[len(key) :].lstrip("/"): size for name, size in inside.items()}


def checksums(path: epath.PathLike) -> dict[str, list[Any]]:
    """Bytes of every object under a folder by name, and what the store computed from them, where it did."""
    fs, key = _store(path)
    found: Any = {}
    with contextlib.suppress(FileNotFoundError):
        found = fs.find(key, detail=True)
    sums = {}
    for name, info in found.items():
        if info["type"] == "file":
            digest = info.get("crc32c") or info.get("ETag") or info.get("etag")
            sums[os.path.relpath(os.fspath(name), key)] = [info["size"], digest]
    return sums


def list_prefixes(path: epath.PathLike) -> list[epath.Path]:
    """What has objects under it, directly below `path`."""
    return [epath.Path(path) / name for name in sorted({n.split("/")[0] for n in sizes(path) if "/" in n})]


def last_modified(path: epath.PathLike) -> float:
    """When an object was put, in seconds since 1970."""
    fs, key = _store(path)
    return fs.modified(key).timestamp()


def put(path: epath.PathLike, data: bytes) -> None:
    fs, key = _store(path)
    fs.pipe_file(key, data)


def put_new(path: epath.PathLike, data: bytes) -> bool:
    """Puts an object that nobody has put before; False where one is there, whoever was first."""
    try:
        if is_bucket(path):
            fs, key = _store(path)
            fs.pipe_file(key, data, mode="create")
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
        return fs.cat_file(key)
    except FileNotFoundError:
        return None


def delete_objects(path: epath.PathLike, keep: frozenset[str] = frozenset()) -> None:
    """Removes an object, or all under a folder, but for the names in `keep`; it need not be there."""
    fs, key = _store(path)
    gone = [f"{key}/{name}" if name else key for name in sizes(path) if name not in keep]
    for start in range(0, len(gone), 500):
        fs.rm(gone[start : start + 500])


def upload(local: epath.PathLike, home: epath.PathLike) -> None:
    """Makes `home` what `local`, a file or folder, is; each file with one write."""
    local, (fs, key) = epath.Path(local), _store(home)
    names = _names(local)
    if local.is_dir():
        delete_objects(home, keep=frozenset(names))
    _transfer(lambda name: fs.put_file(os.fspath(local / name if name else local), _join(key, name)), names)


def download(home: epath.PathLike, local: epath.PathLike) -> None:
    """Makes `local` what `home` is."""
    local, (fs, key) = epath.Path(local), _store(home)
    if local.exists():
        local.rmtree() if local.is_dir() else local.unlink()
    names = list(sizes(home))
    for name in names:
        (local / name if name else local).parent.mkdir(parents=True, exist_ok=True)
    _transfer(lambda name: fs.get_file(_join(key, name), os.fspath(local / name if name else local)), names)


def put_file(local: epath.PathLike, target: epath.PathLike) -> None:
    """Copies a file of this machine to where it is wanted, in a bucket or on a disk."""
    if is_bucket(target):
        upload(local, target)
    else:
        epath.Path(target).parent.mkdir(parents=True, exist_ok=True)
        epath.Path(local).copy(target, overwrite=True)


def get_file(source: epath.PathLike, local: epath.PathLike) -> None:
    """Copies a file from a bucket or a disk to this machine."""
    if is_bucket(source):
        download(source, local)
    else:
        epath.Path(source).copy(local, overwrite=True)


def _names(local: epath.Path) -> list[str]:
    if not local.is_dir():
        return [""]
    folders = os.walk(local)
    return [os.path.relpath(os.path.join(folder, f), local) for folder, _, files in folders for f in files]


def _join(key: str, name: str) -> str:
    return f"{key}/{name}" if name else key


def _transfer(one: Any, names: list[str]) -> None:
    def unless_stopped(name: str) -> None:
        processes.stop_if_asked(f"the transfer of {name}")
        one(name)

    with concurrent.futures.ThreadPoolExecutor(_TRANSFERS) as pool:
        list(pool.map(unless_stopped, names))


# ---- whether it can be used ----


def check_access(workdir: epath.PathLike, write: bool) -> None:
    """Refuse a bucket that this machine may not list and read, or write and delete in."""
    probe = epath.Path(workdir) / f"probe-{uuid.uuid4().hex}"
    try:
        sizes(epath.Path(workdir) / "workdir.json")
        if write:
            put(probe, b"")
            delete_objects(probe)
    except ValueError:
        raise
    except Exception as error:  # of gcsfs, s3fs, botocore, google.auth: they have no common class
        came = " ".join(str(error).split())[:200] or type(error).__name__
        what = "write and delete" if write else "list and read"
        raise ValueError(
            f"{workdir}: {came} came, needed is the permission to {what} objects in a bucket that exists; "
            "log in with an account that has it (gcloud auth application-default login, or AWS's "
            "credentials), or name another --workdir"
        ) from error


# ---- the lease: one run at a time ----


@contextlib.contextmanager
def lease(workdir: epath.PathLike, name: str = "lock") -> Iterator[Callable[[], bool]]:
    """Keeps other runs out while the context lasts: the lease is the last of numbered objects under `name/`.

    Its holder rewrites it every 15 s. Who comes takes the next number, put by one of many at most, once the
    last is given back, or has stood unchanged for a minute of the comer's own clock. What it yields says
    whether the lease is still this process's, which one that stood still for a minute may have lost.
    """
    folder = epath.Path(workdir) / name
    if not is_bucket(folder):
        folder.mkdir(parents=True, exist_ok=True)
    number = _take(folder)
    stop = threading.Event()
    beating = threading.Thread(target=_beat, args=(folder, number, stop), daemon=True)
    beating.start()

    def still_ours() -> bool:
        return max(_numbers(folder), default=0) == number

    try:
        yield still_ours
    finally:
        stop.set()
        beating.join()
        if still_ours():
            put(folder / f"{number:08d}", b"")


def _take(folder: epath.Path) -> int:
    last = max(_numbers(folder), default=0)
    holder = get(folder / f"{last:08d}") if last else b""
    if holder:
        _wait_for_silence(folder / f"{last:08d}", holder)
    if not put_new(folder / f"{last + 1:08d}", _sign(0)):
        raise ValueError(in_use(folder.parent, _told(get(folder / f"{last + 1:08d}"))))
    for number in _numbers(folder):
        if number <= last:
            delete_objects(folder / f"{number:08d}")
    return last + 1


def _wait_for_silence(path: epath.Path, holder: bytes) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    print(f"{path.parent.parent}: {_told(holder)} had it; waiting for a minute's silence", file=sys.stderr)
    while time.monotonic() < until:
        processes.stop_if_asked("the workdir's lock")
        time.sleep(min(1.0, PATIENCE_SECONDS / 10))
        now = get(path)
        if not now:
            return
        if now != holder:
            raise ValueError(in_use(path.parent.parent, _told(now)))


def _beat(folder: epath.Path, number: int, stop: threading.Event) -> None:
    beats = 0
    while not stop.wait(BEAT_SECONDS):
        beats += 1
        try:
            if max(_numbers(folder), default=number) > number:
                # We were silent for too long, and another run is writing here.
                print(
                    f"error: {folder.parent}: another run took the workdir over", file=sys.stderr, flush=True
                )
                os._exit(1)
            put(folder / f"{number:08d}", _sign(beats))
        except Exception as error:  # whatever the network does: the next beat may come through
            print(f"{folder}: a beat was lost ({error})", file=sys.stderr)


def _numbers(folder: epath.Path) -> list[int]:
    return [int(name) for name in sizes(folder) if name.isdigit()]


def _sign(beats: int) -> bytes:
    started = {"process": os.getpid(), "host": socket.gethostname(), "beats": beats, "id": _ME}
    return json.dumps(started).encode()


_ME = uuid.uuid4().hex


def _told(holder: bytes | None) -> str:
    try:
        told = json.loads(holder or b"")
        return f"process {told['process']} on {told['host']}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "another process"


def in_use(workdir: epath.PathLike, holder: str) -> str:
    """The error of a run that finds another one in its workdir."""
    return (
        f"{workdir}: in use by {holder}; needed is a workdir of our own; "
        "wait for it to end, or name another with --workdir"
    )
