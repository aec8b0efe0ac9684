"""Questions with their answers in the forms that people have them, read without conversion.

    {"id": "q1", "question": "Who …?", "answers": ["Jane Austen"], "positive_passage_ids": ["p7"]}    ours
    {"question", "answers"}   {"question", "answer"}   {"query", "response"}
    {"id", "question", "golden_answers"}                                                          FlashRAG
    {"question", "answers", "positive_ctxs": [{"passage_id", …}], …}                                   DPR
    {"id", "input", "output": [{"answer", "provenance": [{"wikipedia_id", …}]}]}                      KILT
    queries.jsonl and qrels/train.tsv, dev.tsv, test.tsv                                              BEIR
    question <tab> ['answer', 'another']                                                  DPR's tables
    question                                                                              a line each
    question,answer        in CSV with a head, or Parquet: the names of the first forms' fields; columns of
                           CSV may be parted by a semicolon, a tab or a bar too

The first four forms, and DPR's and KILT's, are told apart by the fields of each object; the objects stand in
lines, or in one JSON list. Any file may be compressed. An id is a string or a whole number, and a string from
here on. An answer may be a string or a list of strings. BEIR has no field for answers; where its metadata
have one (`answer`, `answers`), that is read.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from etils import epath

from radit_jax.data.readers.columns import column_names, csv_delimiter, csv_objects, parquet_objects
from radit_jax.data.readers.documents import packed_or_plain
from radit_jax.data.readers.lines import (
    JsonObject,
    checked,
    demand,
    identifier,
    json_objects,
    lacking,
    one_of,
    plain_name,
    quoted,
)
from radit_jax.data.readers.string_lists import list_of_strings
from radit_jax.data.readers.tables import Quoting, table_rows
from radit_jax.data.records import Question

_GRADE = re.compile(r"-?[0-9]+(\.[0-9]*)?")

Texts = tuple[str, ...]  # distinct answers, or ids of passages


class Asked(NamedTuple):
    """A question, possibly without answers, with the ids of the gold passages that its line names."""

    question: Question
    passages: Texts  # ids of passages, not of their chunks
    where: str  # file and line, for errors


Reader = Callable[[epath.Path, Quoting, Counter[str]], Iterator[Asked]]


class _Form(NamedTuple):
    """The fields of a JSON object that say which form it has, and what is read from them."""

    question: str  # the field with the question
    answers: str  # the field with the answers
    passages: Callable[[JsonObject, str], Texts]


def read_questions(
    path: epath.Path,
    format: str = "auto",
    quoting: Quoting = "auto",
    counts: Counter[str] | None = None,
) -> Iterator[Asked]:
    """The questions of a file in their order; those without an id are named after file and place.

    `format` is a name in `FORMATS`, or is read off the file's name. Blank answers are left out. `counts` gets
    how many queries were judged that BEIR's list of them lacks.
    """
    name = questions_format(path) if format == "auto" else format
    if name not in FORMATS:
        raise ValueError(
            f"data.questions_format: expected {one_of(list(FORMATS))}, got {name!r}. Name that of {path}."
        )
    return FORMATS[name](path, quoting, Counter() if counts is None else counts)


def read_asked(path: epath.Path) -> Iterator[tuple[JsonObject, str]]:
    """(what stands in the file, the question) of a file of questions that need no answers.

    JSON objects come as they are, with the question in a field of our, DPR's, KILT's or another known form.
    Of a table's rows only the question is kept, of BEIR's queries the id too. A file whose name says nothing
    is read as JSON.
    """
    suffix = epath.Path(plain_name(path)).suffix
    name = questions_format(path) if suffix in _SUFFIXES else "json"
    if name == "json":
        for where, line in json_objects(path):
            yield line, checked(line, _question_field(line, where), "a string", where)
        return
    # A table may have a head without answers, or none.
    if name == "table":
        read = _read_head_and_questions if _names_questions(path) else _read_rows
    else:
        read = FORMATS[name]
    for asked in read(path, "auto", Counter()):
        fields = {"question": asked.question.question}
        if name == "beir":  # a table's rows have no ids of their own
            fields = {"id": asked.question.id, **fields}
        yield fields, asked.question.question


def _question_field(line: JsonObject, where: str) -> str:
    """The name of the field that holds the question, in one of the known forms."""
    names = list(dict.fromkeys(form.question for form in _FORMS))
    for name in names:
        if name in line:
            return name
    raise ValueError(f"{where}: expected a field {one_of(names)}, got none. Add the question to the line.")


def questions_format(path: epath.Path) -> str:
    """The name in `FORMATS` that a file's name calls for."""
    suffix = epath.Path(plain_name(path)).suffix
    if suffix == ".tsv" and path.parent.name == "qrels":
        return "beir"
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    raise ValueError(
        f"{path}: expected a name that ends in {one_of(list(_SUFFIXES))}, got another. Rename it, or give "
        f"its format by --set data.questions_format={one_of(list(FORMATS))}."
    )


