"""A worker's process: it sets itself up, and does its work once for each line that it reads.

    python -m benchmarks.worker benchmarks.scoring:ours FOLDER

Between lines it waits, so that others have the cores. It answers on its standard output; what its libraries
print goes to standard error. A worker may have its own environment: this module imports only numpy.
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
    """What was done once."""

    units: float  # how much
    output: np.ndarray  # compared with the other workers'


Once = Callable[[], Work]
Setup = Callable[[pathlib.Path], Once]  # a worker: from a folder of inputs and weights to its work


def main(function: str, folder: str) -> None:
    """Set up `module:function` in `folder`, and answer each line of standard input with one of JSON."""
    # Keep the standard output for the answers, and send what else is printed to standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    module, _, name = function.partition(":")
    start = time.perf_counter()
    set_up: Setup = getattr(importlib.import_module(module), name)
    once = set_up(pathlib.Path(folder))
    seconds = time.perf_counter() - start
    print(json.dumps({"setup": seconds, "versions": _versions()}), file=answers)

    for _ in sys.stdin:
        start = time.perf_counter()
        cpu_start = time.process_time()
        work = once()
        seconds = time.perf_counter() - start
        cpu_seconds = time.process_time() - cpu_start
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
    peak_line = next(line for line in lines if line.startswith("VmHWM"))
    peak_kib = int(peak_line.split()[1])
    return peak_kib / 1024


def _versions() -> dict[str, str]:
    """The versions of the packages that this process has imported."""
    imported = [name for name, module in PACKAGES.items() if module in sys.modules]
    return {name: importlib.metadata.version(name) for name in imported}


if __name__ == "__main__":
    main(*sys.argv[1:])
