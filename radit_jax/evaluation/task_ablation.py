"""The ablation over tasks: five systems in every task, with gains between them and averages over tasks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from radit_jax.config import EvaluateConfig
from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.readers.kilt_pages import PageOf
from radit_jax.evaluation.details import task_detail_lines
from radit_jax.evaluation.questions import LoadedTask
from radit_jax.evaluation.systems import GAINS, SYSTEMS
from radit_jax.evaluation.task_suite import TaskChunks, TaskResult, evaluate_task, retrieve_for_task
from radit_jax.lm.answering import ChunkSearch, Retrieval
from radit_jax.lm.scoring import PairScorer
from radit_jax.runtime.shards import Shards
from radit_jax.runtime.storage.fingerprints import shard_name
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.text.kilt import prediction
from radit_jax.text.statistics import Figure, average_interval, bootstrap_interval, paired_gain

QUESTIONS_PER_SHARD = 512  # of a task, of whose answers a killed run loses one shard a process
SystemResults = Mapping[str, TaskResult]  # a task's results by system
UNKNOWN: Figure = {"value": None, "low": None, "high": None}


@dataclass(frozen=True)
class TaskAblation:
    """The five systems in every task.

    Results are stored by task, language model and retriever, and before that in shards of questions, which
    processes have between them.
    """

    output: StageFolder
    tasks: Sequence[LoadedTask]
    chunks: Chunks
    searchers: Mapping[str, ChunkSearch]  # by retriever
    models: Mapping[str, PairScorer]  # by language model
    settings: EvaluateConfig
    temperature: float  # of p_R
    seed: int  # of the bootstrap
    # Names of the tasks some of whose questions LM-ft's checkpoint was chosen by.
    chose_checkpoint: frozenset[str] = frozenset()
    page_of: PageOf | None = None  # None: the corpus' ids do not name KILT's pages

    def run(self) -> dict[str, Any]:
        """Evaluate all, write `results.json` and predictions, and return facts for the manifest."""
        # 1) The answers of all systems in all tasks, which take nearly all the time.
        self._make_shards()
        by_task = {loaded.task.name: self.evaluate_systems(loaded) for loaded in self.tasks}

        # 2) Each task's predictions and figures.
        task_results = {}
        for loaded in self.tasks:
            name = loaded.task.name
            self._write_predictions(loaded, by_task[name])
            task_results[name] = self._task_results(loaded, by_task[name])

        # 3) The average over the tasks whose answers are known.
        with_answers = [loaded for loaded in self.tasks if loaded.has_answers]
        average = self._average(with_answers, by_task) if with_answers else None
        num_questions = sum(len(loaded.items) for loaded in self.tasks)
        results = {
            "fingerprint": self.output.fingerprint,
            "tasks": task_results,
            "average": average,
            "num_questions": num_questions,
        }
        self.output.write_json("results.json", results)

        # 4) The manifest says what a person asks first.
        facts = {"num_questions": num_questions}
        if average is not None:
            facts["average"] = average["systems"]["radit"]["mean"]["value"]
        counts = _prompt_counts(by_task)
        return {
            **facts,
            "shots_dropped": counts["shots_dropped"],
            "truncated": counts["truncated"],
        }

    def evaluate_systems(self, loaded: LoadedTask) -> dict[str, TaskResult]:
        """Every system's results, from the shards or from the file in which these were joined."""
        results: dict[_Pair, TaskResult] = {}
        for pair in _pairs(loaded).values():
            if pair not in results:
                results[pair] = self._result(loaded, pair)
        return {name: results[pair] for name, pair in _pairs(loaded).items()}

    def _result(self, loaded: LoadedTask, pair: "_Pair") -> TaskResult:
        file = f"{_name(loaded, pair)}.json"
        if not self.output.has(file):
            parts = [TaskResult.from_json(self.output.read_json(shard)) for shard in _parts(loaded, pair)]
            self.output.write_json(file, TaskResult.join(parts).to_json())
        return TaskResult.from_json(self.output.read_json(file))

    def _make_shards(self) -> None:
        """Evaluate the shards of all tasks that are missing.

        Systems with the same model and the same prompts are evaluated once.
        """
        # 1) The shards of what is not joined yet.
        work: dict[str, _Work] = {}
        for loaded in self.tasks:
            for pair in dict.fromkeys(_pairs(loaded).values()):
                if not self.output.has(f"{_name(loaded, pair)}.json"):
                    for shard, questions in _parts(loaded, pair).items():
                        work[shard] = _Work(loaded, pair, questions)
        sizes = {shard: len(one.loaded.items[one.questions]) for shard, one in work.items()}
        have_own = all(scorer.own for scorer in self.models.values())
        shards = Shards.find(self.output, sizes, have_own)

        # 2) All processes search together for the chunks of what is missing.
        retrieved: dict[tuple[str, str | None], TaskChunks | None] = {}
        for shard in shards.missing:
            loaded, pair, _ = work[shard]
            key = loaded.task.name, pair.retriever
            if key not in retrieved:
                retrieved[key] = self._retrieve(loaded, pair.retriever) if pair.retriever else None

        # 3) Each answers its own.
        def evaluate(shard: str) -> dict[str, Any]:
            loaded, pair, questions = work[shard]
            chunks = retrieved[loaded.task.name, pair.retriever]
            return self._evaluate(work[shard], chunks and chunks.take(questions)).to_json()

        shards.write_each(map(evaluate, shards.own), self.output.write_json)

    def _evaluate(self, work: "_Work", retrieved: TaskChunks | None) -> TaskResult:
        """The results of one language model with one retriever's chunks on some of a task's questions."""
        loaded, pair, questions = work
        return evaluate_task(
            loaded.take(questions),
            self.models[pair.lm],
            self.settings,
            f"evaluate {_name(loaded, pair)}",
            retrieved=retrieved,
            page_of=self.page_of,
        )

    def _retrieve(self, loaded: LoadedTask, retriever: str) -> TaskChunks:
        """The retriever's chunks for a task, which both language models are asked with.

        They are stored: a run that goes on after a kill does not search a large corpus again.
        """
        name = f"{loaded.task.name}/{retriever}"
        arrays, passages = f"{name}-retrieved.npz", f"{name}-shot-passages.json"
        if not self.output.has(arrays):
            found = retrieve_for_task(
                loaded,
                self.searchers[retriever],
                self.chunks,
                self.settings,
                self.temperature,
            )
            # The arrays are last: they say that both files exist.
            self.output.write_json(passages, dict(found.shot_passages))
            retrieval = found.retrieval
            self.output.write_arrays(arrays, rows=retrieval.rows, log_probs=retrieval.log_probs)

        stored = self.output.read_arrays(arrays, "rows", "log_probs")
        retrieval = Retrieval(self.chunks, **stored)
        return TaskChunks(retrieval, self.output.read_json(passages))

    def _task_results(
        self,
        loaded: LoadedTask,
        by_system: SystemResults,
    ) -> dict[str, Any]:
        """A task's entry of `results.json`."""
        # What was asked, which hidden questions have too.
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
        if not loaded.has_answers:
            return {**about, "systems": {}, "gains": {}}

        # Every question is a group by itself.
        groups = [item.id for item in loaded.items]
        values = {name: _values(result, metric) for name, result in by_system.items()}
        gains = {}
        for name, (after, before) in GAINS.items():
            gains[name] = paired_gain(
                values[after],
                values[before],
                groups,
                **self._bootstrap,
            )
        systems = {name: self._figures(loaded, result) for name, result in by_system.items()}
        return {**about, "systems": systems, "gains": gains}

    def _figures(
        self,
        loaded: LoadedTask,
        result: TaskResult,
    ) -> dict[str, Figure]:
        """The task's metric over all its questions, and KILT's metrics over those with gold pages."""
        metric = loaded.task.metric
        groups = [item.id for item in loaded.items]
        figures = {metric: bootstrap_interval(_values(result, metric), groups, **self._bootstrap)}
        if not loaded.has_pages:
            return figures

        # KILT's metrics are over the questions with gold pages, and unknown where chunks name no page.
        with_pages = [index for index, item in enumerate(loaded.items) if item.pages]
        groups = [loaded.items[index].id for index in with_pages]
        for kilt_metric in ("r_precision", f"kilt_{metric}"):
            if self.page_of is None:
                figures[kilt_metric] = dict(UNKNOWN)
            else:
                values = _values(result, kilt_metric)[with_pages]
                figures[kilt_metric] = bootstrap_interval(
                    values,
                    groups,
                    **self._bootstrap,
                )
        return figures

    def _average(
        self,
        with_answers: Sequence[LoadedTask],
        by_task: Mapping[str, SystemResults],
    ) -> dict[str, Any]:
        """The mean over tasks of each system's metric and of each gain, each task with the same weight."""
        # values[system][t] are the metric's values of the questions of task t.
        groups = []
        values: dict[str, list[Float[np.ndarray, " _"]]] = {name: [] for name in SYSTEMS}
        for loaded in with_answers:
            groups.append([item.id for item in loaded.items])
            for name, result in by_task[loaded.task.name].items():
                values[name].append(_values(result, loaded.task.metric))

        # Each task is resampled by itself; gains are taken question by question.
        systems = {}
        for name in SYSTEMS:
            systems[name] = {"mean": average_interval(values[name], groups, **self._bootstrap)}
        gains = {}
        for name, (after, before) in GAINS.items():
            differences = [a - b for a, b in zip(values[after], values[before], strict=True)]
            gains[name] = average_interval(differences, groups, is_gain=True, **self._bootstrap)
        return {"systems": systems, "gains": gains}

    @property
    def _bootstrap(self) -> dict[str, Any]:
        return {"samples": self.settings.bootstrap_samples, "seed": self.seed}

    def _write_predictions(
        self,
        loaded: LoadedTask,
        by_system: SystemResults,
    ) -> None:
        """RA-DIT's answers with the gold ones and each system's; for KILT's tasks also in KILT's form."""
        # One line a question: what was asked, RA-DIT's whole result, and the others' answers.
        task = loaded.task
        radit_results = by_system["radit"].results
        lines = []
        for index, (item, radit_result) in enumerate(zip(loaded.items, radit_results, strict=True)):
            answers = {name: result.results[index]["answer"] for name, result in by_system.items()}
            lines.append(
                {
                    "id": item.id,
                    "prompt": item.prompt,
                    "gold": list(item.answers),
                    **radit_result,
                    "systems": answers,
                }
            )
        self.output.write_jsonl(f"predictions-{task.name}.jsonl", lines)
        ids = [item.id for item in loaded.items]
        details = {name: result.details for name, result in by_system.items()}
        self.output.write_jsonl(f"details-{task.name}.jsonl", task_detail_lines(ids, details))

        # KILT's leaderboard takes the hidden questions' answers in its own form.
        is_hidden = task.is_kilt and not loaded.has_answers
        if not loaded.has_pages and not is_hidden:
            return
        kilt_lines = []
        for result in radit_results:
            pages = result.get("pages", ())
            kilt_lines.append(prediction(result["id"], result["answer"], pages))
        self.output.write_jsonl(f"kilt-{task.name}.jsonl", kilt_lines)