def question_files(path: epath.Path, format: str = "auto") -> list[epath.Path]:
    """The files that questions are read from: `path`, and the queries that judgements in `path` speak of."""
    name = questions_format(path) if format == "auto" else format
    if name == "beir":
        return [path, _queries(path)]
    return [path]


# ---- JSON ----


def _read_json(path: epath.Path, quoting: Quoting, counts: Counter[str]) -> Iterator[Asked]:
    yield from _asked_objects(path, json_objects(path))


def _asked_objects(path: epath.Path, objects: Iterable[tuple[str, JsonObject]]) -> Iterator[Asked]:
    file_name = plain_name(path)
    for number, (where, line) in enumerate(objects, start=1):
        # What the line's fields say of its form decides what is read.
        form = _form(line, where)
        question_id = _question_id(line, where) or f"{file_name}:{number}"
        text = checked(line, form.question, "a string", where)
        answers = _answers(line, form.answers, where)
        question = Question(question_id, text, answers)
        yield Asked(question, form.passages(line, where), where)


def _question_id(line: JsonObject, where: str) -> str:
    """The line's id, or "" where it has none."""
    for name in ("id", "_id"):
        if name in line:
            return identifier(line, name, where)
    return ""


def _form(line: JsonObject, where: str) -> _Form:
    """The first form whose two fields the line has."""
    for form in _FORMS:
        if form.question in line and form.answers in line:
            return form
    # The form that was probably meant has a question in the line, and lacks answers.
    with_question = [form for form in _FORMS if form.question in line]
    likely = with_question[0] if with_question else _FORMS[0]
    missing = likely.answers if likely.question in line else likely.question
    forms = one_of([f"{form.question} with {form.answers}" for form in _FORMS])
    raise ValueError(f"{where}: expected {forms}, got {lacking(line, missing)}. Add it to the line.")


def _answers(line: JsonObject, name: str, where: str) -> Texts:
    """The answers in the field `name` that are not blank."""
    value = line[name]
    if name == "output":  # KILT's
        return kilt_answers(line, where)
    if isinstance(value, str) and name in ("answer", "response"):
        answers = [value]
    else:
        answers = checked(line, name, "a list of strings", where)
    return tuple(answer for answer in answers if answer.strip())


# ---- gold passages ----


def _our_passages(line: JsonObject, where: str) -> Texts:
    """The ids in our own fields, or else in DPR's."""
    if line.get("positive_passage_ids") is not None:
        return _distinct(checked(line, "positive_passage_ids", "a list of ids", where))
    # Or one passage, in a field of its own.
    if line.get("positive_passage_id") is not None:
        return (identifier(line, "positive_passage_id", where),)
    return _dpr_passages(line, where)


def _dpr_passages(line: JsonObject, where: str) -> Texts:
    """The ids in DPR's `positive_ctxs`; a context without an id names no passage."""
    if line.get("positive_ctxs") is None:
        return ()
    passages: list[str] = []
    for context in checked(line, "positive_ctxs", "a list of objects", where):
        id_fields = [name for name in ("passage_id", "psg_id", "id") if context.get(name) is not None]
        if id_fields:
            passages.append(identifier(context, id_fields[0], where))
    return _distinct(passages)


def _no_passages(line: JsonObject, where: str) -> Texts:
    return ()


def kilt_answers(line: JsonObject, where: str) -> Texts:
    """The distinct answers of a KILT line, stripped; an output may have provenance only."""
    answers: list[str] = []
    for output in checked(line, "output", "a list of objects", where):
        if "answer" in output:
            answers.append(checked(output, "answer", "a string", where).strip())
    return _distinct(filter(None, answers))


def kilt_provenance(line: JsonObject, where: str) -> tuple[Texts, ...]:
    """The ids of the Wikipedia pages of each output that names any, each page once."""
    page_sets: list[Texts] = []
    for output in checked(line, "output", "a list of objects", where):
        if output.get("provenance") is None:
            continue
        pages: list[str] = []
        for place in checked(output, "provenance", "a list of objects", where):
            demand(place, {"wikipedia_id": "an id"}, where)
            pages.append(str(place["wikipedia_id"]).strip())
        if pages:
            page_sets.append(_distinct(pages))
    return tuple(page_sets)


def _kilt_passages(line: JsonObject, where: str) -> Texts:
    page_sets = kilt_provenance(line, where)
    return _distinct(itertools.chain.from_iterable(page_sets))


def _distinct(names: Iterable[str | int]) -> Texts:
    return tuple(dict.fromkeys(map(str, names)))


# ---- tables ----


def _read_beir(path: epath.Path, quoting: Quoting, counts: Counter[str]) -> Iterator[Asked]:
    """The queries that a file in `qrels` judges, with the passages that it finds relevant, each once."""
    relevant = _relevant(path, quoting)
    present: set[str] = set()
    for where, line in json_objects(_queries(path)):
        demand(line, {"_id": "an id", "text": "a string"}, where)
        query_id = str(line["_id"])
        if query_id in relevant:
            present.add(query_id)
            question = Question(query_id, line["text"], _beir_answers(line, where))
            yield Asked(question, tuple(relevant[query_id]), where)
    counts["judged_queries_not_in_queries"] += len(relevant.keys() - present)


