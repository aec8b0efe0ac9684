"""evaluate: the ablation. Five systems answer the test questions, and both retrievers are judged.

The questions are the corpus' own, or those of the tasks that `evaluate.tasks` names. Every figure has a 95 %
interval from a bootstrap over groups of questions (entities, passages); a gain is a paired difference.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from radit_jax.config import EvaluateConfig, MeshConfig, ScoreConfig
from radit_jax.data.artifacts.corpus import Chunks, Corpus
from radit_jax.data.eval_tasks.registry import KILT_DEVELOPMENT
from radit_jax.data.readers.kilt_pages import PageOf, find_pages
from radit_jax.evaluation.corpus_questions import CUTOFFS, CorpusQuestionEval, SystemInputs, fitting
from radit_jax.evaluation.task_suite import (
    TOO_LONG,
    LoadedTask,
    TaskChunks,
    TaskResult,
    evaluate_task,
    load_tasks,
    retrieve_for_task,
    without_too_long,
)
from radit_jax.lm.scoring import PairScorer
from radit_jax.retrieval.search import Searcher, chunk_log_probs
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.text.kilt import prediction
from radit_jax.text.statistics import Figure, average_interval, bootstrap_interval, paired_gain

LMS = ("base_lm", "lm_ft_lm")
RETRIEVERS = ("base", "r_ft")
SYSTEMS = {  # name -> its language model and its retriever
    "closed_book": ("base_lm", None),
    "base": ("base_lm", "base"),
    "lm_ft": ("lm_ft_lm", "base"),
    "r_ft": ("base_lm", "r_ft"),
    "radit": ("lm_ft_lm", "r_ft"),
}
CONTEXTS = ("gold", "retrieved", "random", "none")
GAINS = ("lm_ft-base", "r_ft-base", "radit-lm_ft", "radit-base")
PAIRS = {name: name.split("-") for name in GAINS}


def run(
    inputs: Mapping[str, StageFolder],
    output: StageFolder,
    *,
    evaluate: EvaluateConfig,
    temperature: float,
    seed: int,
    mesh: MeshConfig,
) -> dict[str, Any]:
    """Answer, score and rank; write `results.json` and predictions."""
    # Before models are loaded: a file may be missing.
    trials = load_tasks(evaluate, seed=seed)
    page_of = find_pages(inputs["corpus"].manifest, evaluate.kilt_titles) if trials else None
    score = ScoreConfig(
        batch_size=evaluate.batch_size, sequence_length=evaluate.sequence_length, dtype=evaluate.dtype
    )
    models = {
        lm: PairScorer.load(inputs[stage].check("lm"), score, mesh)
        for lm, stage in (("base_lm", "base_lm"), ("lm_ft_lm", "lm_ft"))
    }
    base = Searcher.load(inputs, mesh)
    tuned = base.tuned(inputs, mesh)
    searchers = {"base": base, "r_ft": tuned}
    if evaluate.tasks:
        chunks = Chunks(inputs["corpus"])
        chosen_by = _chose_checkpoint(inputs, trials)
        tokenizer = models["base_lm"].model.tokenizer
        trials = [without_too_long(trial, tokenizer, evaluate) for trial in trials]
        return TaskRun(
            output, trials, chunks, searchers, evaluate, temperature, seed, models, chosen_by, page_of
        ).run()
    corpus, evaluate = Corpus(inputs["corpus"]), evaluate.answering()
    questions = corpus.questions(evaluate.split)
    kept = fitting(questions, models["base_lm"].model.tokenizer, evaluate)
    exam = CorpusQuestionEval(output, corpus, kept, evaluate, seed, models)
    found = {name: search(exam, searchers[name], temperature) for name in RETRIEVERS}
    return _run_exam(exam, found, too_long=len(questions) - len(kept))


def _chose_checkpoint(inputs: Mapping[str, StageFolder], trials: Sequence[LoadedTask]) -> frozenset[str]:
    """The tasks whose questions here are also those that LM-ft's checkpoint was chosen by.

    These are KILT's development tasks, or those that LM-ft learnt from, on their dev part.
    """
    settings = {stage: inputs[stage].manifest.get("settings", {}) for stage in ("lm_ft", "corpus")}
    data = settings["corpus"].get("data", {})
    asked = () if data.get("lm_ft_datasets") else data.get("lm_ft_benchmarks", ())
    if settings["lm_ft"].get("lm_ft", {}).get("select") == "kilt_dev":
        asked = KILT_DEVELOPMENT
    return frozenset(trial.task.name for trial in trials if trial.task.name in asked and _has_dev(trial))


def _has_dev(trial: LoadedTask) -> bool:
    """Whether dev questions are among those asked: of KILT's whole file half are."""
    splits = trial.task.splits
    return trial.split == "dev" or trial.split == "official" and splits["official"].file == splits["dev"].file


