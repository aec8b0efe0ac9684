"""Parts of a corpus hold each document once, and Beam's own runner makes the local path's files."""

import json
import pathlib
import random
from collections import Counter

import pytest
from etils import epath

from radit_jax.config import MeshConfig
from radit_jax.data.artifacts import corpus
from radit_jax.data.artifacts.chunks import CHUNKS, write_chunks
from radit_jax.data.readers.documents import read_documents
from radit_jax.data.sources import beam
from radit_jax.data.sources.instructions import read_chunks
from radit_jax.runtime.storage.bucket import put_file
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.runtime.storage.workdir import Workdir
from radit_jax.stages.corpus import run_chunks

WORDS = ["a", "tern", "dives", "for", "small", "fish", "über", "the", "sea"]


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randrange(1, 30)))


def kilt_page(number: int, rng: random.Random) -> str:
    text = ["Tern\n", sentence(rng), "Section::::Diet.\n", sentence(rng)]
    return json.dumps({"wikipedia_id": str(number), "wikipedia_title": "Tern", "text": text})


def passage(number: int, rng: random.Random) -> str:
    return json.dumps({"id": f"p{number}", "title": "Tern", "text": sentence(rng) if number % 7 else " "})


def row(number: int, rng: random.Random) -> str:
    text = sentence(rng) if number % 5 else f'"{sentence(rng)} ""7""\t{sentence(rng)}"'
    return f"{number}\t{text}\tTern"


CORPORA = {"passages.jsonl": passage, "psgs_w100.tsv": row, "kilt_knowledgesource.json": kilt_page}


@pytest.fixture(params=CORPORA)
def path(request, tmp_path) -> epath.Path:
    """A corpus of sixty documents in one of the forms."""
    rng = random.Random(0)
    lines = [CORPORA[request.param](number, rng) for number in range(1, 61)]
    head = ["id\ttext\ttitle"] if request.param.endswith("tsv") else []
    (tmp_path / request.param).write_text("\n".join([*head, *lines]) + "\n")
    return epath.Path(tmp_path / request.param)


@pytest.mark.parametrize("part_bytes", [61, 400, 1 << 20])
def test_the_parts_hold_every_document_once_and_in_order(path, part_bytes) -> None:
    wanted = [document[:2] for document in read_documents(path)]
    parts = beam.find_parts(path, part_bytes=part_bytes)
    assert [part.number for part in parts] == list(range(len(parts)))
    assert [document[:2] for part in parts for document in beam.part_documents(part)] == wanted


@pytest.mark.parametrize("part_bytes", range(1, 14))
def test_a_line_belongs_to_the_part_in_which_it_begins(tmp_path, part_bytes) -> None:
    lines = [b"{}\n", b"\n", b"long enough\n", b"no end"]
    (tmp_path / "passages.jsonl").write_bytes(b"".join(lines))
    parts = beam.find_parts(epath.Path(tmp_path / "passages.jsonl"), part_bytes=part_bytes)
    assert [line for part in parts for line in beam.part_lines(part)] == lines


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
    (part,) = beam.find_parts(path, quoting=quoting, part_bytes=5)
    wanted = [document[:2] for document in read_documents(path, quoting=quoting)]
    assert [document[:2] for document in beam.part_documents(part)] == wanted


def test_a_table_without_a_head_is_cut_at_its_lines(tmp_path) -> None:
    path = epath.Path(tmp_path / "collection.tsv")
    path.write_text("".join(f"{number}\ttext {number}\n" for number in range(9)))
    parts = beam.find_parts(path, part_bytes=20)
    assert len(parts) > 3
    assert [d.id for part in parts for d in beam.part_documents(part)] == [str(n) for n in range(9)]


def test_each_text_of_a_folder_is_a_part(tmp_path) -> None:
    for name in ("b.txt", "a.txt", "empty.txt", "other.md"):
        (tmp_path / name).write_text("" if name == "empty.txt" else f"{name} one\n\n{name} two\n")
    parts = beam.find_parts(epath.Path(tmp_path), part_bytes=3)
    found = [document.id for part in parts for document in beam.part_documents(part)]
    assert found == ["a#1", "a#2", "b#1", "b#2", "other.md"]


def test_a_fault_in_a_part_is_named_by_the_file_and_where_the_part_begins(tmp_path) -> None:
    path = epath.Path(tmp_path / "passages.jsonl")
    path.write_text(passage(1, random.Random(0)) + "\n" + '{"id": "x"\n')
    last = beam.find_parts(path, part_bytes=40)[-1]
    with pytest.raises(ValueError, match=rf"{path} from byte {last.start} line 1: expected JSON"):
        list(beam.part_documents(beam.FileRange(0, str(path), "jsonl", last.start, last.end)))


def test_an_id_that_came_twice_is_refused() -> None:
    beam.refuse_repeated(("a", ["x line 1"]))
    with pytest.raises(ValueError, match="x line 9: expected an id .*, got 'a', .* of x line 1. Rename one"):
        beam.refuse_repeated(("a", ["x line 9", "x line 1"]))


def test_rows_are_counted_through_the_parts_however_they_come() -> None:
    counted = [(2, 3, {"documents": 2}), (0, 5, {"documents": 1}), (1, 0, {"documents": 4})]
    facts = beam.summarise(counted)
    assert facts == {"starts": {0: 0, 1: 5, 2: 5}, "chunks": 8, "counts": {"documents": 7}}


def test_without_beam_the_command_says_what_to_install(monkeypatch, path, tmp_path, capsys) -> None:
    monkeypatch.setitem(__import__("sys").modules, "apache_beam", None)
    assert beam.main([f"--corpus={path}", f"--output={tmp_path / 'out'}"]) == 1
    assert "pip install 'radit_jax[beam]' in an environment of its own" in capsys.readouterr().err


