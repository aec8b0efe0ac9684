"""Workers side by side: interleaved rounds, each worker in its own process, and the figures of all rounds.

The processes share the cores that this one is pinned to, and never work at the same time. The first turn of
each, in which it compiles and warms up, is measured separately. A ratio is of two workers in the same round.
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


class Worker(NamedTuple):
    """A system that does the work: a function of the benchmark's module (`worker.Setup`)."""

    name: str  # as the tables say it
    function: str
    environment: str = ""  # a folder of the repository with another Python; "" is this Python


class Target(NamedTuple):
    """The least ratio of our units a second to a rival's."""

    rival: str
    ratio: float
    ours: str = OURS


@dataclass(frozen=True)
class Benchmark:
    """One path of the system, and the workers that are compared on it."""

    name: str
    title: str
    unit: str  # what is counted, in the plural
    workers: Sequence[Worker]
    prepare: Callable[[pathlib.Path], Mapping[str, Any]]  # writes inputs and weights; facts about them
    agreement: Callable[[Mapping[str, np.ndarray]], Mapping[str, Any]]  # of the outputs, by worker
    targets: Sequence[Target] = ()

    @property
    def module(self) -> str:
        """The module that holds the workers' functions, and `agreement` with them."""
        return self.agreement.__module__


def run(
    benchmark: Benchmark,
    cache: pathlib.Path,
    rounds: int,
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """The record of a comparison: every round of every worker, and all that it was made with.

    `only` names the workers to measure; their outputs are then compared with nobody's.
    """
    names = [worker.name for worker in benchmark.workers]
    if unknown := sorted(set(only) - set(names)):
        raise ValueError(
            f"{benchmark.name}: expected workers of {', '.join(names)}, got {', '.join(unknown)}. "
            f"Name one of those after --only."
        )

    # Start from an empty folder: weights in it may be of a model of other inputs.
    folder = cache.absolute() / benchmark.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    facts = dict(benchmark.prepare(folder))

    chosen = [worker for worker in benchmark.workers if not only or worker.name in only]
    present = [worker for worker in chosen if _python(worker) is not None]
    for worker in chosen:
        if worker not in present:
            environment = worker.environment
            print(f"{benchmark.name}: {worker.name} is left out, {environment} has no Python", flush=True)

    measured, versions = _measure(benchmark, present, folder, rounds)
    outputs = {worker.name: np.load(folder / f"{worker.function}.npy") for worker in present}
    return {
        "benchmark": benchmark.name,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions,
        "facts": facts,
        "workers": measured,
        "agreement": {} if only else dict(benchmark.agreement(outputs)),
    }


def _measure(
    benchmark: Benchmark,
    workers: Sequence[Worker],
    folder: pathlib.Path,
    rounds: int,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """What each worker answered at set-up, in its first turn and in every round; and packages' versions."""
    with contextlib.ExitStack() as stack:
        # 1) Start all; each sets itself up at once, and waits.
        processes = {}
        for worker in workers:
            processes[worker.name] = stack.enter_context(_process(benchmark, worker, folder))
        setups = {name: _answer(process) for name, process in processes.items()}

        # 2) One turn each to warm up, then the rounds, in which they take turns.
        first_turns = {name: _turn(process) for name, process in processes.items()}
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in processes}
        for number in range(rounds):
            for name, process in processes.items():
                turn = _turn(process)
                turns[name].append(turn)
                rate = turn["units"] / turn["seconds"]
                print(f"{benchmark.name} {number + 1}/{rounds} {name}: {rate:.4g}/s", flush=True)

    measured = {}
    versions: dict[str, str] = {}
    for name, setup in setups.items():
        measured[name] = {"setup": setup["setup"], "first": first_turns[name], "rounds": turns[name]}
        versions |= setup["versions"]
    return measured, versions


class Spread(NamedTuple):
    """A median and its range over the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


def rates(record: Mapping[str, Any], name: str, per: str = "seconds") -> Spread:
    """A worker's units a second, or a CPU-second."""
    turns = record["workers"][name]["rounds"]
    return Spread.of([turn["units"] / turn[per] for turn in turns])


def ratios(record: Mapping[str, Any], ours: str, rival: str, per: str = "seconds") -> Spread:
    """The ratio of our rate to the rival's in each round."""
    our_turns = record["workers"][ours]["rounds"]
    rival_turns = record["workers"][rival]["rounds"]
    values = []
    for our_turn, rival_turn in zip(our_turns, rival_turns, strict=True):
        our_rate = our_turn["units"] / our_turn[per]
        rival_rate = rival_turn["units"] / rival_turn[per]
        values.append(our_rate / rival_rate)
    return Spread.of(values)


def machine() -> dict[str, Any]:
    """The CPU, the number of cores that this process may use, and the version of Python."""
    cpu = platform.processor()
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(": ")[2]
                break
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}


def _python(worker: Worker) -> str | None:
    """The worker's interpreter; `None` where its environment is not there."""
    if not worker.environment:
        return sys.executable
    path = ROOT / worker.environment / "bin" / "python"
    return str(path) if path.exists() else None


@contextlib.contextmanager
def _process(
    benchmark: Benchmark,
    worker: Worker,
    folder: pathlib.Path,
) -> Iterator[subprocess.Popen[str]]:
    """The worker's process, with its standard error in a log; it is killed at the end."""
    python = _python(worker)
    assert python is not None
    function = f"{benchmark.module}:{worker.function}"
    command = [python, "-m", "benchmarks.worker", function, str(folder)]
    with (folder / f"{worker.function}.log").open("w") as log:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
            try:
                yield process
            finally:
                process.kill()


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The next line that a worker writes."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(
            f"{process.args}: expected an answer, got the end of the process with code {process.wait()}. "
            f"Read its log in the cache."
        )
    return json.loads(line)


def _turn(process: subprocess.Popen[str]) -> dict[str, float]:
    """Let a worker do its work once."""
    assert process.stdin is not None
    time.sleep(0.2)  # threads of the worker before may still spin
    process.stdin.write("go\n")
    process.stdin.flush()
    return _answer(process)


def commit() -> str:
    """The commit that is measured, marked where files differ from it; "unknown" outside a repository."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"
