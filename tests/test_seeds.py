"""The claims of the README's table: tiny and its variants over seeds 0 to 4 (slow).

    pytest -m slow tests/test_seeds.py -s

prints the table. The runs stay in `runs/seeds`, so a second call only reads them.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from radit_jax.text.metrics import exact_match
from radit_jax.text.statistics import paired_gain

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
RUNS = ROOT / "runs" / "seeds"
SEEDS = range(5)
GAINS = (("lm_ft", "base"), ("r_ft", "base"), ("radit", "lm_ft"), ("radit", "base"))
COMBINATIONS = {  # labels of the base LM or of the tuned one, candidates fixed or refreshed
    "tiny": ("tiny", []),
    "refreshed": ("tiny", ["r_ft.refresh_every=100", "r_ft.optimizer.steps=500"]),
    "tuned-labels": ("tiny", ["score.language_model=lm_ft"]),
    "tiny_refreshed": ("tiny_refreshed", []),
}


def run(combination: str, seed: int) -> pathlib.Path:
    """The workdir of one run; what the combinations have in common is made once and copied."""
    experiment, settings = COMBINATIONS[combination]
    workdir, first = RUNS / f"{combination}-{seed}", RUNS / f"tiny-{seed}"
    if combination != "tiny" and not workdir.exists():
        shared = ("corpus", "base", "embed", "index", "retrieve", "lm_ft")
        for stage in shared:
            shutil.copytree(first / stage, workdir / stage)
    command = [sys.executable, "-m", "radit_jax.train", "--stage=evaluate", f"--workdir={workdir}"]
    command += [f"--experiment={ROOT / 'experiments' / experiment}.py", f"--set=seed={seed}"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(RUNS / "compiled")
    settings = [f"--set={setting}" for setting in settings]
    subprocess.run([*command, *settings], check=True, cwd=ROOT, env=environment)
    return workdir


@pytest.fixture(scope="module")
def results() -> dict[str, list[dict]]:
    return {
        combination: [json.loads((run(combination, seed) / "results.json").read_text()) for seed in SEEDS]
        for combination in COMBINATIONS
    }


def mean(results: list[dict], *path: str) -> float:
    return float(np.mean([values(result, *path) for result in results]))


def values(result: dict, *path: str) -> float:
    for name in path:
        result = result[name]
    return result["value"]


def pooled_gain(combination: str, after: str, before: str) -> dict:
    """The gain over all questions of all seeds, entities of one seed resampled together."""
    marks, groups = {after: [], before: []}, []
    for seed in SEEDS:
        for line in (RUNS / f"{combination}-{seed}" / "predictions.jsonl").read_text().splitlines():
            prediction = json.loads(line)
            groups.append(f"{seed} {prediction['group']}")
            for system in marks:
                marks[system].append(exact_match(prediction["systems"][system], prediction["gold"]))
    return paired_gain(np.array(marks[after]), np.array(marks[before]), groups, samples=2000, seed=0)


def test_tiny_reaches_what_is_claimed(results: dict[str, list[dict]]) -> None:
    tiny = results["tiny"]
    assert mean(tiny, "systems", "closed_book", "exact_match") <= 0.05
    assert mean(tiny, "systems", "base", "exact_match") >= 0.20
    assert mean(tiny, "gains", "lm_ft-base") >= 0.15
    assert mean(tiny, "gains", "radit-lm_ft") >= 0.05
    assert mean(tiny, "context", "lm_ft_lm", "gold", "exact_match") >= 0.85
    before, after = (mean(tiny, "retrieval", name, "gold_recall@1") for name in ("base", "r_ft"))
    assert after >= 1.7 * before


def test_every_gain_is_positive_in_every_seed_and_over_all(results: dict[str, list[dict]]) -> None:
    for after, before in GAINS:
        assert all(values(result, "gains", f"{after}-{before}") > 0 for result in results["tiny"])
        assert pooled_gain("tiny", after, before)["low"] > 0


def test_refreshed_candidates_and_tuned_labels_gain_more(results: dict[str, list[dict]]) -> None:
    tiny, refreshed = results["tiny"], results["tiny_refreshed"]
    assert mean(refreshed, "systems", "radit", "exact_match") >= 0.75
    for ours, papers in zip(refreshed, tiny, strict=True):
        assert values(ours, "systems", "radit", "exact_match") > values(
            papers, "systems", "radit", "exact_match"
        )
    before, after = (mean(refreshed, "retrieval", name, "gold_recall@1") for name in ("base", "r_ft"))
    assert after >= 2.2 * before


def test_the_table_is_printed(results: dict[str, list[dict]]) -> None:
    print()
    for combination, runs in results.items():
        for system in ("closed_book", "base", "lm_ft", "r_ft", "radit"):
            each = " ".join(f"{values(run, 'systems', system, 'exact_match'):.3f}" for run in runs)
            print(
                f"{combination:15} {system:12} {mean(runs, 'systems', system, 'exact_match'):.3f}  ({each})"
            )
        for retriever in ("base", "r_ft"):
            each = " ".join(f"{values(run, 'retrieval', retriever, 'gold_recall@1'):.3f}" for run in runs)
            recall = mean(runs, "retrieval", retriever, "gold_recall@1")
            print(f"{combination:15} recall@1 {retriever:5} {recall:.3f}  ({each})")
        for after, before in GAINS:
            gain = pooled_gain(combination, after, before)
            interval = f"[{gain['low']:.3f}, {gain['high']:.3f}]"
            print(f"{combination:15} {after} − {before}: {gain['value']:.3f} {interval}")
