"""Checkpoints by their steps, through Orbax's v1 API: each counts once its record exists.

A save has two parts. `start` returns when the arrays may change, and a thread writes on. `finish` waits for
that thread on all processes, and commits. Only the main thread speaks to other processes.
"""

import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Set
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import absl.logging
import jax
import orbax.checkpoint.experimental.v1 as ocp
from etils import epath
from jax.experimental import multihost_utils

from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.mesh import any_process
from radit_jax.runtime.storage import bucket
from radit_jax.runtime.storage.checkpoint_files import (
    Checksums,
    download_checkpoints,
    file_checksums,
    file_names,
    first_difference,
    read_checkpoint_record,
    record_file,
    upload_checkpoints,
    writer_of,
)
from radit_jax.runtime.storage.files import sealed, write_whole

PyTree = Any
Record = dict[str, Any]  # step, facts and checksums of files
_UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of what Orbax has not finished
_REFUSED = re.compile(r"\"([^\"]+)\".*\[os_error_code='(\d+)'", re.DOTALL)  # in TensorStore's messages

# Orbax reports every phase of a save, and each of its threads that fails; what fails is raised as well.
absl.logging.set_verbosity(absl.logging.FATAL)
logging.getLogger("orbax").setLevel(logging.ERROR)


def save_tree(path: epath.Path, tree: PyTree) -> None:
    """Write a tree of arrays to the folder `path`, which is replaced if it exists."""
    with _errors_of_the_system():
        ocp.save(path, tree, overwrite=True)


def load_tree(path: epath.Path, like: PyTree) -> PyTree:
    """The tree of arrays in the folder `path`, with the structure, dtypes and shardings of `like`."""

    def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))

    return ocp.load(path, jax.tree.map(abstract, like))


@contextlib.contextmanager
def _errors_of_the_system() -> Iterator[None]:
    """Raise an error of the system, which TensorStore hides in a message, as OSError with its file."""
    try:
        yield
    except ValueError as error:
        match = _REFUSED.search(str(error))
        if match is None:
            raise
        file, number = match[1], int(match[2])
        raise OSError(number, os.strerror(number), file) from None


class _Started(NamedTuple):
    """A checkpoint that is being written."""

    step: int
    facts: dict[str, Any]
    written: Future[Checksums]  # of the files that this process wrote


