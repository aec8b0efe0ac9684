"""The frame of the benchmarks: workers in their own processes, their records and their tables."""

import dataclasses
import importlib
import pathlib
import time

import numpy as np
import pytest

from benchmarks import __main__, compare, tables
from benchmarks.compare import Benchmark, Target, Worker
from benchmarks.worker import Once, Work


def prepare(folder: pathlib.Path):
    (folder / "seconds.txt").write_text("0.02")
    return {"cats": 3}


def quick(folder: pathlib.Path) -> Once:
    seconds = float((folder / "seconds.txt").read_text())
    return lambda: _sleep(seconds, 2.0)


def slow(folder: pathlib.Path) -> Once:
    print("what a library prints is no answer")
    return lambda: _sleep(0.1, 2.5)


def broken(folder: pathlib.Path) -> Once:
    raise OSError("no such model")


def _sleep(seconds: float, result: float) -> Work:
    time.sleep(seconds)
    return Work(1, np.array([result]))


RACE = Benchmark(
    name="race",
    title="A race",
    unit="laps",
    workers=(
        Worker("radit_jax", "quick"),
        Worker("tortoise", "slow"),
        Worker("nobody", "slow", environment="no-such-environment"),
    ),
    prepare=prepare,
    agreement=lambda outputs: {"difference": float(outputs["tortoise"][0] - outputs["radit_jax"][0])},
    targets=(Target("tortoise", 2.0), Target("nobody", 2.0)),
)


@pytest.fixture(scope="module", autouse=True)
def workers_find_this_file():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parent))
        yield


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return compare.run(RACE, tmp_path_factory.mktemp("cache"), rounds=3)


def test_every_round_of_every_worker_is_recorded(record):
    assert set(record["workers"]) == {"radit_jax", "tortoise"}
    assert [len(told["rounds"]) for told in record["workers"].values()] == [3, 3]
    assert record["facts"] == {"cats": 3} and record["agreement"] == {"difference": 0.5}
    assert all(turn["seconds"] >= 0.1 for turn in record["workers"]["tortoise"]["rounds"])


def test_some_workers_alone_are_measured_and_compared_with_nobody(tmp_path):
    record = compare.run(RACE, tmp_path, rounds=1, only=["radit_jax"])
    assert set(record["workers"]) == {"radit_jax"} and record["agreement"] == {}
    assert "| radit_jax |" in tables.section(RACE, record)
    with pytest.raises(ValueError, match="race: expected workers of radit_jax, tortoise, nobody, got hare"):
        compare.run(RACE, tmp_path, rounds=1, only=["hare"])


def test_a_ratio_is_of_turns_of_one_round():
    turns = {"a": [(4.0, 1.0), (4.0, 2.0)], "b": [(1.0, 1.0), (1.0, 1.0)]}
    rounds = {
        name: {"rounds": [{"units": units, "seconds": seconds} for units, seconds in told]}
        for name, told in turns.items()
    }
    assert compare.ratios({"workers": rounds}, "a", "b") == (3.0, 2.0, 4.0)
    assert compare.rates({"workers": rounds}, "a") == (3.0, 2.0, 4.0)


def test_a_section_has_a_row_for_each_worker_and_each_target_that_was_met_or_missed(record):
    lines = tables.section(RACE, record).splitlines()
    assert lines[0].startswith("## A race, ")
    assert sum(line.startswith("| radit_jax |") for line in lines) == 1
    assert sum(line.startswith("| tortoise |") for line in lines) == 1
    assert sum(line.startswith("| radit_jax against tortoise | 2 × |") for line in lines) == 1
    assert not [line for line in lines if "nobody" in line]


def test_a_worker_that_ends_is_an_error_and_not_a_row(tmp_path):
    lone = dataclasses.replace(RACE, workers=(Worker("radit_jax", "broken"),))
    with pytest.raises(RuntimeError, match="got the end of the process with code 1. Read its log"):
        compare.run(lone, tmp_path, rounds=1)
    assert "no such model" in (tmp_path / "race" / "broken.log").read_text()


@pytest.mark.parametrize("name", __main__.NAMES)
def test_a_benchmark_has_what_the_command_asks_of_it(name):
    module = importlib.import_module(f"benchmarks.{name}")
    if not hasattr(module, "BENCHMARK"):
        assert callable(module.run) and callable(module.section)
        return
    benchmark = module.BENCHMARK
    assert benchmark.name == name
    assert all(callable(getattr(module, worker.function)) for worker in benchmark.workers)
    known = {worker.name for worker in benchmark.workers}
    assert all({target.rival, target.ours} <= known for target in benchmark.targets)
