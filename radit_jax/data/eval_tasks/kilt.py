"""Readers of KILT's lines, with a function per task for prompt and query, and of FEVER's own files."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from radit_jax.data.eval_tasks.task import EvalExample, Reader, TaskFile
from radit_jax.data.readers.lines import JsonObject, demand, json_objects, one_of, quoted
from radit_jax.data.readers.questions import kilt_answers, kilt_provenance
from radit_jax.text.kilt import FEVER_LABELS
from radit_jax.text.prompts import question_prompt

AIDA_INSTRUCTION = (
    "Output the Wikipedia page title of the entity mentioned between [START_ENT] and [END_ENT] "
    "in the given text"
)


Fields = dict[str, Any]  # of an `EvalExample`: prompt, query, perhaps target
# Makes the fields of a task's line; the second argument is the line's place, for errors.
LineFields = Callable[[JsonObject, str], Fields]


# ---- KILT's files ----


def kilt_files(name: str, fields_of: LineFields) -> dict[str, TaskFile]:
    """A task's files in KILT's form: train, dev, and hidden, which has no answers."""
    read = _kilt_reader(fields_of)
    parts = {"train": "train", "dev": "dev", "hidden": "test_without_answers"}
    return {file: TaskFile(f"kilt/{name}-{part}-kilt.jsonl", read) for file, part in parts.items()}


def _kilt_reader(fields_of: LineFields) -> Reader:
    """A reader of KILT's lines, which makes a task's prompt and query by `fields_of`."""

    def read(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
        for where, line in json_objects(path):
            demand(line, {"id": "a string", "input": "a string"}, where)
            counts["read"] += 1

            # The hidden test questions have no output; any other question has to have an answer.
            answers, pages = (), ()
            if "output" in line:
                answers = _gold(line, where)
                if not answers:
                    counts["skipped_without_answer"] += 1
                    continue
                pages = kilt_provenance(line, where)

            target = answers[0] if answers else ""
            fields = {"target": target, **fields_of(line, where)}
            yield EvalExample(id=line["id"], answers=answers, pages=pages, **fields)

    return read


def _gold(line: JsonObject, where: str) -> tuple[str, ...]:
    """The distinct gold answers of a line, without the white space around some of them."""
    if "output" not in line:
        return ()
    answers = [answer.strip() for answer in kilt_answers(line, where)]
    return tuple(dict.fromkeys(answers))


# ---- prompt and query of each task ----


def as_asked(line: JsonObject, where: str) -> Fields:
    """The input is a question, and the query too: NQ, HotpotQA, ELI5."""
    return {"prompt": question_prompt(line["input"]), "query": line["input"]}


def zero_shot_re(line: JsonObject, where: str) -> Fields:
    """The first of the questions into which KILT puts the entity and the relation (`ours`)."""
    # The input itself is `entity [SEP] relation`, as T-REx's.
    meta = line.get("meta")
    questions = meta.get("template_questions") if isinstance(meta, dict) else None
    is_list = isinstance(questions, list)
    if not is_list or not questions or not isinstance(questions[0], str):
        raise ValueError(
            f"{where}: expected a list of questions in meta.template_questions, got {quoted(questions)}. "
            "Take KILT's file with them."
        )
    return {"prompt": question_prompt(questions[0]), "query": questions[0]}


def trex(line: JsonObject, where: str) -> Fields:
    """The input is an entity and a relation, `Lamp [SEP] maker`, and no question."""
    return {"prompt": f"{line['input']}\nA:", "query": line["input"]}


def aida(line: JsonObject, where: str) -> Fields:
    """The query is the mention between [START_ENT] and [END_ENT] (`ours`)."""
    # The input is a whole document; the mention alone finds the entity's page.
    text = line["input"]
    _, _, from_mention = text.partition("[START_ENT]")
    mention, end, _ = from_mention.partition("[END_ENT]")
    if not end:
        raise ValueError(
            f"{where}: expected a mention between [START_ENT] and [END_ENT] in 'input', got "
            f"{quoted(text)}. Take KILT's file."
        )
    return {"prompt": f"{text}\n{AIDA_INSTRUCTION}\nA:", "query": mention.strip()}


def wizard_of_wikipedia(line: JsonObject, where: str) -> Fields:
    """The dialogue up to the turn that is asked for; the query is the same turns without speakers."""
    # Turns alternate and the last is a question, so of an even number the first is an answer.
    turns = line["input"].split("\n")
    speakers = itertools.cycle("QA" if len(turns) % 2 else "AQ")
    lines = [f"{speaker}: {turn}\n" for speaker, turn in zip(speakers, turns, strict=False)]
    dialogue = "".join(lines)
    return {"prompt": f"{dialogue}A:", "query": " ".join(turns)}


# ---- FEVER ----

# The language model says true or false; the answers in the files are SUPPORTS and REFUTES.
_WORD_OF_LABEL = {label: word for word, label in FEVER_LABELS.items()}


def fever(line: JsonObject, where: str) -> Fields:
    """The input is a claim. A shot answers it by true or false, the gold answer is FEVER's label."""
    answers = _gold(line, where)
    fields = _claim_fields(line["input"])
    if not answers:
        return {**fields, "target": ""}
    label = answers[0]
    if label not in _WORD_OF_LABEL:
        labels = one_of(list(_WORD_OF_LABEL))
        raise ValueError(f"{where}: expected the answer {labels}, got {quoted(label)}. Take KILT's file.")
    return {**fields, "target": _WORD_OF_LABEL[label]}


def _claim_fields(claim: str) -> Fields:
    return {"prompt": f"Is this statement true? {claim}\nA:", "query": claim}


def read_fever(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    """FEVER's own files, without the claims that have not enough information."""
    for where, line in json_objects(path):
        demand(
            line,
            {"id": "a string or a number", "claim": "a string", "label": "a string"},
            where,
        )
        counts["read"] += 1
        label = line["label"]
        if label not in _WORD_OF_LABEL:
            counts["skipped_not_enough_info"] += 1
            continue
        yield EvalExample(
            str(line["id"]),
            answers=(label,),
            target=_WORD_OF_LABEL[label],
            **_claim_fields(line["claim"]),
        )
