"""Questions with their answers in the forms that people have them, read without conversion.

    {"id": "q1", "question": "Who …?", "answers": ["Jane Austen"], "positive_passage_ids": ["p7"]}    ours
    {"question", "answers"}   {"question", "answer"}   {"query", "response"}
    {"id", "question", "golden_answers"}                                                          FlashRAG
    {"question", "answers", "positive_ctxs": [{"passage_id", …}], …}                                   DPR
    {"id", "input", "output": [{"answer", "provenance": [{"wikipedia_id", …}]}]}                      KILT
    queries.jsonl and qrels/train.tsv, dev.tsv, test.tsv                                              BEIR
    question <tab> ['answer', 'another']                                                  DPR's tables

The first four forms, and DPR's and KILT's, are told apart by the fields of each object; the objects stand in
lines, or in one JSON list. An answer may be a string or a list of strings. BEIR has no field for answers;
where its metadata have one (`answer`, `answers`), that is read.
"""

import ast
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from radit_jax.data.lines import checked, demand, json_list, json_objects, one_of, table_rows
from radit_jax.data.records import Question


class Asked(NamedTuple):
    """A question, possibly without answers, with the ids of the gold passages that its line names."""

    question: Question
    passages: tuple[str, ...]
    where: str


Reader = Callable[[epath.Path], Iterator[Asked]]


class _Form(NamedTuple):
    """The fields of a JSON object that say which form it has, and what is read from them."""

    question: str
    answers: str
    passages: Callable[[Mapping[str, Any], str], tuple[str, ...]]


def read_questions(path: epath.Path, format: str = "auto") -> Iterator[Asked]:
    """The questions of a file in their order; those without an id are named after file and place.

    `format` is a name in `FORMATS`, or is read off the file's name. Blank answers are left out.
    """
    name = questions_format(path) if format == "auto" else format
    if name not in FORMATS:
        raise ValueError(
            f"{path}: no format {name!r}; needed is {one_of(list(FORMATS))}; correct data.questions_format"
        )
    return FORMATS[name](path)


def questions_format(path: epath.Path) -> str:
    """The name in `FORMATS` that a file's name calls for."""
    if path.suffix == ".tsv" and path.parent.name == "qrels":
        return "beir"
    if path.suffix in _SUFFIXES:
        return _SUFFIXES[path.suffix]
    raise ValueError(
        f"{path}: its name says no format, needed is one that ends in {one_of(list(_SUFFIXES))}; "
        f"rename it or give its format by --set data.questions_format={one_of(list(FORMATS))}"
    )


# ---- JSON ----


def _read_json(path: epath.Path) -> Iterator[Asked]:
    for number, (where, line) in enumerate(_objects(path), start=1):
        form = _form(line, where)
        identifier = line.get("id", line.get("_id", f"{path.name}:{number}"))
        if not isinstance(identifier, str | int):
            raise ValueError(f"{where}: field 'id' is {identifier!r}, needed is a string; correct the line")
        question = checked(line, form.question, "a string", where)
        answers = _answers(line, form.answers, where)
        yield Asked(Question(str(identifier), question, answers), form.passages(line, where), where)


