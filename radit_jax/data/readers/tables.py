"""Tables that people bring, in TSV or CSV: their rows, with errors that say where.

A table's quotation marks may mean one of three things, see `Quoting`; all its rows have as many fields.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from typing import Literal

from etils import epath

from radit_jax.data.readers.lines import MAX_LINE_BYTES, one_of, quoted, text_lines

Quoting = Literal["auto", "csv", "none"]
"""What a quotation mark means in a table whose fields are parted by tabs or commas.

    csv     a field that begins with one ends with one, and may hold line ends and, doubled, quotes
    none    a character like others
    auto    as csv, but a field ends in its line, and no field without quotes around it has one inside
"""

ONE_COLUMN = "\x1f"  # as a delimiter it parts nothing: no text has it
Row = tuple[str, list[str]]  # (`FILE line N`, its fields)

_CHOOSE_QUOTING = (
    "Set data.quoting=none if quotes are characters like others there, or data.quoting=csv if a field may "
    "hold line ends."
)


def table_rows(
    path: epath.Path, *, delimiter: str, num_columns: int | Sequence[int], quoting: Quoting = "auto"
) -> Iterator[Row]:
    """(`FILE line N`, the fields) of every row of a table; a row over several lines is where it begins.

    `num_columns` are the numbers of fields that will do; every row has as many as the first.
    """
    allowed = [num_columns] if isinstance(num_columns, int) else list(num_columns)
    # Only as "csv" may a row go on in the next line.
    rows = _csv_rows(path, delimiter) if quoting == "csv" else _line_rows(path, delimiter, quoting)
    for where, row in rows:
        if len(row) not in allowed:
            counts = one_of([str(count) for count in allowed])
            raise ValueError(
                f"{where}: expected {counts} columns separated by {delimiter!r}, got {len(row)}. Correct the "
                "line, or name the file's format."
            )
        allowed = [len(row)]
        yield where, row


def _csv_rows(path: epath.Path, delimiter: str) -> Iterator[Row]:
    """Rows whose fields may hold line ends."""
    row_start = ""  # the line in which the row begins that is being read

    def lines() -> Iterator[str]:
        nonlocal row_start
        for where, text in text_lines(path):
            row_start = row_start or where
            yield text

    csv.field_size_limit(MAX_LINE_BYTES)  # Python's own of 131,072 is less than an article
    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            # Name what a person sees in the file.
            end = "the end of the row" if delimiter == ONE_COLUMN else repr(delimiter)
            reason = str(error).replace(f"'{delimiter}'", end)
            raise ValueError(
                f"{row_start}: expected quotes around whole fields, doubled inside, got others ({reason}). "
                "Close the quotes that open in this row, or put the whole field in quotes."
            ) from None
        if row is None:
            return
        if row:  # a blank line gives an empty one
            yield row_start, row
        row_start = ""


def _line_rows(path: epath.Path, delimiter: str, quoting: Quoting) -> Iterator[Row]:
    """Rows of one line each."""
    quoted_fields = _QuotedFields(delimiter)
    for where, text in text_lines(path):
        line = text.removesuffix("\n").removesuffix("\r")
        if not line:
            continue
        # Most lines have no quotation mark, and are split ten times as fast.
        if quoting == "none" or '"' not in line:
            yield where, line.split(delimiter)
        else:
            yield where, quoted_fields.split(line, where)


class _QuotedFields:
    """Splits lines with quotation marks, which must have one meaning in all of a table."""

    def __init__(self, delimiter: str):
        # A field in quotes, with doubled ones inside, or one that begins with no quote; then its delimiter.
        d = re.escape(delimiter)
        self._field = re.compile(rf'(?:"([^"]*+(?:""[^"]*+)*+)"|([^"{d}][^{d}]*+|))({d}|\Z)')
        # The lines in which a quote first stood around a field, and inside one without quotes around it.
        self._around = self._inside = ""

    def split(self, line: str, where: str) -> list[str]:
        """The fields of a line; ValueError where a quote stays open, or the table mixes both meanings."""
        fields: list[str] = []
        start = 0
        while True:
            field = self._field.match(line, start)
            if field is None:
                raise ValueError(
                    f"{where}: expected the quote that opens a field to close it in the same line, got "
                    f"{quoted(line[start:])}. {_CHOOSE_QUOTING}"
                )
            around, plain, delimiter = field.groups()
            # Note where either meaning was first seen.
            if around is not None:
                self._around = self._around or where
                fields.append(around.replace('""', '"'))
            else:
                if '"' in plain:
                    self._inside = self._inside or where
                fields.append(plain)
            start = field.end()
            if not delimiter:
                break
        if self._around and self._inside:
            raise ValueError(
                f"{where}: expected one meaning of quotes, got a field in quotes ({self._around}) and quotes "
                f"inside a field without ({self._inside}). {_CHOOSE_QUOTING}"
            )
        return fields
