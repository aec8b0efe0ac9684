"""The quick check of speed: its arithmetic, its record, and its small inputs."""

import json
import pathlib
import sys

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import check, compare
from benchmarks.check import Path
from benchmarks.compare import Spread

MEASURED = {"scoring": Spread(4.0, 3.0, 5.0), "search": Spread(7.9, 7.0, 9.0), "new": Spread(2.0, 2.0, 2.0)}
RECORDED = {"scoring": 5.0, "search": 10.0}


@pytest.fixture
def record(tmp_path, monkeypatch) -> pathlib.Path:
    """Where the record is; the process's environment is as it was afterwards."""
    monkeypatch.setattr(check, "RECORD", tmp_path / "check.json")
    monkeypatch.setenv("RADIT_DATA", "here")
    monkeypatch.setenv("RADIT_LM", "there")
    return tmp_path / "check.json"


@pytest.fixture
def told(monkeypatch):
    """What a machine would measure: our seconds of each round, next to a rival's second."""
    seconds = [0.25, 0.25, 0.25, 0.5, 0.1]

    def run(benchmark, cache, rounds, only):
        ours, rival = only
        of_ours = [{"units": 1.0, "seconds": own} for own in seconds[:rounds]]
        of_rival = [{"units": 1.0, "seconds": 1.0}] * rounds
        return {"workers": {ours: {"rounds": of_ours}, rival: {"rounds": of_rival}}}

    monkeypatch.setattr(compare, "run", run)
    return seconds


def test_a_path_is_slower_below_four_fifths_of_its_record():
    assert check.slower(MEASURED, RECORDED) == ["search"]
    assert check.slower(MEASURED, {"search": 9.875}) == []
    lines = check.report(MEASURED, RECORDED)
    assert lines == [
        "scoring    4 × (3 to 5), record 5: as fast",
        "search     7.9 × (7 to 9), record 10: slower",
        "new        2 × (2 to 2), record none: not compared",
    ]


def test_the_exit_code_follows_the_median_of_five_rounds(record, told, tmp_path, capsys):
    assert check.run(tmp_path, record=True) == 0
    [kept] = json.loads(record.read_text()).values()
    assert kept["ratios"] == {path.benchmark.name: 4.0 for path in check.PATHS}
    assert "scoring    4 × (2 to 10), record 4: as fast" in capsys.readouterr().out
    # Slower in three of five rounds, and in two.
    told[:] = [0.25, 0.25, 1.0, 1.0, 1.0]
    assert check.run(tmp_path, record=False) == 1
    told[:] = [1.0, 1.0, 0.25, 0.25, 0.25]
    assert check.run(tmp_path, record=False) == 0


def test_a_machine_without_a_record_is_told_how_to_make_one(record, told, tmp_path, capsys):
    record.write_text(json.dumps({"4 × Other CPU": {"ratios": {"scoring": 1.0}}}))
    assert check.run(tmp_path, record=False) == 1
    told_of = capsys.readouterr().out
    assert "got 4 × Other CPU. Run it with --record" in told_of
    assert check.run(tmp_path, record=True) == 0
    assert "4 × Other CPU" in json.loads(record.read_text())


def test_the_command_leaves_with_the_code_of_the_check(record, told, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--check"])
    with pytest.raises(SystemExit) as left:
        command.main()
    assert left.value.code == 1
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--check", "--record"])
    with pytest.raises(SystemExit) as left:
        command.main()
    assert left.value.code == 0


@pytest.mark.parametrize("path", check.PATHS, ids=[path.benchmark.name for path in check.PATHS])
def test_a_path_names_workers_of_its_benchmark(path: Path):
    names = {worker.name: worker.function for worker in path.benchmark.workers}
    module = sys.modules[path.benchmark.module]
    assert path.benchmark.module == f"benchmarks.{path.benchmark.name}"
    assert callable(getattr(module, names[path.ours])) and callable(getattr(module, names[path.rival]))


def test_search_finds_what_is_there_in_small_inputs(tmp_path):
    check.small_search(tmp_path)
    vectors, queries = np.load(tmp_path / "vectors.npy"), np.load(tmp_path / "queries.npy")
    assert vectors.shape == (20_000, 384) and queries.shape == (5000, 384)
    # Queries are of the vectors' clusters.
    assert (queries[:50] @ vectors.T).max(axis=1).min() > 0.3
