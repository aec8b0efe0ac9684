"""Rows with named columns, of CSV with a head and of Parquet, as objects like those of JSON lines."""

import itertools
from collections.abc import Iterator

from etils import epath

from radit_jax.data.readers.lines import JsonObject, open_bytes, quoted, text_lines
from radit_jax.data.readers.tables import table_rows

ANY_NUMBER = range(1, 1000)  # of columns
_ROWS_AT_ONCE = 1024


def csv_objects(path: epath.Path) -> Iterator[tuple[str, JsonObject]]:
    """(`FILE line N`, the row by the names of its columns) of a CSV file, whose first line names them.

    A field in quotes may hold line ends.
    """
    rows = table_rows(path, delimiter=",", num_columns=ANY_NUMBER, quoting="csv")
    names: list[str] = []
    for where, row in rows:
        if not names:
            names = [name.strip() for name in row]
            _check_names(names, where)
            continue
        yield where, dict(zip(names, row, strict=True))


def _check_names(names: list[str], where: str) -> None:
    """Refuse a head in which two columns have one name."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"{where}: expected a name of its own for each column, got {quoted(name)} twice. Rename one."
            )


def has_named_columns(path: epath.Path, names: set[str]) -> bool:
    """Whether the first line of a table has commas, no tab, and one of `names` as a column."""
    first = next(itertools.islice(text_lines(path), 1), None)
    if first is None or "\t" in first[1]:
        return False
    columns = {column.strip().strip('"') for column in first[1].split(",")}
    return bool(columns & names)


def parquet_objects(path: epath.Path) -> Iterator[tuple[str, JsonObject]]:
    """(`FILE row N`, the row by the names of its columns) of a Parquet file, a part in memory at a time."""
    import pyarrow
    from pyarrow import parquet

    with open_bytes(path) as file:
        try:
            batches = parquet.ParquetFile(file).iter_batches(_ROWS_AT_ONCE)
            number = 0
            for batch in batches:
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
        except pyarrow.ArrowException as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{path}: expected a whole Parquet file, got another ({reason}). Write it again."
            ) from None
