"""What every part uses: sizes, rows with their share of the peak, drawn parameters, and a clock."""

import contextlib
import functools
import json
import math
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from benchmarks.gpu.rows import Recorder
from benchmarks.gpu.sizes import Sizes
from radit_jax.config import MeshConfig
from radit_jax.runtime.distributed.accelerators import GIB, peak_flops
from radit_jax.runtime.distributed.mesh import make_mesh

PEAK = "peak.json"  # in the output's folder: what the part `peak` measured


@dataclass(frozen=True)
class Bench:
    """A part's sizes, and where its rows go."""

    recorder: Recorder
    sizes: Sizes

    def rate(
        self,
        what: str,
        value: float,
        unit: str,
        *,
        clock: "Clock",
        flops: float = 0.0,
        **notes: Any,
    ) -> None:
        """Add a row: so much of a unit, and the arithmetic of a turn, in the clock's seconds of a turn."""
        row: dict[str, Any] = {"value": value / clock.seconds, "unit": f"{unit}/s"}
        if flops:
            per_second = flops / clock.seconds
            row["tflops"] = per_second / 1e12
            row["of_measured_peak"] = _share(per_second, self.measured_peak)
            row["of_vendor_peak"] = _share(per_second, peak_flops(jax.devices()[0].device_kind))
        row["seconds"] = clock.seconds
        row["first_seconds"] = clock.first_seconds
        row["peak_gib"] = peak_gib()
        self.recorder.write(what, **row, notes=notes)

    @contextlib.contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Turn an error inside into a row, so that what comes after it is still measured."""
        try:
            yield
        except Exception as error:  # of any library
            traceback.print_exc()
            lines = str(error).strip().splitlines() or [""]
            self.recorder.write(what, error=f"{type(error).__name__}: {lines[0][:300]}")

    @property
    def measured_peak(self) -> float | None:
        """Operations a second of the fastest product that the part `peak` found; None if it has not run."""
        path = self.recorder.out / PEAK
        if not path.exists():
            return None
        return json.loads(path.read_text())["flops"]


@dataclass(frozen=True)
class Clock:
    """How long something takes, in seconds."""

    first_seconds: float  # the first turn, in which it is compiled
    seconds: float  # a turn after that, the mean


def measure(turn: Callable[[], Any], *, most_seconds: float, most_turns: int = 30) -> Clock:
    """The time of a turn. Turns are dispatched one after the other, and the last one is waited for."""
    first_seconds = _seconds_of(turn, 1)
    one = _seconds_of(turn, 1)
    num_turns = int(most_seconds / max(one, 1e-9))
    num_turns = max(1, min(most_turns, num_turns))
    return Clock(first_seconds, _seconds_of(turn, num_turns) / num_turns)


def _seconds_of(turn: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    result: Any = None
    for _ in range(count):
        result = turn()
    jax.block_until_ready(result)
    return time.perf_counter() - start


def one_device_mesh(config: MeshConfig | None = None) -> Mesh:
    """The mesh of the first device alone."""
    return make_mesh(config or MeshConfig(), jax.devices()[:1])


def peak_gib() -> float | None:
    """The most memory that the device has given so far, in GiB; None where it does not say."""
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return None if peak is None else peak / GIB


def drawn(module: Any, dtype: Any, *inputs: Any) -> Any:
    """A network's parameters in `dtype`, drawn on the device, one array after the other."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    leaves, structure = jax.tree.flatten_with_path(shapes)
    arrays = []
    for number, (path, shape) in enumerate(leaves):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        arrays.append(_draw(name, shape.shape, dtype, number))
    return jax.tree.unflatten(structure, arrays)


def _draw(name: str, shape: tuple[int, ...], dtype: Any, seed: int) -> jax.Array:
    """Factors of norms are 1, biases 0, and all else is normal with the deviation of a fresh network."""
    leaf = name.rpartition("/")[2]
    if leaf in ("weight", "scale"):
        return jnp.ones(shape, dtype)
    if leaf == "bias":
        return jnp.zeros(shape, dtype)
    deviation = 1 / math.sqrt(shape[-2]) if leaf == "kernel" else 0.02
    return _normal(shape, dtype, deviation, seed)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _normal(shape: tuple[int, ...], dtype: Any, deviation: float, seed: int) -> jax.Array:
    # XLA's own generator takes neither the time nor the memory of the default one.
    key = jax.random.key(seed, impl="rbg")
    return deviation * jax.random.normal(key, shape, dtype)


def _share(flops: float, peak: float | None) -> float | None:
    return None if peak is None else flops / peak
