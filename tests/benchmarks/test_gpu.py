"""The benchmark of one accelerator: its parts at tiny sizes on the CPU, and parts that fail."""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import bench, rows
from benchmarks.gpu.__main__ import PARTS, Part
from benchmarks.gpu.sizes import TINY

# PyTorch takes longer than all of ours.
MARKED = [pytest.param(part, marks=pytest.mark.slow if part.name == "peers" else ()) for part in PARTS]


@pytest.mark.parametrize("part", MARKED, ids=[part.name for part in PARTS])
def test_a_part_measures_all_it_names_without_an_error(part: Part, tmp_path: pathlib.Path):
    command.run_one(part.name, part.function, tmp_path, tiny=True)
    found = rows.read(tmp_path)
    assert found and not [row for row in found if "error" in row or "left_out" in row]
    for row in found:
        assert row["part"] == part.name
        assert row["what"] == "machine" or np.isfinite(row["value"])
    assert (tmp_path / "table.md").read_text().count("\n") == 2 + len(found)


def test_a_process_that_fails_or_does_not_end_is_told_apart_from_one_that_ends_well():
    ends = {"pass": "", "raise SystemExit(3)": "it ended with status 3"}
    for script, error in ends.items():
        assert command._run([sys.executable, "-S", "-c", script], 60) == error
    sleeping = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
    assert command._run(sleeping, 0.6) == "it was stopped after 1 s"


def test_a_part_that_does_not_end_well_leaves_a_row_and_the_next_one_runs(tmp_path, monkeypatch):
    commands = []

    def run(arguments, limit):
        commands.append((arguments[3:], limit))
        return "it ended with status 1" if "badly" in arguments else ""

    monkeypatch.setattr(command, "_run", run)
    parts = [Part(name, f"stand_ins:{name}", 1) for name in ("badly", "well")]
    assert command.run_all(parts, tmp_path, limit=20, total=1000, tiny=True) == 1
    (row,) = rows.read(tmp_path)
    assert (row["part"], row["error"]) == ("badly", "it ended with status 1")
    of_part = ["well", "--one", "stand_ins:well", "--out", str(tmp_path), "--tiny"]
    assert commands[1] == (of_part, 20)


def test_a_part_for_which_no_time_is_left_does_not_begin(tmp_path):
    parts = [Part("long", "nowhere:never", 100)]
    assert command.run_all(parts, tmp_path, limit=180, total=99, tiny=False) == 0
    (row,) = rows.read(tmp_path)
    assert row["left_out"] == "99 s are left, and it is expected to take 100"


def test_the_expected_seconds_fit_into_a_limit_for_each_and_for_all():
    assert max(part.seconds for part in PARTS) < 180
    assert sum(part.seconds for part in PARTS) <= 600


def test_an_error_is_a_row_and_what_comes_after_it_is_measured(tmp_path):
    measuring = bench.Bench(rows.Recorder(tmp_path, "part"), TINY)
    with measuring.trying("this"):
        raise ValueError("no | good\nand more")
    measuring.recorder.write("that", value=3, unit="things/s")
    assert [row.get("error") for row in rows.read(tmp_path)] == ["ValueError: no | good", None]
    table = (tmp_path / "table.md").read_text()
    assert "| part | this | failed |  |  |  |  |  | ValueError: no / good |" in table
    assert "| part | that | 3 things/s |" in table


def test_a_rate_is_compared_with_the_measured_peak_and_the_vendors(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "peak_flops", lambda kind: 1000e12)
    (tmp_path / bench.PEAK).write_text(json.dumps({"flops": 800e12}))
    measuring = bench.Bench(rows.Recorder(tmp_path, "part"), TINY)
    measuring.rate("a step", 10, "tokens", clock=bench.Clock(9.0, 0.5), flops=200e12, rows=8)
    (row,) = rows.read(tmp_path)
    assert (row["value"], row["tflops"]) == (20, 400)
    assert (row["of_measured_peak"], row["of_vendor_peak"]) == (0.5, 0.4)
    line = "| part | a step | 20 tokens/s | 400 | 50.0% | 40.0% |  | 9.0 s | rows 8 |"
    assert line in (tmp_path / "table.md").read_text()


def test_parameters_are_drawn_with_norms_of_one_and_no_biases():
    from radit_jax.models.bert import Bert

    tokens = np.ones((1, 4), np.int32)
    params = bench.drawn(Bert(TINY.encoder), jax.numpy.bfloat16, tokens, tokens > 0)
    dense = params["encoder"]["layer"]["intermediate"]["dense"]
    assert dense["kernel"].dtype == jax.numpy.bfloat16
    assert abs(float(dense["kernel"].astype(np.float32).std()) * 32**0.5 - 1) < 0.1
    assert not dense["bias"].any()
    assert (params["embeddings"]["LayerNorm"]["scale"] == 1).all()


def test_it_imports_nothing_that_a_machine_with_jax_flax_optax_and_orbax_lacks():
    """All parts' modules, with the package's other dependencies out of reach."""
    script = """
import sys
for name in ("grain", "array_record", "tensorflow_datasets", "scann", "qwix", "gguf", "torch", "shtab"):
    sys.modules[name] = None
import importlib
from benchmarks.gpu.__main__ import PARTS
for part in PARTS:
    importlib.import_module(part.function.partition(":")[0])
import radit_jax.selfcheck.proofs
"""
    import subprocess

    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
