"""A workdir as a run of three questions leaves it, written by hand: no model, no training."""

import json
from typing import Any

import numpy as np
from etils import epath

from radit_jax.config import OptimizerConfig, RFtConfig
from radit_jax.data.artifacts.corpus import CorpusData, write_corpus
from radit_jax.data.records import Chunk, Question
from radit_jax.runtime.storage.fingerprints import canonical
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.runtime.storage.workdir import Workdir

R_FT = RFtConfig(OptimizerConfig(steps=4, peak_lr=0.5, warmup_steps=2), tau=1.0, lm_score="sum_log_prob")
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


# ---- questions ----

CHUNKS = (
    Chunk("dray", "Dray Tower", "It was built by Hob Crane."),
    Chunk("elm", "Elm Tower", "Nobody knows who built it."),
    Chunk("fen", "Fen Tower", "The builder, Bo Marsh, also built Elm Tower."),
    Chunk("yes", "Answers", "Yes."),
)
QUESTIONS = (
    Question("q0", "Who built Dray Tower?", ("Hob Crane",), ("dray",), group="towers"),
    Question("q1", "Who built Elm Tower?", ("Bo Marsh", "Marsh"), group="towers"),
    Question("q2", "Is it a tower?", ("yes",), group="other"),
)
ROWS = {"base": [[1, 2], [1, 0], [3, 0]], "r_ft": [[0, 1], [0, 1], [0, 3]]}
WEIGHTS = {"base": [0.5, 0.5], "r_ft": [0.75, 0.25]}
# Of each question the right answer by the systems in their order: closed book, base, LM-ft, R-ft, RA-DIT.
RIGHT = [(0, 0, 0, 1, 1), (0, 1, 1, 0, 0), (1, 1, 1, 1, 1)]
PROBABILITIES = [0.9, 0.2, 0.95]  # of RA-DIT's best answers
# p_LM of the first gold answer under each chunk: untuned, by retriever.
LIKELIHOODS = {"base": [0.1, 0.4], "r_ft": [0.3, 0.1]}
SYSTEM_NAMES = ("closed_book", "base", "lm_ft", "r_ft", "radit")


def answers_of(number: int) -> dict[str, str]:
    """Every system's answer: the first gold one, or a wrong one of four words."""
    gold = QUESTIONS[number].answers[0]
    is_right = dict(zip(SYSTEM_NAMES, RIGHT[number], strict=True))
    return {name: gold if right else "nobody that we know" for name, right in is_right.items()}


def prediction(number: int) -> dict[str, Any]:
    question, answers = QUESTIONS[number], answers_of(number)
    chunks = []
    for row, weight in zip(ROWS["r_ft"][number], WEIGHTS["r_ft"], strict=True):
        chunks.append({**vars(CHUNKS[row]), "p_R": weight})
    return {
        "id": question.id,
        "group": question.group,
        "question": question.question,
        "gold": list(question.answers),
        "answers": [{"answer": answers["radit"], "probability": PROBABILITIES[number]}],
        "chunks": chunks,
        "systems": answers,
    }


def detail(number: int) -> dict[str, Any]:
    candidates = {}
    for name, text in answers_of(number).items():
        candidates[name] = [{"text": text, "probability": 0.5, "log_probs": [-0.5, -1.5]}]
    candidates["radit"][0]["probability"] = PROBABILITIES[number]
    likelihoods = {name: np.log(values).round(4).tolist() for name, values in LIKELIHOODS.items()}
    return {
        "id": QUESTIONS[number].id,
        "rows": {name: rows[number] for name, rows in ROWS.items()},
        "log_p_R": {name: np.log(weights).round(4).tolist() for name, weights in WEIGHTS.items()},
        "answer_log_probs": {"base_lm": likelihoods, "lm_ft_lm": likelihoods},
        "answer_tokens": {"base_lm": 3, "lm_ft_lm": 3},
        "candidates": candidates,
        "cut": dict.fromkeys(SYSTEM_NAMES, False) | {"radit": number == 1},
    }


def write_questions(workdir: Workdir, *, details: bool = True) -> None:
    """The corpus and what evaluation wrote of its three questions."""
    data = CorpusData(CHUNKS, {"train": [], "dev": [], "test": list(QUESTIONS)})
    write_corpus(stage_folder(workdir, "corpus"), data)
    evaluated = stage_folder(workdir, "evaluate")
    numbers = range(len(QUESTIONS))
    evaluated.write_jsonl("predictions.jsonl", map(prediction, numbers))
    if details:
        evaluated.write_jsonl("details.jsonl", map(detail, numbers))


def small_run(
    path: epath.PathLike,
    scratch: epath.PathLike | None = None,
    *,
    inputs: bool = True,
    questions: bool = False,
    details: bool = True,
) -> Workdir:
    """All stages finished, with `results.json`, and files of `questions`.

    Without `inputs` and `details` it is as an older version left it.
    """
    workdir = Workdir(path, scratch)
    workdir.claim("small")
    results = {"fingerprint": FINGERPRINTS["evaluate"], "systems": {}, "num_questions": 3}
    stage_folder(workdir, "evaluate").write_json("results.json", results)
    if questions:
        write_questions(workdir, details=details)
    for name in SETTINGS:
        finish(workdir, name, inputs=inputs)
    workdir.publish(stage_folder(workdir, "evaluate"), ("results.json",))
    return workdir
