"""Files as their publishers wrote them, cut into records: JSON lines, JSON, CSV and TSV, XML, news stories.

A record that cannot be parsed is yielded with its problem, so that the reader decides whether to stop there
or to skip and count it. A whole file that cannot be parsed is an error at once. Any file may be compressed; a
line has a limit, so that no small file fills the memory when it is unpacked.
"""

import contextlib
import csv
import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple
from xml.etree import ElementTree

from etils import epath

from radit_jax.data.readers.lines import MAX_LINE_BYTES, BinaryFile, numbered_lines, open_bytes, plain_name
from radit_jax.runtime.storage.files import parse_json

MAX_FILE_BYTES = 1 << 29  # of what is read whole, unpacked: more than any official file has


# ---- records ----


class Record(NamedTuple):
    """One record of a file: a parsed line, an element of a list, a row of a table."""

    where: str  # the file and the place in it, for messages
    name: str  # an id for records that bring none: the file's stem and the record's number
    value: Any  # None where there is a problem
    problem: str = ""  # why there is no value: expected …, got …


# ---- files of one form ----


def json_lines(file: epath.Path) -> Iterator[Record]:
    """A JSON value per line."""
    lines = numbered_lines(_present(file))
    for number, (where, line) in enumerate(lines, start=1):
        if line.strip():
            value, problem = _parse(line)
            yield Record(where, f"{_stem(file)}-{number}", value, problem)


def json_elements(file: epath.Path, key: str = "") -> Iterator[Record]:
    """The elements of a list, or the (name, value) pairs of an object; under `key`, where one is given."""
    value = _load(file)
    if key:
        if not isinstance(value, dict) or key not in value:
            raise ValueError(
                f"{file}: expected an object with {key!r}, got JSON without it. Get the official file."
            )
        value = value[key]
    if not isinstance(value, list | dict):
        raise ValueError(
            f"{file}: expected a JSON list or object, got {str(value)[:40]!r}. Get the official file."
        )
    # Objects keep the order of their names.
    elements = value.items() if isinstance(value, dict) else value
    for number, element in enumerate(elements, start=1):
        yield Record(f"{file} item {number}", f"{_stem(file)}-{number}", element)


def json_file(file: epath.Path) -> Iterator[Record]:
    """A file that is one record, named after its last three path components."""
    name = "-".join([*file.parts[-3:-1], _stem(file)])
    with _open(file) as stream:
        value, problem = _parse(_whole(stream, file))
    yield Record(str(file), name, value, problem)


def csv_rows(file: epath.Path) -> Iterator[Record]:
    """The rows of a comma-separated table as dictionaries by the names in its first row."""
    return _rows(file, delimiter=",", quoting=csv.QUOTE_MINIMAL)