def _objects(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of JSON lines, or of one list over the whole file."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    return json_list(path) if start.startswith(b"[") and path.suffix == ".json" else json_objects(path)


def _form(line: Mapping[str, Any], where: str) -> _Form:
    for form in _FORMS:
        if form.question in line and form.answers in line:
            return form
    likely = next((form for form in _FORMS if form.question in line), _FORMS[0])
    missing = next(name for name in likely[:2] if name not in line)
    forms = one_of([f"{form.question} with {form.answers}" for form in _FORMS])
    raise ValueError(f"{where}: no field {missing!r}; needed are {forms}; add it to the line")


def _answers(line: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    value = line[name]
    if name == "output":  # KILT's
        return kilt_answers(line, where)
    items = [value] if isinstance(value, str) and name in ("answer", "response") else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError(
            f"{where}: field {name!r} is {value!r}, needed is a list of strings; correct the line"
        )
    return tuple(answer for answer in items if answer.strip())


# ---- gold passages ----


def _our_passages(line: Mapping[str, Any], where: str) -> tuple[str, ...]:
    if line.get("positive_passage_ids") is not None:
        return tuple(checked(line, "positive_passage_ids", "a list of strings", where))
    if line.get("positive_passage_id") is not None:
        return (checked(line, "positive_passage_id", "a string", where),)
    return _dpr_passages(line, where)


def _dpr_passages(line: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The ids in DPR's `positive_ctxs`; a context without an id names no passage."""
    contexts = line.get("positive_ctxs") or []
    if not isinstance(contexts, list) or not all(isinstance(context, dict) for context in contexts):
        raise ValueError(
            f"{where}: field 'positive_ctxs' is {str(contexts)[:40]!r}, needed is a list of objects; "
            "correct the line"
        )
    ids = (context.get("passage_id", context.get("psg_id", context.get("id"))) for context in contexts)
    return tuple(dict.fromkeys(str(i) for i in ids if i is not None))


def _no_passages(line: Mapping[str, Any], where: str) -> tuple[str, ...]:
    return ()


def kilt_answers(line: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The distinct answers of a KILT line; an output may have provenance only."""
    answers = [output["answer"] for output in _kilt_outputs(line, where) if "answer" in output]
    if not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"{where}: an 'answer' in 'output' is no string, needed is one; correct the line")
    return tuple(dict.fromkeys(answer for answer in answers if answer.strip()))


def kilt_provenance(line: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], ...]:
    """The ids of the Wikipedia pages of each output that names any, each page once."""
    sets = []
    for output in _kilt_outputs(line, where):
        places = output.get("provenance") or []
        if any("wikipedia_id" not in place for place in places):
            raise ValueError(
                f"{where}: a 'provenance' without 'wikipedia_id', needed is one; correct the line"
            )
        sets.append(tuple(dict.fromkeys(str(place["wikipedia_id"]).strip() for place in places)))
    return tuple(pages for pages in sets if pages)


def _kilt_outputs(line: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    outputs = line["output"]
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise ValueError(
            f"{where}: field 'output' is {str(outputs)[:40]!r}, needed is a list of objects; correct the line"
        )
    return outputs


def _kilt_passages(line: Mapping[str, Any], where: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(page for pages in kilt_provenance(line, where) for page in pages))


# ---- tables ----


def _read_beir(path: epath.Path) -> Iterator[Asked]:
    """The queries that a file in `qrels` judges, with the passages that it finds relevant."""
    relevant: dict[str, list[str]] = {}
    for number, (where, row) in enumerate(table_rows(path, delimiter="\t", num_columns=3)):
        query, passage, grade = row
        if number == 0 and not grade.strip().isdigit():
            continue  # the head
        if not grade.strip().lstrip("-").isdigit():
            raise ValueError(f"{where}: the grade {grade!r} came, needed is a whole number; correct the line")
        if int(grade) > 0:
            relevant.setdefault(query, []).append(passage)
    for where, line in json_objects(path.parent.parent / "queries.jsonl"):
        demand(line, {"_id": "a string", "text": "a string"}, where)
        if line["_id"] in relevant:
            question = Question(line["_id"], line["text"], _beir_answers(line, where))
            yield Asked(question, tuple(relevant[line["_id"]]), where)


def _beir_answers(line: Mapping[str, Any], where: str) -> tuple[str, ...]:
    metadata = line.get("metadata") or {}
    name = next((name for name in ("answers", "answer") if name in metadata), None)
    return _answers(metadata, name, where) if name else ()


def _read_table(path: epath.Path) -> Iterator[Asked]:
    """DPR's tables of questions: the second column is a Python list of strings."""
    for number, (where, row) in enumerate(table_rows(path, delimiter="\t", num_columns=2), start=1):
        question, shown = row
        try:
            answers = ast.literal_eval(shown)
        except (ValueError, SyntaxError):
            answers = shown
        answers = _answers({"answers": answers}, "answers", where)
        yield Asked(Question(f"{path.name}:{number}", question, answers), (), where)


_FORMS = (
    _Form("question", "answers", _our_passages),
    _Form("question", "golden_answers", _no_passages),
    _Form("question", "answer", _no_passages),
    _Form("query", "response", _no_passages),
    _Form("input", "output", _kilt_passages),
)
FORMATS: dict[str, Reader] = {"json": _read_json, "beir": _read_beir, "table": _read_table}
_SUFFIXES = {".jsonl": "json", ".json": "json", ".tsv": "table", ".csv": "table", ".txt": "table"}
