"""Rows of TSV and CSV tables, and what a quotation mark means in them."""

import pytest
from etils import epath

from radit_jax.data.readers.tables import table_rows


def write(tmp_path, name, data):
    file = epath.Path(tmp_path / name)
    file.write_bytes(data)
    return file


def test_a_field_of_any_length_within_a_line_is_read(tmp_path):
    text = "word " * 50_000  # Python's csv stops at 131,072 characters
    for quoting in ("auto", "csv", "none"):
        file = write(tmp_path, "t.tsv", f"1\t{text}\n".encode())
        assert [row for _, row in table_rows(file, delimiter="\t", num_columns=2, quoting=quoting)] == [
            ["1", text]
        ]


def test_quotes_may_stand_around_fields_of_a_line(tmp_path):
    file = write(tmp_path, "t.tsv", b'a\t"b ""c""\td"\t""\n"x"\t\ty\r\n\n')
    rows = [row for _, row in table_rows(file, delimiter="\t", num_columns=3)]
    assert rows == [["a", 'b "c"\td', ""], ["x", "", "y"]]


def test_an_error_is_at_the_line_in_which_the_quote_opened(tmp_path):
    file = write(tmp_path, "t.csv", b'a,b\n"c\nd",e\n"f,g\nh\ni,j\n')
    rows = table_rows(file, delimiter=",", num_columns=2, quoting="csv")
    assert [next(rows) for _ in range(2)] == [
        (f"{file} line 1", ["a", "b"]),
        (f"{file} line 2", ["c\nd", "e"]),
    ]
    with pytest.raises(ValueError, match=r"t\.csv line 4: expected quotes around whole fields"):
        next(rows)
