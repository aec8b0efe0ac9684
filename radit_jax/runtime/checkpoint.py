"""Parameters and training state on disk, through Orbax's v1 API.

Orbax commits a checkpoint once all of it is written: on a disk by renaming its folder, in a bucket by a
marker. A process killed while saving leaves the checkpoint before as the latest.
"""

import logging
import os
from typing import Any

import absl.logging
import jax
import orbax.checkpoint.experimental.v1 as ocp
from etils import epath
from orbax.checkpoint.experimental.v1 import training

PyTree = Any

# Orbax reports every phase of a save, and absl's root logger prints it.
absl.logging.set_verbosity(absl.logging.ERROR)
logging.getLogger("orbax").setLevel(logging.ERROR)


def save_params(path: epath.PathLike, params: PyTree) -> None:
    """Writes a tree of arrays to the folder `path`, which is replaced if it exists."""
    ocp.save(_absolute(path), params, overwrite=True)


def load_params(path: epath.PathLike, like: PyTree | None = None) -> PyTree:
    """The tree of arrays that `save_params` wrote, bit for bit.

    `like` gives structure, dtypes and shardings: a tree of arrays or of `jax.ShapeDtypeStruct`. Without
    it the tree is one of plain dicts, placed on the first local device.
    """
    path = _absolute(path)
    if like is None:
        like = jax.tree.map(_on_first_device, ocp.metadata(path).metadata)
    return ocp.load(path, _abstract(like))


class Checkpoints:
    """The training state's checkpoints under `folder`: the latest few, and the best parameters.

    A checkpoint at step s holds the state after s updates. Higher metrics are better.
    """

    def __init__(self, folder: epath.PathLike, keep: int = 2):
        policies = training.preservation_policies
        best = policies.BestN(get_metric_fn=lambda metrics: metrics["value"], n=1)
        self._latest = _checkpointer(_absolute(folder) / "latest", policies.LatestN(keep))
        self._best = _checkpointer(_absolute(folder) / "best", best)

    def save(self, step: int, state: PyTree, extra: dict[str, Any] | None = None) -> None:
        """Saves the state after `step` updates with `extra`, which is JSON; returns when it is whole."""
        self._latest.save(step, state, force=True, overwrite=True, custom_metadata={"extra": extra or {}})

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

    def best(self) -> tuple[int, float] | None:
        """Step and metric of the best parameters; `None` before any were saved."""
        found = [(c.step, c.metrics["value"]) for c in self._best.checkpoints if c.metrics]
        return max(found, key=lambda best: best[1], default=None)

    def restore_best(self, like: PyTree) -> PyTree:
        """The best parameters, with the structure and shardings of `like`."""
        best = self.best()
        assert best is not None, "no validation has chosen a checkpoint"
        return self._best.load(best[0], _abstract(like))


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