# ---- the corpus' own questions ----

Found = tuple[Int[np.ndarray, "Q D"], Float[np.ndarray, "Q K"]]


def _run_exam(exam: CorpusQuestionEval, found: Mapping[str, Found], *, too_long: int = 0) -> dict[str, Any]:
    sitting = sittings(exam, found)
    marks = {name: exam.sit(name, own, sitting.values()) for name, own in sitting.items()}
    results = {
        "fingerprint": exam.output.fingerprint,
        "systems": {name: exam.figures(marks[name], ("exact_match", "f1", "answer_nll")) for name in SYSTEMS},
        "gains": {name: exam.gain(marks[after], marks[before]) for name, (after, before) in PAIRS.items()},
        "context": {
            lm: {
                kind: exam.figures(
                    marks[f"{lm}-{kind}"],
                    ("exact_match", "answer_nll"),
                    exam.with_gold if kind == "gold" else None,
                )
                for kind in CONTEXTS
            }
            for lm in LMS
        },
        "retrieval": {name: exam.retrieval(rows) for name, (rows, _) in found.items()},
        "num_questions": len(exam.questions),
        TOO_LONG: too_long,
    }
    exam.output.write_json("results.json", results)
    lines = exam.predictions({name: marks[name] for name in SYSTEMS}, found["r_ft"])
    exam.output.write_jsonl("predictions.jsonl", lines)
    return {
        "num_questions": len(exam.questions),
        TOO_LONG: too_long,
        "exact_match": results["systems"]["radit"]["exact_match"]["value"],
    }


def search(exam: CorpusQuestionEval, searcher: Searcher, temperature: float) -> Found:
    """Each question's chunks under one of the retrievers, k or more, and log p_R of the first k."""
    k = exam.settings.chunks_per_answer
    rows, scores = searcher.search([question.question for question in exam.questions], max(k, *CUTOFFS))
    return rows, chunk_log_probs(scores[:, :k], temperature)


def sittings(exam: CorpusQuestionEval, found: Mapping[str, Found]) -> dict[str, SystemInputs]:
    """The five systems, and both language models with one chunk of each kind."""
    given = {kind: exam.given(kind, found["base"][0][:, 0]) for kind in CONTEXTS}
    weights = {name: (rows[:, : log_probs.shape[1]], log_probs) for name, (rows, log_probs) in found.items()}
    systems = {
        name: SystemInputs(lm, *(weights[retriever] if retriever else given["none"]))
        for name, (lm, retriever) in SYSTEMS.items()
    }
    contexts = {f"{lm}-{kind}": SystemInputs(lm, *given[kind]) for lm in LMS for kind in CONTEXTS}
    return systems | contexts


# ---- the tasks ----


