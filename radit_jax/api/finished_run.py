"""What a finished run left: its figures, its answers, and its models."""

import os
from dataclasses import dataclass
from typing import Any

from etils import epath

from radit_jax.api.retriever import Retriever, finished_export
from radit_jax.command_line import run_stage
from radit_jax.runtime.pretrained.model_io import Model, load_model
from radit_jax.runtime.storage import bucket
from radit_jax.runtime.storage.entries import subfolders
from radit_jax.runtime.storage.files import read_json
from radit_jax.runtime.storage.manifests import parse_jsonl


@dataclass(frozen=True)
class FinishedRun:
    """A workdir, read when something is asked of it."""

    path: epath.Path

    # Every property reads its file anew: a run may still write.

    @property
    def results(self) -> dict[str, Any]:
        """`results.json` of the last evaluation: every figure with its 95 % interval."""
        return read_json(self._file("results.json"), _remedy())

    @property
    def evaluations(self) -> dict[str, dict[str, Any]]:
        """Each evaluation's results by its name, as in `results/NAME/`; other questions have other names."""
        by_name = {}
        for folder in subfolders(self.path / "results"):
            by_name[folder.name] = read_json(folder / "results.json", _remedy())
        return by_name

    @property
    def predictions(self) -> list[dict[str, Any]]:
        """What each system answered to each question of the corpus: the lines of `predictions.jsonl`."""
        # A line is one question.
        file = self._file("predictions.jsonl")
        return parse_jsonl(file.read_bytes(), str(file), remedy=_remedy())

    @property
    def settings(self) -> dict[str, Any]:
        """How the export answers: evaluation's settings, and the temperature of p_R."""
        return finished_export(self.path).read_json("answering.json")

    def retriever(self, *, tuned: bool = True) -> Retriever:
        """The retriever after R-ft, or before it."""
        return Retriever.load(self.path, tuned=tuned)

    def language_model(self) -> Model:
        """The language model after LM-ft."""
        return load_model(finished_export(self.path).verified_path("lm"))

    def _file(self, name: str) -> epath.Path:
        """A file at the workdir's top."""
        # `evaluate` puts its files there, where people look for them.
        file = self.path / name
        if not file.exists():
            raise ValueError(f"{self.path}: expected a finished run with {name}, got none. {_remedy()}")
        return file


def open_run(run: str | os.PathLike[str]) -> FinishedRun:
    """The run in the workdir `run`, on a disk or in a bucket."""
    # A slip in a path is said now, not when something is asked.
    bucket.check_path(run)
    path = epath.Path(run)
    if not path.exists():
        raise ValueError(f"{path}: expected a workdir, got no such folder. Correct the path.")
    return FinishedRun(path)


def _remedy() -> str:
    return f"Run {run_stage('evaluate')}."
