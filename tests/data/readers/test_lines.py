"""Lines, JSON and compressed bytes: what is damaged or too large is one error with its place."""

import gzip
import json
import sys
import types

import pytest
from etils import epath

from radit_jax.data.readers import lines
from radit_jax.data.readers.lines import json_list, json_objects, open_bytes, text_lines


def write(tmp_path, name, data):
    file = epath.Path(tmp_path / name)
    file.write_bytes(data)
    return file


def test_a_line_longer_than_the_limit_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000)
    bomb = write(tmp_path, "bomb.jsonl.gz", gzip.compress(b'{}\n{"a": "' + b"x" * 5_000_000))
    found = json_objects(bomb)
    assert next(found)[1] == {}
    with pytest.raises(ValueError, match=r"bomb\.jsonl\.gz line 2: expected a line of at most 1,000 bytes"):
        next(found)
    bomb = write(tmp_path, "bomb.json.gz", gzip.compress(b'["' + b"x" * 5_000_000))
    with pytest.raises(
        ValueError, match=r"line 1: expected a line of at most 1,000 bytes|item 1: expected at"
    ):
        list(json_list(bomb))


def packed(change):
    """A compressed file that was damaged."""
    data = gzip.compress(b'{"a": 1}\n' * 1000)
    return change(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-4],
        lambda data: data[:12] + b"\xff" + data[13:],
        lambda data: data[:-8] + b"\0" * 8,
        lambda data: data + b"no gzip",
    ],
)
def test_a_damaged_gzip_file_is_one_error(tmp_path, change):
    file = write(tmp_path, "a.jsonl.gz", packed(change))
    with pytest.raises(
        ValueError, match=r"a\.jsonl\.gz: expected a whole compressed file, got a damaged one"
    ):
        list(json_objects(file))


def test_a_compressed_file_is_known_by_its_bytes(tmp_path):
    file = write(tmp_path, "plain_name.txt", gzip.compress(b"one\ntwo\n"))
    assert [text for _, text in text_lines(file)] == ["one\n", "two\n"]


def test_zstds_form_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    file = write(tmp_path, "a.jsonl.zst", b"\x28\xb5\x2f\xfd\0\0")
    with pytest.raises(ValueError, match=r"a\.jsonl\.zst: expected a package .*pip install backports\.zstd"):
        list(text_lines(file))


def test_zstds_form_is_unpacked_by_the_package_that_is_there(tmp_path, monkeypatch):
    """By a stand-in: on Python 3.13 and before the package is no dependency."""
    fake = types.SimpleNamespace(ZstdFile=lambda stream: gzip.GzipFile(fileobj=stream), ZstdError=OSError)
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    monkeypatch.setitem(sys.modules, "backports.zstd", fake)
    data = gzip.compress(b'{"a": 1}\n' * 1000)
    monkeypatch.setattr(lines, "_GZIP", b"none begins so")
    monkeypatch.setattr(lines, "_ZSTD", data[:2])
    assert sum(1 for _ in json_objects(write(tmp_path, "a.jsonl.zst", data))) == 1000
    with pytest.raises(ValueError, match=r"b\.jsonl\.zst: expected a whole compressed file, got a damaged"):
        list(json_objects(write(tmp_path, "b.jsonl.zst", data[:-9])))


@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_is_read_element_by_element_however_it_is_laid_out(tmp_path, indent):
    values = [{"n": n, "text": "é[{" * (n % 7) * 2000} for n in range(60)]
    file = write(tmp_path, "a.json", json.dumps(values, indent=indent, ensure_ascii=False).encode())
    assert [value for _, value in json_list(file)] == values
    assert list(json_list(write(tmp_path, "b.json", b" [ ] "))) == []
    assert [value for _, value in json_list(write(tmp_path, "c.json", b'{"Data": [{}]}'), "Data")] == [{}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[{"a": 1} {"a": 2}]', r"expected ',' in a JSON list, got '{\"a\": 2"),
        (b'[{"a": 1},]', r"item 2: expected JSON"),
        (b'[{"a": "\xff"}]', r"expected UTF-8"),
        (b"[" + b'{"a":' * 5000, r"item 1: expected JSON of at most 100 levels"),
        (b"[{}", r"expected ',' in a JSON list, got the end"),
        (b"[5]", r"item 1: expected a JSON object, got 5"),
    ],
)
def test_a_list_that_is_wrong_is_one_error(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        list(json_list(write(tmp_path, "a.json", data)))


def test_bytes_of_a_plain_file_are_as_they_are(tmp_path):
    with open_bytes(write(tmp_path, "a", b"\x1f")) as file:
        assert file.read() == b"\x1f"