def _queries(judgements: epath.Path) -> epath.Path:
    """The file of queries that belongs to `qrels/NAME.tsv`."""
    return packed_or_plain(judgements.parent.parent, "queries.jsonl")


def _relevant(path: epath.Path, quoting: Quoting) -> dict[str, dict[str, None]]:
    """The relevant passages of each query, each once and in their order."""
    relevant: dict[str, dict[str, None]] = {}  # a dict without values is a set that keeps its order
    rows = table_rows(path, delimiter="\t", num_columns=3, quoting=quoting)
    for number, (where, row) in enumerate(rows, start=1):
        # Query, passage and grade; a grade above 0 is relevant.
        query, passage, grade = (field.strip() for field in row)
        if not _GRADE.fullmatch(grade):
            if number == 1:
                continue  # the head
            raise ValueError(
                f"{where}: expected a grade that is a number, got {quoted(grade)}. Write query, passage and "
                "grade with tabs between them."
            )
        if not query or not passage:
            raise ValueError(
                f"{where}: expected the ids of a query and a passage, got an empty one. Write both, or "
                "leave the line out."
            )
        if float(grade) > 0:
            relevant.setdefault(query, {})[passage] = None
    return relevant


def _beir_answers(line: JsonObject, where: str) -> Texts:
    """The answers in a query's metadata, for BEIR itself has none."""
    metadata = {} if line.get("metadata") is None else line["metadata"]
    if not isinstance(metadata, dict):
        raise ValueError(
            f"{where}: expected field 'metadata' to be an object, got {quoted(metadata)}. Write an object "
            "there, or leave the field out."
        )
    for name in ("answers", "answer"):
        if name in metadata:
            return _answers(metadata, name, where)
    return ()


def _read_parquet(path: epath.Path, quoting: Quoting, counts: Counter[str]) -> Iterator[Asked]:
    yield from _asked_objects(path, parquet_objects(path, _COLUMNS))


def _with_lists(path: epath.Path) -> Iterator[tuple[str, JsonObject]]:
    """The rows of a CSV file with a head, with its cells that hold several answers or ids as lists."""
    for where, line in csv_objects(path, _COLUMNS):
        for name in _LISTS & line.keys():
            text = line[name].strip()
            if text.startswith("["):
                line[name] = list_of_strings(text, where)
            else:
                line[name] = [text] if text else []
        yield where, line


def _names_questions(path: epath.Path) -> bool:
    """Whether the first line of a table names a column of questions."""
    names = column_names(path)
    return any(form.question in names for form in _FORMS)


def _has_head(path: epath.Path) -> bool:
    """Whether the first line of a table names its columns: DPR's do not, and have tabs."""
    if _names_questions(path):
        return True
    is_csv = plain_name(path).endswith(".csv") and csv_delimiter(path) != "\t"
    return is_csv and len(column_names(path)) > 1


def _read_table(path: epath.Path, quoting: Quoting, counts: Counter[str]) -> Iterator[Asked]:
    """A table with a head has our fields; any other is DPR's."""
    if _has_head(path):
        yield from _asked_objects(path, _with_lists(path))
    else:
        yield from _read_rows(path, quoting, counts)


def _read_head_and_questions(path: epath.Path, quoting: Quoting, counts: Counter[str]) -> Iterator[Asked]:
    """The questions of a table with a head, without their answers."""
    for where, line in csv_objects(path):
        text = checked(line, _question_field(line, where), "a string", where)
        yield Asked(Question("", text, ()), (), where)


def _read_rows(path: epath.Path, quoting: Quoting, counts: Counter[str]) -> Iterator[Asked]:
    """DPR's tables of questions: the second column, if there is one, is a Python list of strings."""
    file_name = plain_name(path)
    rows = table_rows(path, delimiter="\t", num_columns=(1, 2), quoting=quoting)
    for number, (where, row) in enumerate(rows, start=1):
        # A table of one column has questions alone.
        answers = list_of_strings(row[1], where) if len(row) == 2 else []
        filled_answers = tuple(answer for answer in answers if answer.strip())
        question = Question(f"{file_name}:{number}", row[0], filled_answers)
        yield Asked(question, (), where)


# The first whose question and answers a line has is the one.
_FORMS = (
    _Form("question", "answers", _our_passages),
    _Form("question", "golden_answers", _no_passages),
    _Form("question", "answer", _no_passages),
    _Form("query", "response", _no_passages),
    _Form("input", "output", _kilt_passages),
)
_COLUMNS = tuple((form.question, form.answers) for form in _FORMS)
_LISTS = {"answers", "golden_answers", "positive_passage_ids"}  # of a table's columns
FORMATS: dict[str, Reader] = {
    "json": _read_json,
    "beir": _read_beir,
    "table": _read_table,
    "parquet": _read_parquet,
}
_SUFFIXES = {
    ".jsonl": "json",
    ".json": "json",
    ".tsv": "table",
    ".csv": "table",
    ".txt": "table",
    ".parquet": "parquet",
}
