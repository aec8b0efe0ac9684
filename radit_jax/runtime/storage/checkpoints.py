"""Parameters and training state on disk, through Orbax's v1 API.

A checkpoint counts once its record stands beside it, which is written after Orbax has finished and has the
checksums of its files. A process killed while saving leaves the checkpoint before as the latest, and bytes
that have changed since are found before they are used.
"""

import contextlib
import json
import logging
import os
import re
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import absl.logging
import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.memory import check_room
from radit_jax.runtime.distributed.mesh import abstract_sharded, any_process
from radit_jax.runtime.storage import bucket, locks
from radit_jax.runtime.storage.files import as_object, has_seal, parse_json, read_json, sealed, write_whole
from radit_jax.runtime.storage.stage_folder import StageFolder

PyTree = Any
_UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of what Orbax has not finished
_THREADS = 8  # that read files at once
_BLOCK = 1 << 24  # bytes read at once

_REFUSED = re.compile(r"\"([^\"]+)\".*\[os_error_code='(\d+)'", re.DOTALL)  # in TensorStore's messages

# Orbax reports every phase of a save, and each of its threads that fails; what fails is raised as well.
absl.logging.set_verbosity(absl.logging.FATAL)
logging.getLogger("orbax").setLevel(logging.ERROR)


def save_params(path: epath.PathLike, params: PyTree) -> None:
    """Writes a tree of arrays to the folder `path`, which is replaced if it exists.

    Several processes write it together: of a stage in gs:// they meet there, and the first fetches the whole.
    What each has whole, on its own devices, they must have alike.
    """
    if jax.process_count() > 1:
        params = jax.tree.map(_in_common, params)
    home = bucket.home_of(path)
    if home and jax.process_count() > 1 and os.fspath(home).startswith("gs://"):
        _save(home, params)
        if jax.process_index() == 0:
            bucket.download(home, path)
    else:
        _save(_absolute(path), params)


def _save(path: epath.Path, tree: PyTree) -> None:
    with _errors_of_the_system():
        ocp.save(path, tree, overwrite=True)


@contextlib.contextmanager
def _errors_of_the_system() -> Iterator[None]:
    """Raise what the system refused TensorStore as the OSError that it is, with its file."""
    try:
        yield
    except ValueError as error:
        refused = _REFUSED.search(str(error))
        if refused is None:
            raise
        number = int(refused[2])
        raise OSError(number, os.strerror(number), refused[1]) from None


def load_params(path: epath.PathLike, like: PyTree | None = None, mesh: Mesh | None = None) -> PyTree:
    """The tree of arrays that `save_params` wrote, bit for bit.

    `like` gives structure, dtypes and shardings: a tree of arrays or of `jax.ShapeDtypeStruct`. Without
    it the tree is one of plain dicts, laid out over `mesh` or placed on the first local device.
    """
    path = _absolute(path)
    if like is None:
        found = ocp.metadata(path).metadata
        like = jax.tree.map(_on_first_device, found) if mesh is None else abstract_sharded(found, mesh)
        check_room("the model", like)
    return ocp.load(path, _abstract(like))