# ---- what was prepared, in the corpus stage ----


def prepare_by_hand(folder: pathlib.Path, max_words: int) -> StageFolder:
    """A prepared folder as Beam leaves it, out of the local path's chunks."""
    rows = [json.loads(passage(number, random.Random(number))) for number in range(1, 30)]
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "passages.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    counts = Counter[str]()
    local = Workdir(folder / "local").folder("corpus", "0" * 12)
    number = write_chunks(local, read_chunks(str(folder / "in"), "auto", max_words, counts))
    for file in (local.path / CHUNKS).iterdir():
        put_file(file, folder / "out" / CHUNKS / file.name)
    facts = {"chunks": number, "max_words": max_words, "counts": dict(counts), "format": "jsonl"}
    (folder / "out" / corpus.PREPARED).write_text(json.dumps(facts))
    return local


def test_the_corpus_stage_takes_prepared_chunks_over(tmp_path) -> None:
    local = prepare_by_hand(tmp_path, max_words=9)
    options = {"format": "auto", "quoting": "auto", "max_words": 9, "mesh": MeshConfig()}
    folders = [Workdir(tmp_path / name).folder("corpus", "1" * 12) for name in ("a", "b")]
    facts = [
        run_chunks({}, folder, passages=str(tmp_path / source), **options)
        for folder, source in zip(folders, ("in", "out"), strict=True)
    ]
    assert {**facts[0], "passages": ""} == {**facts[1], "passages": ""}
    for folder in (local, *folders):
        folder.finish()
    assert folders[0].manifest["files"] == folders[1].manifest["files"] == local.manifest["files"]


def test_chunks_of_another_length_are_refused(tmp_path) -> None:
    prepare_by_hand(tmp_path, max_words=9)
    with pytest.raises(
        ValueError, match="expected chunks of fewer than 20 words, got .* 9. Set data.max_words=9"
    ):
        corpus.prepared(tmp_path / "out", 20)


@pytest.mark.parametrize(
    "facts",
    [
        'nks": 3}',
        "[]",
        '{"zz": 20}',
        '{"chunks": "3", "max_words": 9, "counts": {}}',
        '{"chunks": 3, "max_words": 9}',
    ]
    + ['{"chunks": 3, "max_words": 9, "counts": {"a": "b"}}', '{"chunks": -1, "max_words": 9, "counts": {}}'],
)
def test_facts_of_another_form_are_one_error(tmp_path, facts) -> None:
    prepare_by_hand(tmp_path, max_words=9)
    (tmp_path / "out" / corpus.PREPARED).write_text(facts)
    with pytest.raises(ValueError, match=r"chunks\.json: expected .* Prepare the corpus again"):
        corpus.prepared(tmp_path / "out", 9)


def test_prepared_chunks_of_which_a_part_is_gone_are_refused(tmp_path) -> None:
    prepare_by_hand(tmp_path, max_words=9)
    options = {
        "passages": str(tmp_path / "out"),
        "format": "auto",
        "quoting": "auto",
        "max_words": 9,
        "mesh": MeshConfig(),
    }
    [file] = (tmp_path / "out" / CHUNKS).iterdir()
    for damage, fault in (
        (
            lambda: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
            f"{file}: expected an ArrayRecord",
        ),
        (file.unlink, r"expected the \d+ chunks of chunks\.json, got 0\. Prepare"),
    ):
        damage()
        with pytest.raises(ValueError, match=fault):
            run_chunks({}, Workdir(tmp_path / "a").folder("corpus", "1" * 12), **options)


# ---- Beam ----


@pytest.fixture
def direct():
    return pytest.importorskip("apache_beam")


def test_beams_direct_runner_makes_the_local_paths_files(direct, path, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(beam, "CHUNKS_PER_FILE", 50)
    monkeypatch.setattr(beam.find_parts, "__defaults__", ("auto", "auto", 400))
    counts = Counter[str]()
    local = Workdir(tmp_path / "local").folder("corpus", "0" * 12)
    number = write_chunks(local, read_chunks(str(path), "auto", 9, counts), chunks_per_file=50)
    facts = beam.prepare(str(path), "auto", 9, str(tmp_path / "out"))
    assert facts == {"chunks": number, "max_words": 9, "counts": counts}
    wanted = {file.name: file.read_bytes() for file in (local.path / CHUNKS).iterdir()}
    assert len(wanted) > 2
    assert {file.name: file.read_bytes() for file in (tmp_path / "out" / CHUNKS).iterdir()} == wanted


def test_beam_refuses_an_id_that_came_twice_and_commits_nothing(direct, tmp_path) -> None:
    line = passage(1, random.Random(0)) + "\n"
    (tmp_path / "passages.jsonl").write_text(line * 2)
    with pytest.raises(Exception, match="got 'p1', which is also that of .*passages.jsonl line 1"):
        beam.prepare(str(tmp_path), "auto", 9, str(tmp_path / "out"))
    assert not (tmp_path / "out" / corpus.PREPARED).exists()


def test_chunks_that_are_there_are_not_written_over(direct, tmp_path, capsys) -> None:
    (tmp_path / "passages.jsonl").write_text(passage(1, random.Random(0)) + "\n")
    words = [f"--corpus={tmp_path}", f"--output={tmp_path / 'out'}", "--max-words=9"]
    assert beam.main(words) == 0
    assert "chunks of 1 documents" in capsys.readouterr().out
    assert beam.main(words) == 1
    assert "expected a folder without chunks, got some. Delete it" in capsys.readouterr().err
