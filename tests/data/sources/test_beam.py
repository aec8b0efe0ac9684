"""Beam's own runner makes the local path's files, and the corpus stage takes them over."""

import json
import pathlib
import random
from collections import Counter

import pytest
from corpus_forms import CORPORA, passage, write_form
from etils import epath

from radit_jax.config import MeshConfig
from radit_jax.data.artifacts import corpus
from radit_jax.data.artifacts.chunk_rows import CHUNK_HASHES, id_hash
from radit_jax.data.artifacts.chunk_writing import write_chunks
from radit_jax.data.artifacts.chunks import CHUNKS, Chunks
from radit_jax.data.readers import parts
from radit_jax.data.sources import beam
from radit_jax.data.sources.instructions import read_chunks
from radit_jax.runtime.storage.bucket import put_file
from radit_jax.runtime.storage.files import write_whole
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.runtime.storage.workdir import Workdir
from radit_jax.stages.corpus import run_chunks


@pytest.fixture(params=CORPORA)
def path(request, tmp_path) -> epath.Path:
    return write_form(request.param, tmp_path)


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
    hashes = b"".join(id_hash(chunk.id) for chunk in Chunks(local))
    write_whole(folder / "out" / CHUNK_HASHES / "00000", hashes)
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
    monkeypatch.setattr(parts.find_parts, "__defaults__", ("auto", "auto", 400))
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