class Checkpoints:
    """The training state's checkpoints under `folder`: the latest few, and the best parameters.

    A checkpoint at step s holds the state after s updates. Higher metrics are better. Of a stage in a bucket
    they lie in the bucket: Orbax writes to gs:// by itself, for s3:// they are copied.
    """

    def __init__(self, folder: epath.PathLike, keep: int = 2):
        home = bucket.home_of(folder)
        self._home = home or epath.Path(folder)
        self._logs = StageFolder(home.parent, epath.Path(folder).parent) if home else None
        copied = home if home and not os.fspath(home).startswith("gs://") else None
        local = _absolute(folder if copied or not home else home)
        self._latest = _Series(local / "latest", keep, copied and copied / "latest")
        self._best = _Series(local / "best", 1, copied and copied / "best")

    def save(self, step: int, state: PyTree, extra: dict[str, Any] | None = None) -> None:
        """Save the state after `step` updates with `extra`, which is JSON; returns when it is whole."""
        self._check_held()
        if self._logs and jax.process_index() == 0:
            self._logs.keep_logs()  # first: what a checkpoint follows is never missing from them
        self._latest.save(step, state, {"extra": extra or {}, "best": self.best()})

    def latest(self) -> int | None:
        """The step of the latest checkpoint whose bytes are those that were written."""
        return self._latest.newest()

    def restore(self, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """The latest state, with the structure and shardings of `like`, and its `extra`.

        Raises ValueError where the best parameters of that time have been lost since.
        """
        step = self.latest()
        assert step is not None, "there is no checkpoint"
        facts, best = self._latest.facts(step), self.best()
        if facts["best"] and (best is None or best[0] < step and [*best] != facts["best"]):
            lost = self._home / "best" / str(facts["best"][0])
            raise ValueError(
                f"{lost}: expected the parameters that were the best when step {step} was saved, got none "
                f"that are whole. Delete the folder {self._home} and start the same command again: this "
                "training starts over."
            )
        return self._latest.load(step, like), facts["extra"]

    def save_best(self, step: int, params: PyTree, metric: float) -> None:
        """Keep `params` unless those that are kept have a metric as high."""
        self._check_held()
        best = self.best()
        if best is not None and best[0] != step and best[1] >= metric:
            return
        self._best.save(step, params, {"metric": metric})

    def best(self) -> tuple[int, float] | None:
        """Step and metric of the best parameters; `None` before any were saved."""
        step = self._best.newest()
        return None if step is None else (step, self._best.facts(step)["metric"])

    def restore_best(self, like: PyTree) -> PyTree:
        """The best parameters, with the structure and shardings of `like`."""
        best = self.best()
        assert best is not None, "no validation has chosen a checkpoint"
        return self._best.load(best[0], like)

    def _check_held(self) -> None:
        if jax.process_index() == 0:
            locks.check_held(self._home)


class _Series:
    """Checkpoints by their steps: `<step>/`, which Orbax writes, and its record `<step>.json`, written last.

    The record has the checkpoint's facts, and the size and checksum of each of its files. A checkpoint
    without one does not count. At the start process 0 reads the records and tells them, so all processes
    know the same checkpoints. Each process hashes the files that it wrote. Before a checkpoint of an earlier
    run is used its files are read and compared. In gs:// the checksums are the store's, of what reached it.
    """

    def __init__(self, folder: epath.Path, keep: int, copy: epath.Path | None):
        self.folder, self._keep, self._copy = folder, keep, copy
        self._checked: set[int] = set()  # steps whose bytes are known to be those that were written
        found = processes.on_process_zero(f"checkpoints in {folder.name}", self._open)
        self._records: dict[int, dict[str, Any]] = {int(step): record for step, record in found.items()}

    def newest(self) -> int | None:
        """The newest step that is whole; one that is damaged is named, and is not looked at again."""
        for step in sorted(self._records, reverse=True):
            if step in self._checked:
                return step
            fault = self._fault(step)
            if fault:
                print(f"{fault}; the checkpoint is not used", file=sys.stderr, flush=True)
            if not any_process(bool(fault)):
                self._checked.add(step)
                return step
            del self._records[step]
        return None

    def facts(self, step: int) -> dict[str, Any]:
        return self._records[step]["facts"]

    def load(self, step: int, like: PyTree) -> PyTree:
        return ocp.load(self.folder / str(step), _abstract(like))

    def save(self, step: int, tree: PyTree, facts: dict[str, Any]) -> None:
        """Write a checkpoint, then its record, then remove what is too old to keep."""
        first = jax.process_index() == 0
        if first:
            self._remove(self._record_file(step))  # it must not vouch for other bytes
        _save(self.folder / str(step), tree)
        record = {"step": step, "facts": facts, "files": self._sums(step)}
        if first:
            write_whole(self._record_file(step), json.dumps(sealed(record)))
        self._records[step] = json.loads(json.dumps(record))
        self._checked.add(step)
        # One of a step behind this one is of a run that was resumed from before it: this run makes it again.
        newest = sorted((known for known in self._records if known <= step), reverse=True)
        kept = set(newest[: self._keep])
        self._records = {known: self._records[known] for known in kept}
        if first and self._copy:
            _send(self.folder, self._copy, kept)
        if first:
            self._remove_but(kept)

    # -- files --

    def _open(self) -> dict[str, dict[str, Any]]:
        """The records of what is there, by step; says of a checkpoint without one that it does not count."""
        if self._copy:
            _fetch(self._copy, self.folder)
        steps, records = set(), {}
        for child in self.folder.iterdir() if self.folder.exists() else ():
            if _UNFINISHED in child.name:  # the workdir's lock makes us the only writer: its writer is gone
                self._remove(child)
            elif child.name.isdigit():
                steps.add(int(child.name))
        for step in sorted(steps):
            record = _read_record(self._record_file(step), step)
            if record is None:
                print(
                    f"{self.folder / str(step)}: no record of its files, so it is not used", file=sys.stderr
                )
            else:
                records[str(step)] = record
        return records

    def _record_file(self, step: int) -> epath.Path:
        return self.folder / f"{step}.json"

    def _sums(self, step: int) -> dict[str, Any]:
        """Sizes and checksums of a checkpoint's files, all of them on process 0; each reads its own."""
        folder = self.folder / str(step)
        if bucket.is_bucket(folder):
            return bucket.checksums(folder) if jax.process_index() == 0 else {}
        index, count = jax.process_index(), jax.process_count()
        sums = _checksums(folder, [name for name in _file_names(folder) if _owner(name) % count == index])
        if count == 1:
            return sums
        parts = [self.folder / f"{step}.part-{number}.json" for number in range(count)]
        write_whole(parts[index], json.dumps(sums))
        multihost_utils.sync_global_devices(f"checksums of {folder}")
        if index:
            return {}
        for part in parts[1:]:
            sums |= json.loads(part.read_bytes())
        for part in parts:
            part.unlink()
        return sums

    def _fault(self, step: int) -> str:
        """What is wrong with this process's share of a checkpoint's files; "" where nothing is."""
        folder, wanted = self.folder / str(step), self._records[step]["files"]
        index, count = jax.process_index(), jax.process_count()
        if bucket.is_bucket(folder):
            found = bucket.checksums(folder) if index == 0 else wanted
        else:
            wanted = {name: wanted[name] for name in sorted(wanted)[index::count]}
            found = _checksums(folder, list(wanted))
        for name in wanted:
            if found.get(name) != wanted[name]:
                return f"{folder / name}: expected the bytes that were written, got {_told(found.get(name))}"
        return ""

    def _remove_but(self, kept: set[int]) -> None:
        """Remove checkpoints that are not to be kept: the records, which vouch for them, first."""
        names = {name for step in kept for name in (str(step), f"{step}.json")}
        gone = [child for child in self.folder.iterdir() if child.name not in names]
        for child in sorted(gone, key=lambda child: child.name.isdigit()):
            self._remove(child)

    def _remove(self, path: epath.Path) -> None:
        if bucket.is_bucket(path):
            bucket.delete_objects(path)
        elif path.is_dir():
            path.rmtree()
        else:
            path.unlink(missing_ok=True)


def _read_record(file: epath.Path, step: int) -> dict[str, Any] | None:
    """A checkpoint's record; None where there is none that is as it was written."""
    try:
        record = read_json(file, "")
    except (FileNotFoundError, ValueError):
        return None
    return record if has_seal(record) and record.get("step") == step else None


# ---- checksums ----


def _checksums(folder: epath.Path, names: list[str]) -> dict[str, Any]:
    """Bytes and CRC-32 of the files that are there, by threads: zlib lets go of Python's lock."""
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = pool.map(lambda name: _checksum(folder / name), names)
        return {name: found for name, found in zip(names, sums, strict=True) if found}


def _checksum(path: epath.Path) -> list[int]:
    size, crc = 0, 0
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                size, crc = size + len(block), zlib.crc32(block, crc)
    except FileNotFoundError:
        return []
    return [size, crc]


def _owner(name: str) -> int:
    """The process that wrote a file of a checkpoint; those that Orbax writes once are process 0's.

    >>> _owner("state/ocdbt.process_3/d/ab"), _owner("state/_METADATA")
    (3, 0)
    """
    found = re.search(r"ocdbt\.process_(\d+)/", name)
    return int(found[1]) if found else 0


def _told(found: Any) -> str:
    return "no file" if found is None else f"{found[0]} bytes with another checksum"


def _file_names(folder: epath.Path) -> list[str]:
    files = [os.path.join(parent, file) for parent, _, names in os.walk(folder) for file in names]
    return sorted(os.path.relpath(file, folder) for file in files)


# ---- copies in s3:// ----


def _fetch(home: epath.Path, folder: epath.Path) -> None:
    """Make this machine's checkpoints those of the bucket, which are the true ones."""
    records = _records_in(home)
    for child in list(folder.iterdir()) if folder.exists() else ():
        if child.name.removesuffix(".json") not in records:
            child.rmtree() if child.is_dir() else child.unlink()
    for step, record in records.items():
        sizes = {name: found[0] for name, found in json.loads(record)["files"].items()}
        here = {name: (folder / step / name).stat().length for name in _file_names(folder / step)}
        if here != sizes:
            bucket.download(home / step, folder / step)
        write_whole(folder / f"{step}.json", record)


def _send(folder: epath.Path, home: epath.Path, kept: set[int]) -> None:
    """Make the bucket's checkpoints those of this machine; a new one is whole before an old one goes."""
    there, wanted = _records_in(home), [str(step) for step in sorted(kept)]
    for step in wanted:
        record = (folder / f"{step}.json").read_bytes()
        if there.get(step) != record:
            bucket.delete_objects(home / f"{step}.json")
            bucket.upload(folder / step, home / step)
            bucket.put(home / f"{step}.json", record)
    for step in set(there) - set(wanted):
        bucket.delete_objects(home / f"{step}.json")
        bucket.delete_objects(home / step)


def _records_in(home: epath.Path) -> dict[str, bytes]:
    """The records of a bucket's checkpoints by step, of those that are as they were written."""
    names = [name for name in bucket.sizes(home) if name.endswith(".json") and "/" not in name]
    found = {name.removesuffix(".json"): bucket.get(home / name) or b"" for name in names}
    return {step: data for step, data in found.items() if step.isdigit() and _is_sealed(data)}


def _is_sealed(data: bytes) -> bool:
    try:
        return has_seal(as_object(parse_json(data, "", ""), "", ""))
    except ValueError:
        return False


# ---- trees ----


def _in_common(array: Any) -> Any:
    """An array that each process has by itself as one of all, of which Orbax writes one copy."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return array
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.make_array_from_callback(array.shape, everywhere, lambda part: np.asarray(array[part]))


def _absolute(path: epath.PathLike) -> epath.Path:
    """Orbax refuses relative paths, and says so in another thread once training has run for a while."""
    local = "://" not in os.fspath(path)
    return epath.Path(os.path.abspath(path) if local else path)


def _abstract(tree: PyTree) -> PyTree:
    """Shapes, dtypes and shardings of a tree of arrays."""

    def leaf(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))

    return jax.tree.map(leaf, tree)


def _on_first_device(x: Any) -> jax.ShapeDtypeStruct:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
