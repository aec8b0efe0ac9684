"""Readers of KILT's lines, a function per task for prompt and query, and of FEVER's own files."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from radit_jax.data.eval_tasks.task import EvalExample, Reader, TaskFile
from radit_jax.data.readers.lines import (
    demand,
    json_objects,
    one_of,
    quoted,
)
from radit_jax.data.readers.questions import kilt_answers, kilt_provenance
from radit_jax.text.kilt import FEVER_LABELS
from radit_jax.text.prompts import question_prompt

AIDA_INSTRUCTION = (
    "Output the Wikipedia page title of the entity mentioned between [START_ENT] and [END_ENT] "
    "in the given text"
)


# ---- KILT ----


def _kilt_reader(make: Callable[[Mapping[str, Any], str], Mapping[str, Any]]) -> Reader:
    """A reader of KILT's lines; `make` gives prompt, query and what else the task's items have."""

    def read(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
        for where, line in json_objects(path):
            demand(line, {"id": "a string", "input": "a string"}, where)
            counts["read"] += 1
            answers = _gold(line, where)
            if "output" in line and not answers:
                counts["skipped_without_answer"] += 1
                continue
            pages = kilt_provenance(line, where) if "output" in line else ()
            made = {"target": answers[0] if answers else "", **make(line, where)}
            yield EvalExample(id=line["id"], answers=answers, pages=pages, **made)

    return read


def _gold(line: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The distinct gold answers of a line, without the white space around some of them."""
    found = kilt_answers(line, where) if "output" in line else ()
    return tuple(dict.fromkeys(answer.strip() for answer in found))


def as_asked(line: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {"prompt": question_prompt(line["input"]), "query": line["input"]}


def zero_shot_re(line: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The first of the questions into which KILT puts the entity and the relation (`ours`)."""
    meta = line.get("meta")
    questions = meta.get("template_questions") if isinstance(meta, dict) else None
    if not isinstance(questions, list) or not questions or not isinstance(questions[0], str):
        raise ValueError(
            f"{where}: expected a list of questions in meta.template_questions, got {quoted(questions)}. "
            "Take KILT's file with them."
        )
    return {"prompt": question_prompt(questions[0]), "query": questions[0]}


def trex(line: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {"prompt": f"{line['input']}\nA:", "query": line["input"]}


def aida(line: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The query is the mention between the marks (`ours`)."""
    mention, end, _ = line["input"].partition("[START_ENT]")[2].partition("[END_ENT]")
    if not end:
        raise ValueError(
            f"{where}: expected a mention between [START_ENT] and [END_ENT] in 'input', got "
            f"{quoted(line['input'])}. Take KILT's file."
        )
    return {"prompt": f"{line['input']}\n{AIDA_INSTRUCTION}\nA:", "query": mention.strip()}


def wizard_of_wikipedia(line: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Turns alternate and the last is the one to be answered, so the first is an answer if they are even."""
    turns = line["input"].split("\n")
    speakers = itertools.cycle("QA" if len(turns) % 2 else "AQ")
    dialogue = [f"{speaker}: {turn}\n" for speaker, turn in zip(speakers, turns, strict=False)]
    return {"prompt": "".join(dialogue) + "A:", "query": " ".join(turns)}


_SPOKEN = {label: word for word, label in FEVER_LABELS.items()}


def fever(line: Mapping[str, Any], where: str) -> dict[str, Any]:
    answers = _gold(line, where)
    if answers and answers[0] not in _SPOKEN:
        raise ValueError(
            f"{where}: the answer {answers[0]!r} came, needed is {one_of(list(_SPOKEN))}; correct it"
        )
    return {**_claim(line["input"]), "target": _SPOKEN[answers[0]] if answers else ""}


def _claim(claim: str) -> dict[str, Any]:
    return {"prompt": f"Is this statement true? {claim}\nA:", "query": claim}


def kilt_files(name: str, make: Callable[[Mapping[str, Any], str], Mapping[str, Any]]) -> dict[str, TaskFile]:
    files = {"train": "train", "dev": "dev", "hidden": "test_without_answers"}
    return {
        file: TaskFile(f"kilt/{name}-{part}-kilt.jsonl", _kilt_reader(make)) for file, part in files.items()
    }


def read_fever(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    for where, line in json_objects(path):
        demand(line, {"id": "a string or a number", "claim": "a string", "label": "a string"}, where)
        counts["read"] += 1
        if line["label"] not in _SPOKEN:
            counts["skipped_not_enough_info"] += 1
            continue
        claim = _claim(line["claim"])
        yield EvalExample(str(line["id"]), **claim, answers=(line["label"],), target=_SPOKEN[line["label"]])
