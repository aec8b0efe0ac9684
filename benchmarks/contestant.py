"""A contestant's process: it sets itself up, and does its work once for each line that it is sent.

    python -m benchmarks.contestant benchmarks.scoring:ours FOLDER

Between lines it sleeps, so that others have the cores. It answers on what was its standard output; what its
libraries print goes to standard error. Contestants may live in environments of their own: nothing but numpy
is needed here.
"""

import importlib
import importlib.metadata
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

PACKAGES = {  # as they are installed, and as they are imported
    "jax": "jax",
    "flax": "flax",
    "scann": "scann",
    "numpy": "numpy",
    "torch": "torch",
    "transformers": "transformers",
    "sentence-transformers": "sentence_transformers",
    "faiss-cpu": "faiss",
    "fed-rag": "fed_rag",
}


class Work(NamedTuple):
    """What was done once: so many units, and what came out, to be compared with the others'."""

    units: float
    output: np.ndarray


Once = Callable[[], Work]
Setup = Callable[[pathlib.Path], Once]  # a contestant: a folder of inputs and weights in, its work out


def main(function: str, folder: str) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    module, _, name = function.partition(":")
    start = time.perf_counter()
    once: Once = getattr(importlib.import_module(module), name)(pathlib.Path(folder))
    print(json.dumps({"setup": time.perf_counter() - start, "versions": _versions()}), file=answers)
    for _ in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        work = once()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        np.save(pathlib.Path(folder) / f"{name}.npy", work.output)
        answer = {
            "units": work.units,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "peak_mib": _peak_mib(),
        }
        print(json.dumps(answer), file=answers)


def _peak_mib() -> float:
    """The most memory that this program had; `getrusage` would count what its parent had before it."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _versions() -> dict[str, str]:
    """Of the packages that this process has imported."""
    imported = (name for name, module in PACKAGES.items() if module in sys.modules)
    return {name: importlib.metadata.version(name) for name in imported}


if __name__ == "__main__":
    main(*sys.argv[1:])