@dataclass(frozen=True)
class TaskRun:
    """The five systems in every task."""

    output: StageFolder
    trials: Sequence[LoadedTask]
    chunks: Chunks
    searchers: Mapping[str, Searcher]
    settings: EvaluateConfig
    temperature: float
    seed: int
    models: Mapping[str, PairScorer]
    chose_checkpoint: frozenset[str] = frozenset()  # tasks: see `_chose_checkpoint`
    page_of: PageOf | None = None  # None: the corpus' ids say nothing of KILT's pages
    found: dict[tuple[str, str], TaskChunks] = field(default_factory=dict)  # by task and retriever

    def run(self) -> dict[str, Any]:
        """Sit all, write `results.json` and predictions, and say how it went."""
        sat = {trial.task.name: self.sit_all(trial) for trial in self.trials}
        for trial in self.trials:
            self._write_predictions(trial, sat[trial.task.name])
        marked = [trial for trial in self.trials if trial.is_marked]
        results = {
            "fingerprint": self.output.fingerprint,
            "tasks": {trial.task.name: self._results(trial, sat[trial.task.name]) for trial in self.trials},
            "average": self._average(marked, sat) if marked else None,
            "num_questions": sum(len(trial.items) for trial in self.trials),
        }
        self.output.write_json("results.json", results)
        counts = sum((Counter(own.counts) for systems in sat.values() for own in systems.values()), Counter())
        return {
            "num_questions": results["num_questions"],
            **({"average": results["average"]["systems"]["radit"]["mean"]["value"]} if marked else {}),
            "shots_dropped": counts["shots_dropped"],
            "truncated": counts["truncated"],
        }

    def sit_all(self, trial: LoadedTask) -> dict[str, TaskResult]:
        """Every system's marks; systems that read the same with the same model sit once."""
        asked = {
            system: (lm, retriever if trial.retrieves else None)
            for system, (lm, retriever) in SYSTEMS.items()
        }
        sat = {pair: self._sit(trial, *pair) for pair in dict.fromkeys(asked.values())}
        return {system: sat[pair] for system, pair in asked.items()}

    def _sit(self, trial: LoadedTask, lm: str, retriever: str | None) -> TaskResult:
        """The marks of one language model behind one retriever's chunks; kept once made."""
        name = f"{trial.task.name}/{lm}-{retriever or 'none'}"
        if not self.output.has(f"{name}.json"):
            sat = evaluate_task(
                trial,
                self.models[lm],
                self.settings,
                f"evaluate {name}",
                found=self._retrieve(trial, retriever) if retriever else None,
                page_of=self.page_of,
            )
            self.output.write_json(f"{name}.json", sat._asdict())
        return TaskResult(**self.output.read_json(f"{name}.json"))

    def _retrieve(self, trial: LoadedTask, retriever: str) -> TaskChunks:
        key = (trial.task.name, retriever)
        if key not in self.found:
            searcher = self.searchers[retriever]
            self.found[key] = retrieve_for_task(trial, searcher, self.chunks, self.settings, self.temperature)
        return self.found[key]

    def _results(self, trial: LoadedTask, sat: Mapping[str, TaskResult]) -> dict[str, Any]:
        metric = trial.task.metric
        about = {
            "metric": metric,
            "split": trial.split,
            "questions": trial.part,
            "chose_checkpoint": trial.task.name in self.chose_checkpoint,
            "num_questions": len(trial.items),
            "lines": dict(trial.counts),
            "prompts": {name: own.counts for name, own in sat.items()},
        }
        if not trial.is_marked:
            return {**about, "systems": {}, "gains": {}}
        groups = [item.id for item in trial.items]
        values = {name: _values(own, metric) for name, own in sat.items()}
        return {
            **about,
            "systems": {name: self._figures(trial, own) for name, own in sat.items()},
            "gains": {
                name: paired_gain(values[after], values[before], groups, **self._bootstrap)
                for name, (after, before) in PAIRS.items()
            },
        }

    def _figures(self, trial: LoadedTask, sat: TaskResult) -> dict[str, Figure]:
        """The task's metric and, over the questions with gold pages, KILT's."""
        metrics = [trial.task.metric]
        if trial.has_pages:
            metrics += ["r_precision", f"kilt_{trial.task.metric}"]
        figures = {}
        for metric in metrics:
            if metric != trial.task.metric and self.page_of is None:
                figures[metric] = {"value": None, "low": None, "high": None}
                continue
            counted = [n for n, item in enumerate(trial.items) if metric == trial.task.metric or item.pages]
            groups = [trial.items[n].id for n in counted]
            figures[metric] = bootstrap_interval(_values(sat, metric)[counted], groups, **self._bootstrap)
        return figures

    def _average(
        self, trials: Sequence[LoadedTask], sat: Mapping[str, Mapping[str, TaskResult]]
    ) -> dict[str, Any]:
        """The mean over tasks of each system's metric, each task weighing the same."""
        groups = [[item.id for item in trial.items] for trial in trials]
        values = {
            system: [_values(sat[trial.task.name][system], trial.task.metric) for trial in trials]
            for system in SYSTEMS
        }
        gains = {
            name: [a - b for a, b in zip(values[after], values[before], strict=True)]
            for name, (after, before) in PAIRS.items()
        }
        figures, gained = (
            {name: average_interval(own, groups, **self._bootstrap) for name, own in each.items()}
            for each in (values, gains)
        )
        return {"systems": {name: {"mean": figure} for name, figure in figures.items()}, "gains": gained}

    @property
    def _bootstrap(self) -> dict[str, int]:
        return {"samples": self.settings.bootstrap_samples, "seed": self.seed}

    def _write_predictions(self, trial: LoadedTask, sat: Mapping[str, TaskResult]) -> None:
        """RA-DIT's answers with the gold ones, each system's beside; of KILT's tasks also in its form."""
        marks = sat["radit"].marks
        lines = [
            {
                "id": item.id,
                "prompt": item.prompt,
                "gold": list(item.answers),
                **marks[n],
                "systems": {system: own.marks[n]["answer"] for system, own in sat.items()},
            }
            for n, item in enumerate(trial.items)
        ]
        self.output.write_jsonl(f"predictions-{trial.task.name}.jsonl", lines)
        if trial.has_pages or trial.task.is_kilt and not trial.is_marked:
            kilt = (prediction(mark["id"], mark["answer"], mark.get("pages", ())) for mark in marks)
            self.output.write_jsonl(f"kilt-{trial.task.name}.jsonl", kilt)


def _values(sat: TaskResult, metric: str) -> Float[np.ndarray, " Q"]:
    return np.array([mark[metric] for mark in sat.marks], np.float64)
