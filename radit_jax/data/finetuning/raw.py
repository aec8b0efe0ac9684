"""Files as their publishers wrote them, cut into records: JSON lines, JSON, CSV and TSV, XML, news stories.

A record that cannot be parsed is yielded with its problem, so that the reader decides whether to stop there
or to skip and count it. A whole file that cannot be parsed is an error at once. Any file may be compressed.
"""

import contextlib
import csv
import hashlib
import io
from collections.abc import Iterator
from typing import Any, NamedTuple
from xml.etree import ElementTree

from etils import epath

from radit_jax.data.lines import MAX_FILE_BYTES, BinaryFile, numbered_lines, open_bytes, plain_name
from radit_jax.runtime.files import parse_json

_REMEDY = "Get the official file."


class Record(NamedTuple):
    """One record of a file: a parsed line, an element of a list, a row of a table."""

    where: str  # the file and the place in it, for messages
    name: str  # an id for records that bring none: the file's stem and the record's number
    value: Any
    problem: str = ""  # why there is no value


def json_lines(file: epath.Path) -> Iterator[Record]:
    """A JSON value per line."""
    for number, (where, line) in enumerate(numbered_lines(_existing(file)), 1):
        if line.strip():
            value, problem = _parse(line)
            yield Record(where, f"{_stem(file)}-{number}", value, problem)


def json_elements(file: epath.Path, key: str = "") -> Iterator[Record]:
    """The elements of a list, or the (name, value) pairs of an object; under `key`, where one is given."""
    value = _load(file)
    if key:
        if not isinstance(value, dict) or key not in value:
            raise ValueError(
                f"{file}: JSON without {key!r} came, needed is an object with {key!r}; get the official file"
            )
        value = value[key]
    if not isinstance(value, list | dict):
        raise ValueError(
            f"{file}: {str(value)[:40]!r} came, needed is a JSON list or object; get the official file"
        )
    elements = value.items() if isinstance(value, dict) else value
    for number, element in enumerate(elements, 1):
        yield Record(f"{file} item {number}", f"{_stem(file)}-{number}", element)


def json_file(file: epath.Path) -> Iterator[Record]:
    """A file that is one record, named after its last three path components."""
    name = "-".join([*file.parts[-3:-1], _stem(file)])
    value, problem = _parse(_read(file))
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
            root = ElementTree.parse(stream).getroot()
        except ElementTree.ParseError as error:
            line = error.position[0]
            raise ValueError(
                f"{file} line {line}: it is not XML ({error}), which is needed; get the official file"
            ) from None
    for number, element in enumerate(root.iter(tag), 1):
        yield Record(f"{file} <{tag}> {number}", f"{_stem(file)}-{number}", element)


def listed_stories(file: epath.Path) -> Iterator[Record]:
    """The CNN and Daily Mail stories that `url_lists/*.txt` lists: a story lies under the SHA-1 of its URL.

    A value is the text of `{cnn,dailymail}/stories/{sha1}.story`, beside `url_lists`.
    """
    folders = [file.parent.parent / name / "stories" for name in ("cnn", "dailymail")]
    for number, url in enumerate(_lines(file), 1):
        digest = hashlib.sha1(url.encode()).hexdigest()
        found = [path for folder in folders if (path := folder / f"{digest}.story").exists()]
        where = f"{file} line {number}"
        if not found:
            yield Record(where, digest, None, f"no {digest}.story came in {folders[0]} or {folders[1]}")
            continue
        try:
            yield Record(where, digest, found[0].read_bytes().decode())
        except UnicodeDecodeError as error:
            yield Record(where, digest, None, f"{found[0].name}: {_bad_byte(error)}")


def joined_ecqa(file: epath.Path) -> Iterator[Record]:
    """ECQA's records whose ids `author_split/*_ids.txt` lists, each as (ECQA's line, CommonsenseQA's line).

    ECQA is distributed without the questions. They are read from the folder `commonsense_qa` beside ECQA's.
    """
    ecqa = file.parent.parent
    explained = {line["id"]: line for line in _values(ecqa / "ecqa.jsonl")}
    names = ("train_rand_split.jsonl", "dev_rand_split.jsonl")
    asked = {line["id"]: line for name in names for line in _values(ecqa.parent / "commonsense_qa" / name)}
    for number, name in enumerate(_lines(file), 1):
        where = f"{file} line {number}"
        missing = [of for of, lines in (("ecqa.jsonl", explained), (names[0], asked)) if name not in lines]
        if missing:
            yield Record(where, name, None, f"id {name!r} came, which {' and '.join(missing)} lacks")
        else:
            yield Record(where, name, (explained[name], asked[name]))


