"""Contestants side by side: interleaved rounds in processes of their own, and what they add up to.

The processes share this one's cores, to which it is pinned, and never work at the same time. A first turn of
each, in which it compiles and warms up, is measured apart. A ratio is of two contestants of the same round.
"""

import contextlib
import datetime
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
OURS = "radit_jax"


class Contestant(NamedTuple):
    """A system that does the work: a function of the benchmark's module (`contestant.Setup`)."""

    name: str  # as the tables say it
    function: str
    environment: str = ""  # a folder below the repository with a Python of its own; "": this Python


class Target(NamedTuple):
    """How many times a rival's units a second ours are to be, at least."""

    rival: str
    ratio: float
    ours: str = OURS


@dataclass(frozen=True)
class Benchmark:
    """One path of the system, and those who go it."""

    name: str
    title: str
    unit: str  # what is counted, in the plural
    contestants: Sequence[Contestant]
    prepare: Callable[[pathlib.Path], Mapping[str, Any]]  # writes inputs and weights; facts about them
    agreement: Callable[[Mapping[str, np.ndarray]], Mapping[str, Any]]  # of the outputs, by contestant
    targets: Sequence[Target] = ()

    @property
    def module(self) -> str:
        return self.prepare.__module__


def run(benchmark: Benchmark, cache: pathlib.Path, rounds: int, only: Sequence[str] = ()) -> dict[str, Any]:
    """The record of a comparison: every round of every contestant, and all that it was made with.

    Of the contestants `only`, whose outputs are compared with nobody's, if any are named.
    """
    names = [contestant.name for contestant in benchmark.contestants]
    if unknown := sorted(set(only) - set(names)):
        raise ValueError(
            f"{benchmark.name}: no contestant {', '.join(unknown)}; there are {', '.join(names)}"
        )
    folder = cache.absolute() / benchmark.name
    shutil.rmtree(folder, ignore_errors=True)  # weights for the peers may be of a model of other inputs
    folder.mkdir(parents=True)
    facts = dict(benchmark.prepare(folder))
    chosen = [c for c in benchmark.contestants if not only or c.name in only]
    present = [c for c in chosen if _python(c) is not None]
    for missing in set(chosen) - set(present):
        print(
            f"{benchmark.name}: {missing.name} is left out, {missing.environment} has no Python", flush=True
        )
    with contextlib.ExitStack() as stack:
        processes = {c.name: stack.enter_context(_process(benchmark, c, folder)) for c in present}
        started = {name: _told(process) for name, process in processes.items()}
        first = {name: _turn(process) for name, process in processes.items()}
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in processes}
        for number in range(rounds):
            for name, process in processes.items():
                measured[name].append(_turn(process))
                rate = measured[name][-1]["units"] / measured[name][-1]["seconds"]
                print(f"{benchmark.name} {number + 1}/{rounds} {name}: {rate:.4g}/s", flush=True)
    outputs = {c.name: np.load(folder / f"{c.function}.npy") for c in present}
    return {
        "benchmark": benchmark.name,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "versions": {k: v for told in started.values() for k, v in told["versions"].items()},
        "facts": facts,
        "contestants": {
            name: {"setup": started[name]["setup"], "first": first[name], "rounds": measured[name]}
            for name in processes
        },
        "agreement": {} if only else dict(benchmark.agreement(outputs)),
    }


class Spread(NamedTuple):
    """A median and its range over the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


def rates(record: Mapping[str, Any], name: str, per: str = "seconds") -> Spread:
    """Units a second, or a CPU-second, of a contestant."""
    return Spread.of([turn["units"] / turn[per] for turn in record["contestants"][name]["rounds"]])


def ratios(record: Mapping[str, Any], ours: str, rival: str, per: str = "seconds") -> Spread:
    """How many times the rival's rate ours is, round by round."""
    pairs = zip(*(record["contestants"][name]["rounds"] for name in (ours, rival)), strict=True)
    return Spread.of([a["units"] / a[per] / (b["units"] / b[per]) for a, b in pairs])


def machine() -> dict[str, Any]:
    """What it ran on."""
    cpu = platform.processor()
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), cpu)
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}


def _python(contestant: Contestant) -> str | None:
    if not contestant.environment:
        return sys.executable
    path = ROOT / contestant.environment / "bin" / "python"
    return str(path) if path.exists() else None


@contextlib.contextmanager
def _process(
    benchmark: Benchmark, contestant: Contestant, folder: pathlib.Path
) -> Iterator[subprocess.Popen[str]]:
    python, function = _python(contestant), f"{benchmark.module}:{contestant.function}"
    assert python is not None
    with (folder / f"{contestant.function}.log").open("w") as log:
        command = [python, "-m", "benchmarks.contestant", function, str(folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
            try:
                yield process
            finally:
                process.kill()


def _told(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args}: it ended with code {process.wait()}; its log says why")
    return json.loads(line)


def _turn(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdin is not None
    time.sleep(0.2)  # threads of the one before that still spin
    process.stdin.write("go\n")
    process.stdin.flush()
    return _told(process)


def commit() -> str:
    """What was measured."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or "unknown"
