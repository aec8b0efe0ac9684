"""Parameters and training state on disk, through Orbax's v1 API.

Orbax commits a checkpoint once all of it is written: on a disk by renaming its folder, in a bucket by a
marker. A process killed while saving leaves the checkpoint before as the latest.
"""

import json
import logging
import os
from typing import Any

import absl.logging
import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint.experimental.v1 import training

from radit_jax.runtime import bucket, hosts
from radit_jax.runtime.memory import check_room
from radit_jax.runtime.mesh import laid_out
from radit_jax.runtime.store import StageFolder

PyTree = Any

# Orbax reports every phase of a save, and absl's root logger prints it.
absl.logging.set_verbosity(absl.logging.ERROR)
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
        ocp.save(home, params, overwrite=True)
        if jax.process_index() == 0:
            bucket.download(home, path)
    else:
        ocp.save(_absolute(path), params, overwrite=True)


def load_params(path: epath.PathLike, like: PyTree | None = None, mesh: Mesh | None = None) -> PyTree:
    """The tree of arrays that `save_params` wrote, bit for bit.

    `like` gives structure, dtypes and shardings: a tree of arrays or of `jax.ShapeDtypeStruct`. Without
    it the tree is one of plain dicts, laid out over `mesh` or placed on the first local device.
    """
    path = _absolute(path)
    if like is None:
        found = ocp.metadata(path).metadata
        like = jax.tree.map(_on_first_device, found) if mesh is None else laid_out(found, mesh)
        check_room("the model", like)
    return ocp.load(path, _abstract(like))


class Checkpoints:
    """The training state's checkpoints under `folder`: the latest few, and the best parameters.

    A checkpoint at step s holds the state after s updates. Higher metrics are better. Of a stage in a bucket
    they lie in the bucket: Orbax writes to gs:// by itself, for s3:// they are copied.
    """

    def __init__(self, folder: epath.PathLike, keep: int = 2):
        policies = training.preservation_policies
        best = policies.BestN(get_metric_fn=lambda metrics: metrics["value"], n=1)
        home = bucket.home_of(folder)
        self._logs = StageFolder(home.parent, epath.Path(folder).parent) if home else None
        self._copies = None
        if home and os.fspath(home).startswith("gs://"):
            folder = home
        elif home:
            self._copies = _Copies(_absolute(folder), home)
            self._copies.fetch()
            hosts.meet("checkpoints")  # on a scratch that all share, the first fetches for all
        self._latest = _checkpointer(_absolute(folder) / "latest", policies.LatestN(keep))
        self._best = _checkpointer(_absolute(folder) / "best", best)

    def save(self, step: int, state: PyTree, extra: dict[str, Any] | None = None) -> None:
        """Saves the state after `step` updates with `extra`, which is JSON; returns when it is whole."""
        if self._logs and jax.process_index() == 0:
            self._logs.keep_logs()  # first: what a checkpoint follows is never missing from them
        self._latest.save(step, state, force=True, overwrite=True, custom_metadata={"extra": extra or {}})
        if self._copies:
            self._copies.send("latest")

    def latest(self) -> int | None:
        """The step of the latest whole checkpoint."""
        return self._latest.latest.step if self._latest.latest else None

    def restore(self, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """The latest state, with the structure and shardings of `like`, and its `extra`."""
        state = self._latest.load(abstract_state=_abstract(like))
        return state, self._latest.metadata().custom_metadata["extra"]

    def save_best(self, step: int, params: PyTree, metric: float) -> None:
        """Keeps `params` as the best so far."""
        self._best.save(step, params, force=True, overwrite=True, metrics={"value": metric})
        if self._copies:
            self._copies.send("best")

    def best(self) -> tuple[int, float] | None:
        """Step and metric of the best parameters; `None` before any were saved."""
        found = [(c.step, c.metrics["value"]) for c in self._best.checkpoints if c.metrics]
        return max(found, key=lambda best: best[1], default=None)

    def restore_best(self, like: PyTree) -> PyTree:
        """The best parameters, with the structure and shardings of `like`."""
        best = self.best()
        assert best is not None, "no validation has chosen a checkpoint"
        return self._best.load(best[0], _abstract(like))


class _Copies:
    """Checkpoints that Orbax keeps on this machine, and their copies in a bucket, which are the true ones.

    A copy of step s counts once the object `s.json`, its files' sizes, has been put behind them.
    """

    def __init__(self, local: epath.Path, home: epath.Path):
        self.local, self.home = local, home

    def fetch(self) -> None:
        """Makes this machine's checkpoints those of the bucket."""
        if jax.process_index():
            return
        for kind in ("latest", "best"):
            kept = self._kept(kind)
            for step in self._steps(kind) - set(kept):
                (self.local / kind / step).rmtree()
            for step, files in kept.items():
                if _file_sizes(self.local / kind / step) != files:
                    bucket.download(self.home / kind / step, self.local / kind / step)

    def send(self, kind: str) -> None:
        """Makes the bucket's checkpoints those of this machine; a new one is whole before an old one goes."""
        if jax.process_index():
            return
        kept, steps = self._kept(kind), self._steps(kind)
        for step in sorted(steps - set(kept)):
            folder = self.local / kind / step
            bucket.upload(folder, self.home / kind / step)
            bucket.put(self.home / kind / f"{step}.json", json.dumps(_file_sizes(folder)).encode())
        for step in sorted(set(kept) - steps):
            bucket.remove(self.home / kind / f"{step}.json")
            bucket.remove(self.home / kind / step)

    def _steps(self, kind: str) -> set[str]:
        folder = self.local / kind
        return (
            {child.name for child in folder.iterdir() if child.name.isdigit()} if folder.exists() else set()
        )

    def _kept(self, kind: str) -> dict[str, dict[str, int]]:
        names = [
            name for name in bucket.sizes(self.home / kind) if name.endswith(".json") and "/" not in name
        ]
        found = {name.removesuffix(".json"): bucket.get(self.home / kind / name) for name in names}
        return {step: json.loads(files) for step, files in found.items() if files is not None}


def _in_common(array: Any) -> Any:
    """An array that each process has by itself as one of all, of which Orbax writes one copy."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return array
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.make_array_from_callback(array.shape, everywhere, lambda part: np.asarray(array[part]))


def _file_sizes(folder: epath.Path) -> dict[str, int]:
    files = [os.path.join(parent, file) for parent, _, names in os.walk(folder) for file in names]
    return {os.path.relpath(file, folder): os.path.getsize(file) for file in files}


def _checkpointer(folder: epath.Path, policy: Any) -> Any:
    # The workdir's lock makes us the only writer: what is half-written was left by a process that is gone.
    return training.Checkpointer(folder, preservation_policy=policy, cleanup_tmp_directories=True)


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