def joined_narrativeqa(file: epath.Path) -> Iterator[Record]:
    """The rows of `qaps.csv`, each with the `summary` of its document."""
    summaries = file.parent / "third_party" / "wikipedia" / "summaries.csv"
    summary_of = {}
    for row in csv_rows(summaries):
        if row.problem or not {"document_id", "summary"} <= set(row.value):
            problem = (
                row.problem or f"columns {', '.join(row.value)} came, needed are document_id and summary"
            )
            raise ValueError(f"{row.where}: {problem}; get the official file")
        summary_of[row.value["document_id"]] = row.value["summary"]
    for row in csv_rows(file):
        document = row.value.get("document_id") if row.value else ""
        if row.value and document not in summary_of:
            row = row._replace(value=None, problem=f"document {document!r} came, which {summaries} lacks")
        yield row._replace(value=row.value and {**row.value, "summary": summary_of[document]})


@contextlib.contextmanager
def _open(file: epath.Path) -> Iterator[BinaryFile]:
    with open_bytes(_existing(file)) as stream:
        yield stream


def _existing(file: epath.Path) -> epath.Path:
    if not file.exists():
        raise ValueError(f"{file}: no such file, which is needed; get the official one and put it there")
    return file


def _read(file: epath.Path) -> bytes:
    """The bytes of a file that is read whole."""
    with _open(file) as stream:
        data = stream.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"{file}: expected at most {MAX_FILE_BYTES:,} bytes, got more. {_REMEDY}")
    return data


def _stem(file: epath.Path) -> str:
    return plain_name(file).rpartition(".")[0]


def _bad_byte(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x} at byte {error.start + 1} came, needed is UTF-8"


def _parse(data: bytes) -> tuple[Any, str]:
    """The value, or why there is none."""
    try:
        data.decode()
        return parse_json(data, "", ""), ""
    except UnicodeDecodeError as error:
        return None, _bad_byte(error)
    except ValueError as error:
        return None, str(error).strip(":. ")  # the place and what to do are said around it


def _load(file: epath.Path) -> Any:
    data = _read(file)
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{file} line {line}: {_bad_byte(error)}; get the official file") from None
    return parse_json(data, str(file), _REMEDY)


def _values(file: epath.Path) -> Iterator[Any]:
    """The objects of JSON lines that another file is joined with: each has to parse and to have an id."""
    for record in json_lines(file):
        if record.problem or not isinstance(record.value, dict) or "id" not in record.value:
            problem = record.problem or "no field 'id' came, which is needed"
            raise ValueError(f"{record.where}: {problem}; get the official file")
        yield record.value


def _lines(file: epath.Path) -> Iterator[str]:
    for _, line in numbered_lines(_existing(file)):
        if line.strip():
            yield line.strip().decode("ascii", errors="replace")


def _rows(file: epath.Path, *, delimiter: str, quoting: Any) -> Iterator[Record]:
    # Undecodable bytes come through as lone surrogates, so that only their own row is lost.
    with _open(file) as stream:
        lines = io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline="")
        reader = csv.reader(lines, delimiter=delimiter, quoting=quoting)
        try:
            header = next(reader, [])
            for number, row in enumerate(reader, 1):
                problem = _row_problem(row, header)
                value = None if problem else dict(zip(header, row, strict=True))
                yield Record(f"{file} line {reader.line_num}", f"{_stem(file)}-{number}", value, problem)
        except csv.Error as error:
            raise ValueError(
                f"{file} line {reader.line_num}: it is no table ({error}), which is needed; "
                "get the official file"
            ) from None


def _row_problem(row: list[str], header: list[str]) -> str:
    if len(row) != len(header):
        return f"{len(row)} columns came, needed are the header's {len(header)}"
    try:
        "".join(row).encode()
    except UnicodeEncodeError as error:
        return f"byte 0x{ord(error.object[error.start]) - 0xDC00:02x} came, needed is UTF-8"
    return ""
