"""What evaluation's files say of each question: its predictions, its details, and whether answers are right.

The corpus' own questions are in `predictions.jsonl` and `details.jsonl`, a task's in files with its name.
Runs of an earlier version have no details. Where the retrievers alone were measured there are no predictions.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from radit_jax.evaluation.systems import SYSTEMS
from radit_jax.report.run_records import SystemAnswer, answer_candidates
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.text.metrics import exact_match

Line = Mapping[str, Any]


class AskedQuestion(NamedTuple):
    """A question as the files have it."""

    task: str  # empty: one of the corpus' own
    prediction: Line
    detail: Line  # empty where nothing was kept
    scores: Mapping[str, float]  # by system, in the task's metric; empty without gold answers

    @property
    def rows(self) -> set[int]:
        """The rows of all passages that were retrieved for it."""
        by_retriever = self.detail.get("rows", {})
        return set[int]().union(*by_retriever.values()) - {-1}

    @property
    def num_bytes(self) -> int:
        """About how much the page stores of it, without passages."""
        kept = {key: value for key, value in self.prediction.items() if key != "chunks"}
        return len(json.dumps(kept)) + len(json.dumps(self.detail))

    @property
    def text(self) -> str:
        """The question; of a task, what the language model reads."""
        return self.prediction.get("question") or self.prediction["prompt"]

    def answers(self) -> dict[str, SystemAnswer]:
        """Every system's answer with its candidates."""
        answers = {}
        for name, text in self.prediction["systems"].items():
            candidates = self.detail.get("candidates", {}).get(name)
            if candidates is None and name == "radit":
                candidates = self.prediction.get("answers", ())
            is_cut = self.detail.get("cut", {}).get(name)
            score = self.scores.get(name)
            answers[name] = SystemAnswer(text, score, is_cut, answer_candidates(candidates or ()))
        return answers


def asked_questions(
    folder: StageFolder,
    results: Mapping[str, Any],
    corpus_questions: Sequence[Line],
) -> list[AskedQuestion]:
    """All questions that the evaluation in `folder` asked.

    Where the retrievers alone were measured, nobody answered, and all of `corpus_questions` were asked.
    """
    if "tasks" in results:
        asked = []
        for task, of_task in results["tasks"].items():
            asked += _of_task(folder, task, of_task)
        return asked
    if not folder.has("predictions.jsonl"):
        return _only_retrieved(folder, corpus_questions)
    asked = []
    for prediction, detail in _lines(folder, ""):
        scores = {}
        for name, text in prediction["systems"].items():
            scores[name] = exact_match(text, prediction["gold"])
        asked.append(AskedQuestion("", prediction, detail, scores))
    return asked


def _only_retrieved(
    folder: StageFolder,
    corpus_questions: Sequence[Line],
) -> list[AskedQuestion]:
    """Questions with what was retrieved for them; none where an earlier version measured the retrievers."""
    if not folder.has("details.jsonl"):
        return []
    asked = []
    details = folder.read_jsonl("details.jsonl")
    for line, detail in zip(corpus_questions, details, strict=True):
        prediction = {**line, "gold": line["answers"], "answers": [], "systems": {}}
        asked.append(AskedQuestion("", prediction, detail, {}))
    return asked


def _of_task(
    folder: StageFolder,
    task: str,
    results: Mapping[str, Any],
) -> list[AskedQuestion]:
    """The questions of a task, with the scores that each system's file keeps."""
    scores = {}
    for name, system in SYSTEMS.items():
        # A task without queries is asked without chunks.
        file = f"{task}/{system.lm}-{system.retriever}.json"
        if not folder.has(file):
            file = f"{task}/{system.lm}-none.json"
        scores[name] = [marks.get(results["metric"]) for marks in folder.read_json(file)["marks"]]
    asked = []
    for number, (prediction, detail) in enumerate(_lines(folder, f"-{task}")):
        of_question = {}
        if prediction["gold"]:
            of_question = {name: values[number] for name, values in scores.items()}
        asked.append(AskedQuestion(task, prediction, detail, of_question))
    return asked


def _lines(
    folder: StageFolder,
    suffix: str,
) -> Iterator[tuple[Line, Line]]:
    """Each question's predictions and details, in order."""
    predictions = folder.read_jsonl(f"predictions{suffix}.jsonl")
    details: Sequence[Line] = [{}] * len(predictions)
    if folder.has(f"details{suffix}.jsonl"):
        details = folder.read_jsonl(f"details{suffix}.jsonl")
    return zip(predictions, details, strict=True)


def drawn_questions(
    asked: Sequence[AskedQuestion],
    max_bytes: int,
    passage_bytes: int,
) -> list[AskedQuestion]:
    """As many questions as the page has room for, in their order: all, or a random sample.

    `passage_bytes` is a passage's size, about. Each is stored once, however many questions have it.
    """
    order = np.random.default_rng(0).permutation(len(asked))
    total = 0
    seen: set[int] = set()
    kept: list[int] = []
    for number in order.tolist():
        rows = asked[number].rows
        total += asked[number].num_bytes + passage_bytes * len(rows - seen)
        if total > max_bytes:
            break
        seen |= rows
        kept.append(number)
    return [asked[number] for number in sorted(kept)]