def tsv_rows(file: epath.Path) -> Iterator[Record]:
    """The rows of a tab-separated table, in which a quotation mark is an ordinary character."""
    return _rows(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def xml_elements(file: epath.Path, tag: str) -> Iterator[Record]:
    """The elements named `tag`."""
    with _open(file) as stream:
        try:
            root = ElementTree.fromstring(_whole(stream, file))
        except ElementTree.ParseError as error:
            line = error.position[0]
            raise ValueError(
                f"{file} line {line}: expected XML, got another form ({error}). Get the official file."
            ) from None
        except LookupError as error:  # Python does not know the encoding that the file names
            raise ValueError(
                f"{file}: expected XML in UTF-8, got another encoding ({error}). Get the official file."
            ) from None
    for number, element in enumerate(root.iter(tag), start=1):
        yield Record(f"{file} <{tag}> {number}", f"{_stem(file)}-{number}", element)


# ---- files that belong together ----


def listed_stories(file: epath.Path) -> Iterator[Record]:
    """The CNN and Daily Mail stories that `url_lists/*.txt` lists: a story lies under the SHA-1 of its URL.

    A value is the text of `{cnn,dailymail}/stories/{sha1}.story`, next to `url_lists`.
    """
    cnn, dailymail = (file.parent.parent / name / "stories" for name in ("cnn", "dailymail"))
    for number, url in enumerate(_lines(file), start=1):
        where = f"{file} line {number}"
        digest = hashlib.sha1(url.encode()).hexdigest()
        story = cnn / f"{digest}.story"
        if not story.exists():
            story = dailymail / story.name
        if not story.exists():
            problem = f"expected {story.name} in {cnn} or {dailymail}, got none"
            yield Record(where, digest, None, problem)
            continue
        try:
            yield Record(where, digest, story.read_bytes().decode())
        except UnicodeDecodeError as error:
            yield Record(where, digest, None, f"expected UTF-8 in {story.name}, got {_bad_byte(error)}")


def joined_ecqa(file: epath.Path) -> Iterator[Record]:
    """ECQA's records whose ids `author_split/*_ids.txt` lists, each as (ECQA's line, CommonsenseQA's line).

    ECQA is distributed without the questions. They are read from the folder `commonsense_qa` next to ECQA's.
    """
    # 1) Both files of each, by id.
    ecqa = file.parent.parent
    explained = {line["id"]: line for line in _values(ecqa / "ecqa.jsonl")}
    commonsense_qa = ecqa.parent / "commonsense_qa"
    train_file = "train_rand_split.jsonl"
    asked = {}
    for file_name in (train_file, "dev_rand_split.jsonl"):
        for line in _values(commonsense_qa / file_name):
            asked[line["id"]] = line
    # 2) What belongs to each listed id.
    for number, name in enumerate(_lines(file), start=1):
        where = f"{file} line {number}"
        missing = [
            file_name
            for file_name, lines in (("ecqa.jsonl", explained), (train_file, asked))
            if name not in lines
        ]
        if missing:
            problem = f"expected id {name!r} in {' and '.join(missing)}, got no such line"
            yield Record(where, name, None, problem)
        else:
            yield Record(where, name, (explained[name], asked[name]))


def joined_narrativeqa(file: epath.Path) -> Iterator[Record]:
    """The rows of `qaps.csv`, each with the `summary` of its document."""
    summaries = file.parent / "third_party" / "wikipedia" / "summaries.csv"
    # 1) The summary of each document.
    summary_of = {}
    for row in csv_rows(summaries):
        if row.problem or not {"document_id", "summary"} <= set(row.value):
            names = ", ".join(row.value or ())
            problem = row.problem or f"expected columns document_id and summary, got {names}"
            raise ValueError(f"{row.where}: {problem}. Get the official file.")
        summary_of[row.value["document_id"]] = row.value["summary"]
    # 2) Each question with its document's.
    for row in csv_rows(file):
        if not row.value:
            yield row
            continue
        document = row.value.get("document_id")
        if document in summary_of:
            yield row._replace(value={**row.value, "summary": summary_of[document]})
        else:
            problem = f"expected a summary of document {document!r} in {summaries}, got none"
            yield row._replace(value=None, problem=problem)


# ---- reading ----


def _present(file: epath.Path) -> epath.Path:
    if not file.exists():
        raise ValueError(f"{file}: expected a file, got none. Get the official one and put it there.")
    return file


@contextlib.contextmanager
def _open(file: epath.Path) -> Iterator[BinaryFile]:
    with open_bytes(_present(file)) as stream:
        yield stream


def _stem(file: epath.Path) -> str:
    """The file's name without its ending, and without what says that it is compressed."""
    return plain_name(file).rpartition(".")[0]


def _bad_byte(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x} at byte {error.start + 1}"


def _parse(line: bytes) -> tuple[Any, str]:
    """The value, or why there is none."""
    try:
        return parse_json(line, "", ""), ""
    except ValueError as error:
        return None, str(error).removeprefix(": ").strip().removesuffix(".")


def _whole(stream: BinaryFile, file: epath.Path) -> bytes:
    """All bytes of a file, which are limited."""
    # One byte more than is allowed, by which a longer file is known.
    data = stream.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(
            f"{file}: expected at most {MAX_FILE_BYTES:,} bytes, got more. Get the official file."
        )
    return data


def _load(file: epath.Path) -> Any:
    """The JSON value that a file is."""
    with _open(file) as stream:
        data = _whole(stream, file)
    try:
        data.decode()
    except UnicodeDecodeError as error:
        # Say in which line the faulty byte is.
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{file} line {line}: expected UTF-8, got {_bad_byte(error)}. Get the official file."
        ) from None
    return parse_json(data, str(file), "Get the official file.")


def _values(file: epath.Path) -> Iterator[Any]:
    """The objects of JSON lines that another file is joined with: each has to parse and to have an id."""
    for record in json_lines(file):
        has_id = isinstance(record.value, dict) and isinstance(record.value.get("id"), str)
        if record.problem or not has_id:
            problem = record.problem or "expected an object with 'id', got another value"
            raise ValueError(f"{record.where}: {problem}. Get the official file.")
        yield record.value


def _lines(file: epath.Path) -> Iterator[str]:
    """The lines of a list, without blank ones."""
    for _, line in numbered_lines(_present(file)):
        if line.strip():
            yield line.strip().decode("ascii", errors="replace")


def _rows(file: epath.Path, *, delimiter: str, quoting: Any) -> Iterator[Record]:
    """The rows of a table under its header, as dictionaries."""
    csv.field_size_limit(MAX_LINE_BYTES)  # Python's own of 131,072 is less than a story
    # Undecodable bytes come through as lone surrogates, so that only their own row is lost.
    lines = (line.decode(errors="surrogateescape") for _, line in numbered_lines(_present(file)))
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting)
    try:
        header = next(reader, [])
        for number, row in enumerate(reader, start=1):
            where = f"{file} line {reader.line_num}"
            problem = _row_problem(row, header)
            value = None if problem else dict(zip(header, row, strict=True))
            yield Record(where, f"{_stem(file)}-{number}", value, problem)
    except csv.Error as error:
        raise ValueError(
            f"{file} line {reader.line_num}: expected a row of a table, got another form ({error}). Get the "
            "official file."
        ) from None


def _row_problem(row: list[str], header: list[str]) -> str:
    """What is wrong with a row, or ""."""
    if len(row) != len(header):
        return f"expected the header's {len(header)} columns, got {len(row)}"
    try:
        "".join(row).encode()
    except UnicodeEncodeError as error:
        # A lone surrogate is 0xDC00 more than the byte that it stands for.
        byte = ord(error.object[error.start]) - 0xDC00
        return f"expected UTF-8, got byte 0x{byte:02x}"
    return ""
