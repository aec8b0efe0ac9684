"""All paths on one accelerator, part by part: `python -m benchmarks.gpu [PARTS]`.

Every part runs in a process of its own for at most `--limit` seconds, and writes each row as soon as it is
measured, to `rows.jsonl` and `table.md` in the folder `--out`. A part that fails leaves a row that says why,
and the next part begins. No part begins that is not expected to end within `--total` seconds.

Weights and inputs are drawn, so nothing is downloaded. It needs jax with the accelerator's plugin, flax,
optax, orbax and transformers; the peers need torch and are left out without it.
"""

import argparse
import importlib
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.gpu.rows import Recorder


class Part(NamedTuple):
    """A part of the benchmark."""

    name: str
    function: str  # module:name, called with a `Bench`
    seconds: int  # that it is expected to take on an H100 or H200


PARTS = (
    Part("selfcheck", "benchmarks.gpu.checks:selfcheck", 75),
    Part("kernels", "benchmarks.gpu.checks:kernels", 30),
    Part("peak", "benchmarks.gpu.peak:peak", 20),
    Part("lm_ft_lora", "benchmarks.gpu.training:lora", 100),
    Part("lm_ft_full", "benchmarks.gpu.training:full", 70),
    Part("scoring", "benchmarks.gpu.inference:scoring", 60),
    Part("answering", "benchmarks.gpu.inference:answering", 100),
    Part("embedding", "benchmarks.gpu.encoders:embedding", 25),
    Part("r_ft", "benchmarks.gpu.encoders:r_ft", 25),
    Part("peers", "benchmarks.gpu.peers:peers", 60),
)
NAMES = [part.name for part in PARTS]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    lines = [f"  {part.name:12} about {part.seconds} s" for part in PARTS]
    command = argparse.ArgumentParser(
        "python -m benchmarks.gpu",
        description=(__doc__ or "").partition("\n")[0],
        epilog="\n".join(["parts, in their order, on an H100 or H200:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("parts", nargs="*", metavar="PART", help="default: all")
    command.add_argument(
        "--out", default="runs/gpu", help="folder of rows.jsonl and table.md (default: %(default)s)"
    )
    command.add_argument(
        "--limit", type=float, default=180, help="seconds of a part, at most (default: %(default)s)"
    )
    command.add_argument("--total", type=float, default=570, help="seconds in all (default: %(default)s)")
    command.add_argument("--tiny", action="store_true", help="sizes that a CPU takes seconds for")
    command.add_argument("--one", help=argparse.SUPPRESS)  # a Part's function, in a process of its own
    return command


def main() -> int:
    """Run the parts that are named, each in its own process."""
    command = parser()
    options = command.parse_args()
    out = pathlib.Path(options.out)
    if options.one:
        run_one(options.parts[0], options.one, out, tiny=options.tiny)
        return 0
    unknown = sorted(set(options.parts) - set(NAMES))
    if unknown:
        command.error(f"expected parts of {', '.join(NAMES)}, got {', '.join(unknown)}")
    named = [part for part in PARTS if not options.parts or part.name in options.parts]
    num_failed = run_all(named, out, limit=options.limit, total=options.total, tiny=options.tiny)
    print((out / "table.md").read_text())
    return 1 if num_failed else 0


def run_all(parts: Sequence[Part], out: pathlib.Path, *, limit: float, total: float, tiny: bool) -> int:
    """Run each part while there is time for it; returns how many of them did not end well."""
    started = time.monotonic()
    num_failed = 0
    for part in parts:
        recorder = Recorder(out, part.name)
        left = total - (time.monotonic() - started)
        if left < min(part.seconds, limit) and not tiny:
            recorder.left_out(f"{left:.0f} s are left, and it is expected to take {part.seconds}")
            continue
        command = [
            sys.executable,
            "-m",
            "benchmarks.gpu",
            part.name,
            "--one",
            part.function,
            "--out",
            str(out),
        ]
        if tiny:
            command.append("--tiny")
        print(f"== {part.name}, about {part.seconds} s", flush=True)
        error = _run(command, min(limit, left))
        if error:
            num_failed += 1
            recorder.failed(error)
    return num_failed


def _run(command: Sequence[str], limit: float) -> str:
    """Why a part did not end well; "" where it did."""
    try:
        status = subprocess.run(command, timeout=limit, check=False).returncode
    except subprocess.TimeoutExpired:
        return f"it was stopped after {limit:.0f} s"
    return f"it ended with status {status}" if status else ""


def run_one(name: str, function: str, out: pathlib.Path, *, tiny: bool) -> None:
    """Run one part in this process."""
    # The settings that commands make, before jax starts. Peers need the memory that jax would reserve.
    from radit_jax.runtime.distributed.gpus import prepare_gpus

    print(prepare_gpus(os.environ), flush=True)

    from benchmarks.gpu.bench import Bench
    from benchmarks.gpu.sizes import REAL, TINY

    module, _, attribute = function.partition(":")
    run = getattr(importlib.import_module(module), attribute)
    run(Bench(Recorder(out, name), TINY if tiny else REAL))


if __name__ == "__main__":
    sys.exit(main())
