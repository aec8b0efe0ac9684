"""Parameters and training state on disk.

A checkpoint counts once its record exists. The record is written after Orbax has finished, and has the
checksums of its files. A process killed during a save leaves the checkpoint before it as the latest. Bytes
that have changed since are found before they are used.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from radit_jax.runtime.distributed.memory import check_room
from radit_jax.runtime.distributed.mesh import abstract_sharded
from radit_jax.runtime.distributed.slices import flat_mesh
from radit_jax.runtime.storage import bucket, locks
from radit_jax.runtime.storage.checkpoint_series import CheckpointSeries, PyTree, load_tree, save_tree
from radit_jax.runtime.storage.stage_folder import StageFolder


def save_params(path: epath.PathLike, params: PyTree) -> None:
    """Write a tree of arrays to the folder `path`, which is replaced if it exists.

    Several processes write it together. Where `path` is a copy of a folder in gs://, they write there, and
    process 0 downloads the whole. What each process has whole, on its own devices, must be equal on all.
    """
    if jax.process_count() > 1:
        params = jax.tree.map(_replicated, params)
    # In gs:// Orbax's processes meet; elsewhere they share a disk.
    home = bucket.home_of(path)
    if home and jax.process_count() > 1 and _is_google(home):
        save_tree(home, params)
        if jax.process_index() == 0:
            bucket.download(home, path)
    else:
        save_tree(_absolute(path), params)


def load_params(
    path: epath.PathLike,
    like: PyTree | None = None,
    mesh: Mesh | None = None,
    held: Callable[[PyTree], PyTree] = lambda shapes: shapes,
) -> PyTree:
    """The tree of arrays that `save_params` wrote, bit for bit.

    `like` gives structure, dtypes and shardings: a tree of arrays or of `jax.ShapeDtypeStruct`. Without it
    the tree is one of plain dicts, spread over `mesh`, or on the first local device; `held` makes other
    shapes of its, and arrays whose dtype it changes are cast as they are read.
    """
    path = _absolute(path)
    if like is None:
        # Shapes and dtypes from the files, shardings from the mesh.
        saved = ocp.metadata(path).metadata
        like = held(_on_one_device(saved) if mesh is None else abstract_sharded(saved, mesh))
        check_room("the model", like)
    return load_tree(path, like)


class Checkpoints:
    """The training state's checkpoints under `folder`: the latest few, and the best parameters.

    A checkpoint at step s holds the state after s updates. A higher metric is better. The checkpoints of a
    stage in a bucket are in the bucket: Orbax writes to gs:// by itself, and copies go to s3://.
    """

    def __init__(self, folder: epath.PathLike, keep: int = 2):
        folder = epath.Path(folder)
        # Orbax writes to a disk, or by itself to gs://.
        home = bucket.home_of(folder)
        self._home = home or folder
        self._logs = StageFolder(home.parent, folder.parent) if home else None
        if home and _is_google(home):
            local, copy = _absolute(home), None
        else:
            local, copy = _absolute(folder), home

        def series(name: str, num_kept: int) -> CheckpointSeries:
            return CheckpointSeries(local / name, num_kept, copy / name if copy else None)

        self._latest = series("latest", keep)
        self._best = series("best", 1)

    # -- the state --

    def save(
        self,
        step: int,
        state: PyTree,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Save the state after `step` updates with `extra`, which is JSON; returns when it is whole."""
        self.start_saving(step, state, extra)
        self.finish_saving()

    def start_saving(self, step: int, state: PyTree, extra: dict[str, Any] | None = None) -> None:
        """As `save`, but returns when the state may change. It is kept once `finish_saving` has returned."""
        self._check_held()
        # The logs first: they never lack a step that a checkpoint follows.
        if self._logs and jax.process_index() == 0:
            self._logs.keep_logs()
        facts = {"extra": extra or {}, "best": self.best()}
        self._latest.start(step, state, facts)

    def unwritten(self) -> Any:
        """Whether any process still writes what was started; None where nothing was. See `any_process`."""
        return self._latest.unwritten()

    def finish_saving(self) -> None:
        """Wait for what was started on all processes, and commit it; nothing where nothing was."""
        self._latest.finish()

    def latest(self) -> int | None:
        """The step of the latest checkpoint whose bytes are those that were written."""
        return self._latest.newest()

    def restore(self, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """The latest state, with the structure and shardings of `like`, and its `extra`.

        Raises ValueError where the best parameters of that time are lost.
        """
        step = self.latest()
        assert step is not None, "there is no checkpoint"
        facts = self._latest.facts(step)
        if facts["best"]:
            self._check_best(step, facts["best"])
        return self._latest.load(step, like), facts["extra"]

    def _check_best(self, step: int, best_then: list[Any]) -> None:
        """Refuse to resume at `step` without the parameters that were the best, or better ones since."""
        best = self.best()
        if best is not None:
            is_newer = best[0] >= step
            if is_newer or list(best) == best_then:
                return
        # Training that goes on would choose among worse ones.
        lost = self._home / "best" / str(best_then[0])
        raise ValueError(
            f"{lost}: expected the parameters that were the best when step {step} was saved, got none "
            f"that are whole. Delete the folder {self._home} and start the same command again: this "
            "training starts over."
        )

    # -- the best parameters --

    def save_best(self, step: int, params: PyTree, metric: float) -> None:
        """Keep `params` as the best, unless the best of another step have a metric as high."""
        self._check_held()
        best = self.best()
        if best is not None:
            best_step, best_metric = best
            # A resumed run saves the best of a step again.
            if best_step != step and best_metric >= metric:
                return
        # One after the other, so that two do not fill the host's memory.
        self._latest.finish()
        self._best.start(step, params, {"metric": metric})
        self._best.finish()

    def best(self) -> tuple[int, float] | None:
        """Step and metric of the best parameters; None before any were saved."""
        step = self._best.newest()
        if step is None:
            return None
        return step, self._best.facts(step)["metric"]

    def restore_best(self, like: PyTree) -> PyTree:
        """The best parameters, with the structure and shardings of `like`."""
        best = self.best()
        assert best is not None, "no validation has chosen a checkpoint"
        return self._best.load(best[0], like)

    def _check_held(self) -> None:
        if jax.process_index() == 0:
            locks.check_held(self._home)


def _is_google(path: epath.PathLike) -> bool:
    return os.fspath(path).startswith("gs://")


def _absolute(path: epath.PathLike) -> epath.Path:
    """Orbax refuses relative paths, and says so in another thread, once training has run for a while."""
    if bucket.is_bucket(path):
        return epath.Path(path)
    return epath.Path(os.path.abspath(path))


def _replicated(array: Any) -> jax.Array:
    """An array that every process has by itself, as one array of all devices: Orbax writes one copy of it."""
    # One that is spread over all processes is one array already.
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return array
    everywhere = NamedSharding(flat_mesh(jax.devices()), PartitionSpec())

    def read_part(part: Any) -> np.ndarray:
        return np.asarray(array[part])

    return jax.make_array_from_callback(array.shape, everywhere, read_part)


def _on_one_device(tree: PyTree) -> PyTree:
    """The shapes and dtypes of a tree, on the first local device."""
    sharding = SingleDeviceSharding(jax.local_devices()[0])

    def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(abstract, tree)