class CheckpointSeries:
    """Checkpoints by their steps: `<step>/`, which Orbax writes, and its record `<step>.json`, written last.

    The record holds the checkpoint's facts (JSON), and the size and checksum of each of its files. A
    checkpoint without a record does not count. At the start process 0 reads the records and tells the others,
    so all processes know the same checkpoints. Each process computes the checksums of the files that it
    wrote. A checkpoint of an earlier run is verified before it is used. In gs:// the checksums are the
    store's, of the bytes that reached it.

    `num_kept` is the number of checkpoints to keep; `copy` is the folder in s3:// that they are copied to.
    """

    def __init__(self, folder: epath.Path, num_kept: int, copy: epath.Path | None):
        self.folder = folder
        self._num_kept = num_kept
        self._copy = copy
        self._verified: set[int] = set()  # steps whose bytes are known to be those that were written
        self._records: dict[int, Record] = {}
        self._started: _Started | None = None
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        records = processes.on_process_zero(f"checkpoints in {folder.name}", self._read_records)
        for step, record in records.items():  # in JSON, which process 0 sends, keys are texts
            self._records[int(step)] = record

    def newest(self) -> int | None:
        """The newest step that is whole. A damaged one is named on stderr, and not looked at again.

        It waits for a checkpoint that is being written.
        """
        self.finish()
        for step in sorted(self._records, reverse=True):
            if step in self._verified:
                return step
            fault = self._fault(step)
            if fault:
                print(f"{fault}; the checkpoint is not used", file=sys.stderr, flush=True)
            # Each process verifies a part of the files.
            if not any_process(bool(fault)):
                self._verified.add(step)
                return step
            del self._records[step]
        return None

    def facts(self, step: int) -> dict[str, Any]:
        """The facts that `save` got with the checkpoint."""
        return self._records[step]["facts"]

    def load(self, step: int, like: PyTree) -> PyTree:
        """The tree of arrays at `step`, with the structure and shardings of `like`."""
        return load_tree(self.folder / str(step), like)

    def start(self, step: int, tree: PyTree, facts: dict[str, Any]) -> None:
        """Begin to write a checkpoint, once the one before it is committed.

        The tree's arrays may be changed, or donated, as soon as this returns.
        """
        self.finish()
        # An old record must not vouch for new bytes.
        if jax.process_index() == 0:
            self._remove(record_file(self.folder, step))
        with _errors_of_the_system():
            response = ocp.save_async(self.folder / str(step), tree, overwrite=True)
        written = self._writer.submit(self._wait_for_files, step, response.result)
        self._started = _Started(step, facts, written)

    def unwritten(self) -> Any:
        """Whether any process still writes; None where nothing was started. See `any_process`."""
        if self._started is None:
            return None
        return any_process(not self._started.written.done())

    def finish(self) -> None:
        """Commit what was started, if anything was, and remove the checkpoints that are too old to keep."""
        if self._started is None:
            return
        # 1) The files. Where this fails, the checkpoint does not count.
        step, facts, written = self._started
        self._started = None
        with _errors_of_the_system():
            checksums = self._join_checksums(step, written.result())

        # 2) Their record, which commits them.
        is_first = jax.process_index() == 0
        record = {"step": step, "facts": facts, "files": checksums}
        if is_first:
            write_whole(record_file(self.folder, step), json.dumps(sealed(record)))
        self._records[step] = json.loads(json.dumps(record))
        self._verified.add(step)

        # 3) Forget the others. A step after this one is from a run that went further and was resumed from an
        # earlier step: this run writes it again.
        steps = sorted(saved for saved in self._records if saved <= step)
        kept_steps = set(steps[-self._num_kept :])
        self._records = {kept: self._records[kept] for kept in kept_steps}
        if is_first:
            if self._copy:
                upload_checkpoints(self.folder, self._copy, kept_steps)
            self._remove_others(kept_steps)

    # -- files --

    def _read_records(self) -> dict[str, Record]:
        """The records in the folder, by step; says on stderr which checkpoints have none."""
        if self._copy:
            download_checkpoints(self._copy, self.folder)
        steps = []
        for child in self.folder.iterdir() if self.folder.exists() else ():
            # The workdir's lock makes this run the only writer, so the writer of an unfinished one is gone.
            if _UNFINISHED in child.name:
                self._remove(child)
            elif child.name.isdigit():
                steps.append(int(child.name))
        records = {}
        for step in sorted(steps):
            record = read_checkpoint_record(record_file(self.folder, step), step)
            if record is not None:
                records[str(step)] = record
            else:
                checkpoint = self.folder / str(step)
                print(f"{checkpoint}: no record of its files, so it is not used", file=sys.stderr)
        return records

    def _wait_for_files(self, step: int, wait: Callable[[], None]) -> Checksums:
        """Checksums of the files that this process wrote, once all are there; a store has them all."""
        wait()
        folder = self.folder / str(step)
        index, count = jax.process_index(), jax.process_count()
        if bucket.is_bucket(folder):
            return bucket.checksums(folder) if index == 0 else {}
        own_names = [name for name in file_names(folder) if writer_of(name) % count == index]
        return file_checksums(folder, own_names)

    def _join_checksums(self, step: int, checksums: Checksums) -> Checksums:
        """Those of all processes, on process 0. They are exchanged as files, which it joins and removes."""
        index, count = jax.process_index(), jax.process_count()
        if count == 1 or bucket.is_bucket(self.folder):
            return checksums
        names = [f"{step}.part-{number}.json" for number in range(count)]
        parts = [self.folder / name for name in names]
        write_whole(parts[index], json.dumps(checksums))
        multihost_utils.sync_global_devices(f"checksums of {self.folder / str(step)}")
        if index != 0:
            return {}
        for part in parts[1:]:
            checksums |= json.loads(part.read_bytes())
        for part in parts:
            part.unlink()
        return checksums

    def _fault(self, step: int) -> str:
        """What is wrong with this process's part of a checkpoint's files; "" where nothing is."""
        folder = self.folder / str(step)
        expected = self._records[step]["files"]
        index, count = jax.process_index(), jax.process_count()
        # A store's checksums cost no reading, so process 0 asks for all.
        if bucket.is_bucket(folder):
            found = bucket.checksums(folder) if index == 0 else expected
        else:
            own_names = sorted(expected)[index::count]
            expected = {name: expected[name] for name in own_names}
            found = file_checksums(folder, own_names)
        return first_difference(folder, expected, found)

    def _remove_others(self, kept_steps: Set[int]) -> None:
        """Remove all checkpoints except those of `kept_steps`: first the records, which vouch for them."""
        kept_names: set[str] = set()
        for step in kept_steps:
            kept_names |= {str(step), f"{step}.json"}
        others = [child for child in self.folder.iterdir() if child.name not in kept_names]
        for child in sorted(others, key=lambda child: child.name.isdigit()):
            self._remove(child)

    def _remove(self, path: epath.Path) -> None:
        if bucket.is_bucket(path):
            bucket.delete_objects(path)
        elif path.is_dir():
            path.rmtree()
        else:
            path.unlink(missing_ok=True)
