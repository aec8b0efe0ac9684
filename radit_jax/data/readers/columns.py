"""Rows with named columns, of CSV with a head and of Parquet, as objects like those of JSON lines."""

import csv
import itertools
from collections.abc import Iterator, Sequence

from etils import epath

from radit_jax.data.readers.lines import JsonObject, one_of, open_bytes, plain_name, quoted, text_lines
from radit_jax.data.readers.tables import ONE_COLUMN, table_rows

ANY_NUMBER = range(1, 1000)  # of columns
_DELIMITERS = ",;|"
_IN_WORDS = {",": "a comma", ";": "a semicolon", "|": "a bar", "\t": "a tab"}
_HEAD_CHARACTERS = 2000  # of a first line, which may be no head but a long text
_ROWS_AT_ONCE = 1024

Columns = Sequence[Sequence[str]]  # sets of names, one of which a table has to have


def csv_objects(path: epath.Path, expected: Columns = ()) -> Iterator[tuple[str, JsonObject]]:
    """(`FILE line N`, the row by the names of its columns) of a CSV file, whose first line names them.

    Columns are parted by what parts those of the first line. A field in quotes may hold line ends. Raises
    ValueError where the first line has none of the sets of names `expected`.
    """
    rows = table_rows(path, delimiter=csv_delimiter(path), num_columns=ANY_NUMBER, quoting="csv")
    names: list[str] = []
    for where, row in rows:
        if not names:
            names = [name.strip() for name in row]
            _check_names(names, where)
            _check_columns(names, expected, where)
            continue
        yield where, dict(zip(names, row, strict=True))


def csv_delimiter(path: epath.Path) -> str:
    """What parts the columns of a CSV file by its first line: a tab, a comma, a semicolon or a bar.

    Where the first line has none of them, nothing does: a comma in a row belongs to its text.
    """
    head = _first_line(path)
    # DPR's tables have commas in their questions, and one tab.
    if "\t" in head:
        return "\t"
    if not any(mark in head for mark in _DELIMITERS):
        return ONE_COLUMN
    try:
        return csv.Sniffer().sniff(head[:_HEAD_CHARACTERS], _DELIMITERS).delimiter
    except csv.Error:  # a first line that is no head
        return ","


def columns_in_words(path: epath.Path) -> str:
    """How the columns of a CSV file are read, for a person; "" of a file of another kind."""
    name = plain_name(path)
    if not name.endswith(".csv"):
        return ""
    delimiter = csv_delimiter(path)
    if delimiter == ONE_COLUMN:
        return f"{name} has one column"
    return f"{name} has its columns parted by {_IN_WORDS[delimiter]}"


def column_names(path: epath.Path) -> list[str]:
    """What stands in the columns of a CSV file's first line."""
    delimiter = csv_delimiter(path)
    return [name.strip().strip('"') for name in _first_line(path).split(delimiter)]


def _first_line(path: epath.Path) -> str:
    for _, line in itertools.islice(text_lines(path), 1):
        return line
    return ""


def _check_names(names: list[str], where: str) -> None:
    """Refuse a head in which two columns have one name."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"{where}: expected a name of its own for each column, got {quoted(name)} twice. Rename one."
            )


def _check_columns(names: Sequence[str], expected: Columns, where: str) -> None:
    """Refuse a table that has none of the sets of names `expected`."""
    if not expected or any(set(wanted) <= set(names) for wanted in expected):
        return
    wanted_names = one_of([" with ".join(wanted) for wanted in expected])
    got = ", ".join(quoted(name) for name in names)
    raise ValueError(f"{where}: expected the columns {wanted_names}, got {got}. Rename them there.")


def parquet_objects(path: epath.Path, expected: Columns = ()) -> Iterator[tuple[str, JsonObject]]:
    """(`FILE row N`, the row by the names of its columns) of a Parquet file, a part in memory at a time.

    Raises ValueError where it has none of the sets of columns `expected`.
    """
    import pyarrow
    from pyarrow import parquet

    with open_bytes(path) as file:
        try:
            table = parquet.ParquetFile(file)
            _check_columns(table.schema_arrow.names, expected, f"{path}")
            number = 0
            for batch in table.iter_batches(_ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
        except pyarrow.ArrowException as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{path}: expected a whole Parquet file, got another ({reason}). Write it again."
            ) from None
