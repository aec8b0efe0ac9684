"""Parts of a corpus hold each document once, in order."""

import random

import pytest
from corpus_forms import CORPORA, passage, write_form
from etils import epath

from radit_jax.data.readers.documents import read_documents
from radit_jax.data.readers.parts import FileRange, find_parts, part_documents, part_lines


@pytest.fixture(params=CORPORA)
def path(request, tmp_path) -> epath.Path:
    return write_form(request.param, tmp_path)


@pytest.mark.parametrize("part_bytes", [61, 400, 1 << 20])
def test_the_parts_hold_every_document_once_and_in_order(path, part_bytes) -> None:
    wanted = [document[:2] for document in read_documents(path)]
    parts = find_parts(path, part_bytes=part_bytes)
    assert [part.number for part in parts] == list(range(len(parts)))
    assert [document[:2] for part in parts for document in part_documents(part)] == wanted


@pytest.mark.parametrize("part_bytes", range(1, 14))
def test_a_line_belongs_to_the_part_in_which_it_begins(tmp_path, part_bytes) -> None:
    lines = [b"{}\n", b"\n", b"long enough\n", b"no end"]
    (tmp_path / "passages.jsonl").write_bytes(b"".join(lines))
    parts = find_parts(epath.Path(tmp_path / "passages.jsonl"), part_bytes=part_bytes)
    assert [line for part in parts for line in part_lines(part)] == lines


@pytest.mark.parametrize(
    ("name", "text", "quoting"),
    [
        ("psgs_w100.tsv", 'id\ttext\ttitle\n1\t"one\n2\ttwo"\tT\n3\tthree\tT\n', "csv"),
        ("psgs_w100.tsv", "one\ntwo\nthree\n", "auto"),
        ("passages.jsonl", '[{"id": "1", "text": "one"},\n{"id": "2", "text": "two"}]\n', "auto"),
    ],
)
def test_a_file_whose_lines_need_those_before_them_is_one_part(tmp_path, name, text, quoting) -> None:
    path = epath.Path(tmp_path / name)
    path.write_text(text)
    (part,) = find_parts(path, quoting=quoting, part_bytes=5)
    wanted = [document[:2] for document in read_documents(path, quoting=quoting)]
    assert [document[:2] for document in part_documents(part)] == wanted


def test_a_table_without_a_head_is_cut_at_its_lines(tmp_path) -> None:
    path = epath.Path(tmp_path / "collection.tsv")
    path.write_text("".join(f"{number}\ttext {number}\n" for number in range(9)))
    parts = find_parts(path, part_bytes=20)
    assert len(parts) > 3
    assert [d.id for part in parts for d in part_documents(part)] == [str(n) for n in range(9)]


def test_each_text_of_a_folder_is_a_part(tmp_path) -> None:
    for name in ("b.txt", "a.txt", "empty.txt", "other.md"):
        (tmp_path / name).write_text("" if name == "empty.txt" else f"{name} one\n\n{name} two\n")
    parts = find_parts(epath.Path(tmp_path), part_bytes=3)
    found = [document.id for part in parts for document in part_documents(part)]
    assert found == ["a#1", "a#2", "b#1", "b#2", "other.md"]


def test_a_fault_in_a_part_is_named_by_the_file_and_where_the_part_begins(tmp_path) -> None:
    path = epath.Path(tmp_path / "passages.jsonl")
    path.write_text(passage(1, random.Random(0)) + "\n" + '{"id": "x"\n')
    last = find_parts(path, part_bytes=40)[-1]
    with pytest.raises(ValueError, match=rf"{path} from byte {last.start} line 1: expected JSON"):
        list(part_documents(FileRange(0, str(path), "jsonl", last.start, last.end)))
