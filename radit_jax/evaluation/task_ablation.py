"""The ablation over tasks: five systems in every task, with gains between them and averages over tasks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from radit_jax.config import EvaluateConfig
from radit_jax.data.artifacts.corpus import Chunks
from radit_jax.data.readers.kilt_pages import PageOf
from radit_jax.evaluation.systems import GAINS, SYSTEMS
from radit_jax.evaluation.task_suite import (
    LoadedTask,
    TaskChunks,
    TaskResult,
    evaluate_task,
    retrieve_for_task,
)
from radit_jax.lm.answering import Retriever
from radit_jax.lm.scoring import PairScorer
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.text.kilt import prediction
from radit_jax.text.statistics import Figure, average_interval, bootstrap_interval, paired_gain

SystemResults = Mapping[str, TaskResult]  # a task's results by system
UNKNOWN: Figure = {"value": None, "low": None, "high": None}


@dataclass(frozen=True)
class TaskAblation:
    """The five systems in every task; each task under each language model and retriever is kept once made."""

    output: StageFolder
    tasks: Sequence[LoadedTask]
    chunks: Chunks
    searchers: Mapping[str, Retriever]  # by retriever
    models: Mapping[str, PairScorer]  # by language model
    settings: EvaluateConfig
    temperature: float  # of p_R
    seed: int  # of the bootstrap
    chose_checkpoint: frozenset[str] = (
        frozenset()
    )  # tasks some of whose questions LM-ft's checkpoint was chosen by
    page_of: PageOf | None = None  # None: the corpus' ids do not name KILT's pages
    retrieved: dict[tuple[str, str], TaskChunks] = field(default_factory=dict)  # by task and retriever

    def run(self) -> dict[str, Any]:
        """Evaluate all, write `results.json` and predictions, and return facts for the manifest."""
        by_task = {loaded.task.name: self.evaluate_systems(loaded) for loaded in self.tasks}
        for loaded in self.tasks:
            self._write_predictions(loaded, by_task[loaded.task.name])
        marked = [loaded for loaded in self.tasks if loaded.is_marked]
        task_results = {}
        for loaded in self.tasks:
            task_results[loaded.task.name] = self._task_results(loaded, by_task[loaded.task.name])
        results = {
            "fingerprint": self.output.fingerprint,
            "tasks": task_results,
            "average": self._average(marked, by_task) if marked else None,
            "num_questions": sum(len(loaded.items) for loaded in self.tasks),
        }
        self.output.write_json("results.json", results)

        counts = Counter[str]()
        for systems in by_task.values():
            for result in systems.values():
                counts.update(result.counts)
        facts = {"num_questions": results["num_questions"]}
        if marked:
            facts["average"] = results["average"]["systems"]["radit"]["mean"]["value"]
        return {
            **facts,
            "shots_dropped": counts["shots_dropped"],
            "truncated": counts["truncated"],
        }

    def evaluate_systems(self, loaded: LoadedTask) -> dict[str, TaskResult]:
        """Every system's results; systems with the same model and the same prompts are evaluated once."""
        made_of: dict[str, tuple[str, str | None]] = {}
        for name, system in SYSTEMS.items():
            made_of[name] = (system.lm, system.retriever if loaded.retrieves else None)
        results = {pair: self._evaluate(loaded, *pair) for pair in dict.fromkeys(made_of.values())}
        return {name: results[pair] for name, pair in made_of.items()}

    def _evaluate(self, loaded: LoadedTask, lm: str, retriever: str | None) -> TaskResult:
        """The results of one language model with one retriever's chunks; kept once made."""
        name = f"{loaded.task.name}/{lm}-{retriever or 'none'}"
        if not self.output.has(f"{name}.json"):
            result = evaluate_task(
                loaded,
                self.models[lm],
                self.settings,
                f"evaluate {name}",
                retrieved=self._retrieve(loaded, retriever) if retriever else None,
                page_of=self.page_of,
            )
            self.output.write_json(f"{name}.json", result._asdict())
        return TaskResult(**self.output.read_json(f"{name}.json"))

    def _retrieve(self, loaded: LoadedTask, retriever: str) -> TaskChunks:
        key = (loaded.task.name, retriever)
        if key not in self.retrieved:
            self.retrieved[key] = retrieve_for_task(
                loaded, self.searchers[retriever], self.chunks, self.settings, self.temperature
            )
        return self.retrieved[key]

    def _task_results(self, loaded: LoadedTask, by_system: SystemResults) -> dict[str, Any]:
        """A task's entry of `results.json`."""
        metric = loaded.task.metric
        about = {
            "metric": metric,
            "split": loaded.split,
            "questions": loaded.part,
            "chose_checkpoint": loaded.task.name in self.chose_checkpoint,
            "num_questions": len(loaded.items),
            "lines": dict(loaded.counts),
            "prompts": {name: result.counts for name, result in by_system.items()},
        }
        if not loaded.is_marked:
            return {**about, "systems": {}, "gains": {}}
        groups = [item.id for item in loaded.items]
        values = {name: _values(result, metric) for name, result in by_system.items()}
        gains = {}
        for name, (after, before) in GAINS.items():
            gains[name] = paired_gain(values[after], values[before], groups, **self._bootstrap)
        systems = {name: self._figures(loaded, result) for name, result in by_system.items()}
        return {**about, "systems": systems, "gains": gains}

    def _figures(self, loaded: LoadedTask, result: TaskResult) -> dict[str, Figure]:
        """The task's metric over all its questions, and KILT's metrics over those with gold pages."""
        metric = loaded.task.metric
        groups = [item.id for item in loaded.items]
        figures = {metric: bootstrap_interval(_values(result, metric), groups, **self._bootstrap)}
        if not loaded.has_pages:
            return figures
        with_pages = [number for number, item in enumerate(loaded.items) if item.pages]
        groups = [loaded.items[number].id for number in with_pages]
        for kilt_metric in ("r_precision", f"kilt_{metric}"):
            if self.page_of is None:
                figures[kilt_metric] = dict(UNKNOWN)
            else:
                values = _values(result, kilt_metric)[with_pages]
                figures[kilt_metric] = bootstrap_interval(values, groups, **self._bootstrap)
        return figures

    def _average(self, marked: Sequence[LoadedTask], by_task: Mapping[str, SystemResults]) -> dict[str, Any]:
        """The mean over tasks of each system's metric and of each gain, each task with the same weight."""
        groups = []
        values: dict[str, list[Float[np.ndarray, " _"]]] = {name: [] for name in SYSTEMS}
        for loaded in marked:
            groups.append([item.id for item in loaded.items])
            for name, result in by_task[loaded.task.name].items():
                values[name].append(_values(result, loaded.task.metric))

        systems = {}
        for name in SYSTEMS:
            systems[name] = {"mean": average_interval(values[name], groups, **self._bootstrap)}
        gains = {}
        for name, (after, before) in GAINS.items():
            differences = [a - b for a, b in zip(values[after], values[before], strict=True)]
            gains[name] = average_interval(differences, groups, **self._bootstrap)
        return {"systems": systems, "gains": gains}

    @property
    def _bootstrap(self) -> dict[str, int]:
        return {"samples": self.settings.bootstrap_samples, "seed": self.seed}

    def _write_predictions(self, loaded: LoadedTask, by_system: SystemResults) -> None:
        """RA-DIT's answers with the gold ones and each system's; for KILT's tasks also in KILT's form."""
        marks = by_system["radit"].marks
        lines = []
        for number, item in enumerate(loaded.items):
            answers = {name: result.marks[number]["answer"] for name, result in by_system.items()}
            lines.append(
                {
                    "id": item.id,
                    "prompt": item.prompt,
                    "gold": list(item.answers),
                    **marks[number],
                    "systems": answers,
                }
            )
        self.output.write_jsonl(f"predictions-{loaded.task.name}.jsonl", lines)
        if loaded.has_pages or loaded.task.is_kilt and not loaded.is_marked:
            kilt = (prediction(mark["id"], mark["answer"], mark.get("pages", ())) for mark in marks)
            self.output.write_jsonl(f"kilt-{loaded.task.name}.jsonl", kilt)


def _values(result: TaskResult, metric: str) -> Float[np.ndarray, " Q"]:
    return np.array([mark[metric] for mark in result.marks], np.float64)
