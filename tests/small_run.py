"""A workdir as a run of two questions leaves it, written by hand: no model, no training."""

import json
import pathlib
from typing import Any

from radit_jax.config import OptimizerConfig, RFtConfig
from radit_jax.runtime.storage.fingerprints import canonical
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.runtime.storage.workdir import Workdir

R_FT = RFtConfig(OptimizerConfig(steps=4, peak_lr=0.5, warmup_steps=2), tau=1.0, lm_score="log_prob")
SETTINGS: dict[str, dict[str, Any]] = {
    "corpus": {"data": {"class": "Folder", "folder": "mine"}, "seed": 0},
    "base/lm": {"lm": {"checkpoint": "hub:lab/small"}, "seed": 0},
    "base/retriever": {"retriever": {"checkpoint": ""}, "seed": 0},
    "retrieve/lm_ft": {"chunks_per_example": 3, "seed": 0},
    "retrieve/r_ft": {"num_chunks": 2, "seed": 0},
    "lm_ft": {"lm_ft": {"optimizer": canonical(R_FT.optimizer)}, "seed": 0},
    "score": {"score": {"class": "ScoreConfig", "language_model": "base"}},
    "r_ft": {"r_ft": canonical(R_FT), "temperature": 1, "seed": 0},
    "evaluate": {"evaluate": {"split": "test", "chunks_per_answer": 2, "tasks": []}, "seed": 0},
}
FINGERPRINTS = {name: f"{number:012x}" for number, name in enumerate(SETTINGS, 1)}
READ = {"evaluate": ("corpus", "base/lm", "lm_ft", "r_ft", "base/retriever"), "lm_ft": ("retrieve/lm_ft",)}
ORIGIN = {"role": "language model", "name": "lab/small", "licence": "mit", "source": "README.md"}
FACTS: dict[str, dict[str, Any]] = {
    "base/lm": {"parameters": 12, "origin": ORIGIN},
    "lm_ft": {"truncated_chunks": 3, "steps": 4},
    "r_ft": {"signal": [{"effective_chunks": 1.5, "flat_targets": 0.25}], "best_step": 2},
}


def stage_folder(workdir: Workdir, name: str, fingerprint: str = "") -> StageFolder:
    return workdir.folder(name.partition("/")[0], fingerprint or FINGERPRINTS[name])


def finish(workdir: Workdir, name: str, fingerprint: str = "", *, inputs: bool = True, **facts: Any) -> None:
    read = {other: FINGERPRINTS[other] for other in READ.get(name, ())}
    record = {"inputs": read, "seconds": 2.5, "device": "1 × cpu"} if inputs else {}
    folder = stage_folder(workdir, name, fingerprint)
    folder.finish(settings=SETTINGS[name], **record, **FACTS.get(name, {}), **facts)


def write_metrics(folder: StageFolder, lines: list[dict[str, Any]], torn: str = "") -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines) + torn
    (folder.path / "metrics.jsonl").write_text(text)


def small_run(path: pathlib.Path, *, inputs: bool = True) -> Workdir:
    """All stages finished, with `results.json`; without `inputs` as an older version left them."""
    workdir = Workdir(path)
    path.mkdir(exist_ok=True)
    (path / "workdir.json").write_text('{"experiment": "small"}\n')
    results = {"fingerprint": FINGERPRINTS["evaluate"], "systems": {}, "num_questions": 2}
    stage_folder(workdir, "evaluate").write_json("results.json", results)
    for name in SETTINGS:
        finish(workdir, name, inputs=inputs)
    workdir.publish(stage_folder(workdir, "evaluate"), ("results.json",))
    return workdir