class _Pair(NamedTuple):
    """What the systems of a task differ in."""

    lm: str
    retriever: str | None  # None: closed book


class _Work(NamedTuple):
    """A shard's questions, and who answers them."""

    loaded: LoadedTask
    pair: _Pair
    questions: slice


def _pairs(loaded: LoadedTask) -> dict[str, _Pair]:
    """Each system's language model and retriever; in a task without queries no retriever matters."""
    pairs = {}
    for name, system in SYSTEMS.items():
        pairs[name] = _Pair(system.lm, system.retriever if loaded.retrieves else None)
    return pairs


def _name(loaded: LoadedTask, pair: _Pair) -> str:
    """What the files of these results are called."""
    return f"{loaded.task.name}/{pair.lm}-{pair.retriever or 'none'}"


def _parts(loaded: LoadedTask, pair: _Pair) -> dict[str, slice]:
    """The questions of each shard, by its file."""
    starts = range(0, len(loaded.items), QUESTIONS_PER_SHARD)
    parts = {}
    for number, start in enumerate(starts):
        shard = shard_name(f"{_name(loaded, pair)}-questions", number, len(starts))
        parts[f"{shard}.json"] = slice(start, start + QUESTIONS_PER_SHARD)
    return parts


def _values(result: TaskResult, metric: str) -> Float[np.ndarray, " Q"]:
    """The metric's value for every question of a task."""
    return np.array([example[metric] for example in result.results], np.float64)


def _prompt_counts(by_task: Mapping[str, SystemResults]) -> Counter[str]:
    """How many prompts were cut and how many shots did not fit, over all systems and tasks."""
    counts = Counter[str]()
    for by_system in by_task.values():
        for result in by_system.values():
            counts.update(result.counts)
    return counts
