"""Whether this checkout is as fast as the record of this machine: `python -m benchmarks --check`.

A few paths, each beside one rival, on small drawn inputs, in three minutes of an idle machine of two cores.
All that it imports is installed for the tests; so search is beside exact search in numpy.
A ratio is of our rate to the rival's in the same round, so that what else the machine does slows both. A path
has become slower where the median over the rounds is below `LEAST` of the recorded one.

The records are in `results/check.json`, by machine, because a ratio depends on the CPU and its cores.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import answering, compare, embedding, lm_ft, scoring, search
from benchmarks.compare import Benchmark, Spread

ROUNDS = 5
LEAST = 0.8  # of a recorded ratio
RECORD = pathlib.Path(__file__).parent / "results" / "check.json"
NUM_TOKENS = 2000  # that texts are drawn from

Ratios = dict[str, float]  # by path


class Path(NamedTuple):
    """A benchmark with small inputs, and the two of its workers that are compared."""

    benchmark: Benchmark
    ours: str
    rival: str


def run(cache: pathlib.Path, *, record: bool, paths: Sequence[Path] | None = None) -> int:
    """Measure all paths, print a line for each, and return the exit code: 1 where one became slower.

    With `record` the ratios become the record of this machine. A machine without a record is refused.
    """
    records: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    name = machine_name(compare.machine())
    if not record and name not in records:
        print(
            f"benchmarks --check: expected a record of this machine ({name}), got "
            f"{'; '.join(records) or 'none'}. Run it with --record at a commit that is fast."
        )
        return 1

    # Peers and we get generated inputs, with real data at hand or not.
    os.environ["RADIT_DATA"] = str(cache / "no-data")
    os.environ.pop("RADIT_LM", None)
    measured = {}
    for path in PATHS if paths is None else paths:
        both = (path.ours, path.rival)
        told = compare.run(path.benchmark, cache / "check", ROUNDS, both)
        measured[path.benchmark.name] = compare.ratios(told, *both)
    if record:
        medians = {path: round(spread.median, 3) for path, spread in measured.items()}
        records[name] = {"commit": compare.commit(), "ratios": medians}
        RECORD.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n")

    recorded: Ratios = records[name]["ratios"]
    print("\n".join(report(measured, recorded)))
    return int(bool(slower(measured, recorded)))


def machine_name(machine: Mapping[str, Any]) -> str:
    """What a record is kept under.

    >>> machine_name({"cpu": "AMD EPYC", "cores": 2, "python": "3.11.4"})
    '2 × AMD EPYC'
    """
    return f"{machine['cores']} × {machine['cpu']}"


def slower(measured: Mapping[str, Spread], recorded: Ratios) -> list[str]:
    """The paths whose median ratio is below `LEAST` of the recorded one; a path without a record is none."""
    return [path for path, spread in measured.items() if spread.median < LEAST * recorded.get(path, 0.0)]


def report(measured: Mapping[str, Spread], recorded: Ratios) -> list[str]:
    """A line for each path: our rate to the rival's with its range, the record, and the verdict."""
    behind = slower(measured, recorded)
    lines = []
    for path, (median, least, most) in measured.items():
        verdict = "slower" if path in behind else "as fast"
        of_record = recorded.get(path)
        against = f"{of_record:.3g}" if of_record else "none"
        if not of_record:
            verdict = "not compared"
        lines.append(f"{path:<10} {median:.3g} × ({least:.3g} to {most:.3g}), record {against}: {verdict}")
    return lines


# ---- small inputs ----


def small_scoring(folder: pathlib.Path) -> Mapping[str, Any]:
    """Four chunks with eight questions each."""
    from benchmarks import inputs

    inputs.language_model(folder / "lm")
    draw = np.random.default_rng(0)
    trees = []
    for _ in range(4):
        questions = [(_tokens(draw, 26), 6) for _ in range(8)]
        trees.append((_tokens(draw, 160), questions))
    inputs.write_json(folder / "trees.json", trees)
    return {}


def small_lm_ft(folder: pathlib.Path) -> Mapping[str, Any]:
    """Two instances in each of the rows of one batch."""
    from benchmarks import inputs

    inputs.language_model(folder / "lm")
    draw = np.random.default_rng(1)
    num_rows = lm_ft.ROWS
    instances = [{"tokens": _tokens(draw, 240), "answer": 6} for _ in range(2 * num_rows)]
    rows = np.arange(2 * num_rows).reshape(num_rows, 2)
    inputs.write_json(folder / "instances.json", instances)
    inputs.write_json(folder / "rows.json", rows.tolist())
    return {}


def small_embedding(folder: pathlib.Path) -> Mapping[str, Any]:
    """Two batches of 32 rows, 64 and 128 tokens wide."""
    from benchmarks import inputs
    from radit_jax.runtime.pretrained.hf_export import export_hf

    export_hf(folder / "minilm", inputs.encoder().model)
    draw = np.random.default_rng(2)
    batches = {}
    for number, width in enumerate((64, 128)):
        rows = np.arange(32) + 32 * number
        tokens = draw.integers(1000, 1000 + NUM_TOKENS, (32, width)).astype(np.int32)
        mask = np.ones_like(tokens, bool)
        batches |= {f"{number}-rows": rows, f"{number}-tokens": tokens, f"{number}-mask": mask}
    np.savez(folder / "batches.npz", **batches)
    return {}


def small_search(folder: pathlib.Path) -> Mapping[str, Any]:
    """Twenty thousand vectors in clusters, and five thousand queries."""
    from benchmarks.size import clustered_vectors

    np.save(folder / "vectors.npy", clustered_vectors(20_000))
    np.save(folder / "tuning.npy", clustered_vectors(200, seed=1))
    np.save(folder / "queries.npy", clustered_vectors(5000, seed=2))
    return {}


def small_answering(folder: pathlib.Path) -> Mapping[str, Any]:
    """Four questions after ten chunks, each chunk before two of the questions."""
    from benchmarks import inputs
    from radit_jax.lm.answering import stops_of

    tokenizer = inputs.answering_model(folder / "lm").tokenizer
    draw = np.random.default_rng(3)
    prompts = []
    for _ in range(2):
        chunks = [_tokens(draw, 100) for _ in range(10)]
        for _ in range(2):
            question = _tokens(draw, 20)
            prompts.append([chunk + question for chunk in chunks])
    inputs.write_json(folder / "prompts.json", prompts)
    inputs.write_json(folder / "ends.json", stops_of(tokenizer))
    return {}


def _tokens(draw: np.random.Generator, count: int) -> list[int]:
    return draw.integers(3, NUM_TOKENS, count).tolist()


def _small(benchmark: Benchmark, prepare: Any, ours: str, rival: str) -> Path:
    """The benchmark's own workers on other inputs."""
    return Path(dataclasses.replace(benchmark, prepare=prepare), ours, rival)


PATHS = (
    _small(scoring.BENCHMARK, small_scoring, compare.OURS, "PyTorch, head on answer rows"),
    _small(lm_ft.BENCHMARK, small_lm_ft, compare.OURS, "PyTorch, packed, head on answer rows"),
    _small(
        embedding.BENCHMARK,
        small_embedding,
        "radit_jax float32, equal shapes",
        "PyTorch float32, equal shapes",
    ),
    _small(search.BENCHMARK, small_search, compare.OURS, "radit_jax, exact"),
    _small(answering.BENCHMARK, small_answering, compare.OURS, "transformers, caches kept"),
)
