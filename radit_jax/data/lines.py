"""Text files that people bring, read a line at a time: JSON and tables, with errors that say where."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath


def text_lines(path: epath.Path) -> Iterator[tuple[str, str]]:
    """(`FILE line N`, its text with the line end) of every line of a UTF-8 file, one in memory at a time."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path} line {number}"
            try:
                yield where, raw.decode().removeprefix("\ufeff")
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: it is not UTF-8 ({error}); convert the file to UTF-8") from None


def json_objects(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`FILE line N`, the object) of every line of a JSON-lines file that is not blank."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.strip():
                where = f"{path} line {number}"
                yield where, json_object(raw, where)


def json_list(path: epath.Path, field: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(`FILE item N`, the object) of a file that is one JSON list, or has it in `field`; read whole."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path}: it is not JSON ({error}); needed is a list of objects; correct it"
        ) from None
    items = value.get(field) if field and isinstance(value, dict) else value
    if not isinstance(items, list):
        inside = f" in {field!r}" if field else ""
        raise ValueError(f"{path}: no list{inside} came, needed is a list of objects; correct the file")
    for number, item in enumerate(items, start=1):
        yield f"{path} item {number}", as_object(item, f"{path} item {number}")


def json_object(raw: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except ValueError as error:  # of the JSON, or of its UTF-8
        raise ValueError(f"{where}: it is not JSON ({error}); write one JSON object per line") from None
    return as_object(value, where)


def as_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        shown = json.dumps(value, ensure_ascii=False)[:40]
        raise ValueError(f"{where}: {shown} came, needed is a JSON object; write one per line")
    return value


def table_rows(path: epath.Path, *, delimiter: str, num_columns: int) -> Iterator[tuple[str, list[str]]]:
    """(`FILE line N`, the fields) of every row of a table whose fields may stand in double quotes."""
    where = str(path)

    def lines() -> Iterator[str]:
        nonlocal where
        for where, text in text_lines(path):  # noqa: B007 - the errors below name the line that was read last
            yield text

    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise ValueError(f"{where}: it is not a row of a table ({error}); correct its quotes") from None
        if row is None:
            return
        if row and len(row) != num_columns:
            raise ValueError(
                f"{where}: {len(row)} columns came, needed are {num_columns}, separated by {delimiter!r}; "
                "correct the line or name the file's format"
            )
        if row:
            yield where, row


def demand(line: Mapping[str, Any], fields: Mapping[str, str], where: str) -> None:
    """Refuse a line without one of `fields` (name → kind: see `checked`), or with one of another kind."""
    for name, kind in fields.items():
        if name not in line:
            raise ValueError(
                f"{where}: no field {name!r}; needed are {', '.join(fields)}; add it to the line"
            )
        checked(line, name, kind, where)


def checked(line: Mapping[str, Any], name: str, kind: str, where: str) -> Any:
    """The field `name`, of kind "a string", "a string or a number" or "a list of strings"."""
    value = line[name]
    items = value if kind == "a list of strings" else [value]
    types = str | int if kind == "a string or a number" else str
    if not isinstance(items, list) or not all(isinstance(item, types) for item in items):
        raise ValueError(f"{where}: field {name!r} is {value!r}, needed is {kind}; correct the line")
    return value


def one_of(names: Sequence[str]) -> str:
    """The names for a sentence: `a, b or c`.

    >>> one_of(["a", "b", "c"])
    'a, b or c'
    """
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
