"""A large corpus is cut as a small one is, by any number of processes, and a killed run goes on."""

import contextlib
import json
import os
import random
import signal
from collections import Counter

import pytest
from corpus_forms import CORPORA, passage, write_form
from etils import epath

from radit_jax.config import Folder, MeshConfig
from radit_jax.data.artifacts.chunk_writing import write_chunks
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.readers.documents import ids_with_places
from radit_jax.data.readers.parts import find_parts
from radit_jax.data.sources import cutting
from radit_jax.data.sources.cutting import CUTTING, NOTE, cut_corpus, cut_part, parts_of_large
from radit_jax.data.sources.instructions import read_chunks
from radit_jax.errors import Stopped
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage.workdir import Workdir
from radit_jax.stages import corpus as stage

MAX_WORDS = 9
PER_FILE = 25


@pytest.fixture(params=CORPORA)
def path(request, tmp_path):
    return write_form(request.param, tmp_path)


@pytest.fixture
def passages(tmp_path):
    return write_form("passages.jsonl", tmp_path)


def stage_folder(path, name):
    return Workdir(epath.Path(path).parent / name).folder("corpus", "0" * 12)


def cut(folder, path, num_processes=1, part_bytes=400, per_file=PER_FILE):
    parts = find_parts(path, part_bytes=part_bytes)
    assert len(parts) > 5

    def read_ids():
        return ids_with_places(path, "auto", MAX_WORDS)

    return cut_corpus(folder, parts, MAX_WORDS, read_ids, num_processes, per_file)


def local(path):
    """The folder of the path for small corpora, with what it says."""
    counts = Counter()
    folder = stage_folder(path, "local")
    number = write_chunks(folder, read_chunks(str(path), "auto", MAX_WORDS, counts), PER_FILE)
    folder.finish()
    return folder, (number, counts)


def files_of(folder):
    """What the manifest says of each file: its size and its hash."""
    folder.finish()
    return folder.manifest["files"]


def test_the_files_are_those_of_the_path_for_small_corpora(path):
    wanted, said = local(path)
    folder = stage_folder(path, "cut")
    assert cut(folder, path) == said
    assert files_of(folder) == wanted.manifest["files"]
    assert not (folder.path / CUTTING).exists()
    corpus = Corpus(folder)
    assert dict(corpus.rows) == {chunk.id: row for row, chunk in enumerate(corpus.chunks)}


def test_two_processes_cut_the_same(passages):
    wanted, said = local(passages)
    folder = stage_folder(passages, "cut")
    assert cut(folder, passages, num_processes=2) == said
    assert files_of(folder) == wanted.manifest["files"]


class Killed(Exception):
    """In place of a kill."""


def cut_until(folder, path, part, monkeypatch, **options):
    """A run that ends when it comes to `part`; the numbers of the parts that it has cut."""
    done = []

    def cut_or_end(found, max_words):
        if found.number == part:
            raise Killed
        done.append(found.number)
        return cut_part(found, max_words)

    monkeypatch.setattr(cutting, "cut_part", cut_or_end)
    with contextlib.suppress(Killed):
        cut(folder, path, **options)
    monkeypatch.setattr(cutting, "cut_part", cut_part)
    return done


@pytest.mark.parametrize("part", range(0, 12, 2))
def test_a_killed_run_goes_on_with_the_part_of_the_next_file(path, part, monkeypatch, capsys):
    wanted, said = local(path)
    folder = stage_folder(path, "cut")
    done = cut_until(folder, path, part, monkeypatch)
    note = folder.path / CUTTING / NOTE
    kept = json.loads(note.read_text()) if note.exists() else {"num_files": 0, "part": 0}
    again = cut_until(folder, path, None, monkeypatch)
    assert again[0] == kept["part"] <= len(done)
    assert (f"{kept['num_files']} files of chunks are there" in capsys.readouterr().out) is note_was(kept)
    assert files_of(folder) == wanted.manifest["files"]
    assert said[0] == len(Corpus(folder).chunks)


def note_was(kept):
    return kept["num_files"] > 0


def test_a_run_may_be_killed_again_and_again(passages, monkeypatch):
    wanted, said = local(passages)
    folder = stage_folder(passages, "cut")
    for part in (4, 5, 6, 9, 11):
        cut_until(folder, passages, part, monkeypatch)
    assert cut(folder, passages) == said
    assert files_of(folder) == wanted.manifest["files"]


def test_a_stop_is_heeded_after_a_part_and_whole_files_are_kept(passages, monkeypatch):
    wanted, said = local(passages)
    folder = stage_folder(passages, "cut")
    done = []

    def cut_and_signal(found, max_words):
        done.append(found.number)
        if found.number == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return cut_part(found, max_words)

    monkeypatch.setattr(cutting, "cut_part", cut_and_signal)
    with processes.handling_signals(), pytest.raises(Stopped, match="at corpus; what was finished is kept"):
        cut(folder, passages)
    assert done == list(range(10))
    assert cut_until(folder, passages, None, monkeypatch)[0] > 0
    assert files_of(folder) == wanted.manifest["files"]
    assert len(Corpus(folder).chunks) == said[0]


def test_what_is_damaged_or_of_other_settings_is_cut_from_the_start(passages, monkeypatch):
    wanted, _ = local(passages)
    damages = [
        lambda scratch, files: (scratch / NOTE).write_text("{"),
        lambda scratch, files: (scratch / NOTE).write_text('{"num_files": 1}'),
        lambda scratch, files: files[0].write_bytes(files[0].read_bytes()[:9000]),
        lambda scratch, files: files[0].unlink(),
    ]
    for number, damage in enumerate(damages):
        folder = stage_folder(passages, f"cut{number}")
        cut_until(folder, passages, 9, monkeypatch)
        damage(folder.path / CUTTING, sorted((folder.path / "chunks.array_record").iterdir()))
        assert cut_until(folder, passages, None, monkeypatch)[0] == 0
        assert files_of(folder) == wanted.manifest["files"]
    # A run with parts of another length left the note.
    folder = stage_folder(passages, "other")
    cut_until(folder, passages, 9, monkeypatch, part_bytes=300)
    assert cut_until(folder, passages, None, monkeypatch)[0] == 0
    assert files_of(folder) == wanted.manifest["files"]


@pytest.mark.parametrize("part", [None, 9])
def test_an_id_that_stands_twice_is_named_with_both_lines(passages, part, monkeypatch):
    """Once before and once after the place where a run was killed, and commits nothing."""
    with passages.open("a") as file:
        file.write(passage(2, random.Random(5)) + "\n")
    folder = stage_folder(passages, "cut")
    if part:
        cut_until(folder, passages, part, monkeypatch)
    with pytest.raises(ValueError, match="line 61: expected an id .*, got 'p2.*', .* of .* line 2. Rename"):
        cut(folder, passages)
    assert not folder.has("chunks.array_record")


def test_only_a_large_file_of_lines_is_cut_so(passages, monkeypatch):
    assert parts_of_large(passages, "jsonl", "auto") == []
    monkeypatch.setattr(cutting, "LARGE", 1000)
    monkeypatch.setattr(cutting, "PART_BYTES", 400)
    assert len(parts_of_large(passages, "jsonl", "auto")) > 5
    lines = passages.read_text().splitlines()
    passages.write_text("[" + ",\n".join(lines) + "]")
    assert parts_of_large(passages, "jsonl", "auto") == []


def test_the_stage_says_the_same_of_a_large_corpus(passages, monkeypatch):
    options = {"passages": str(passages), "format": "auto", "quoting": "auto", "mesh": MeshConfig()}
    facts, files = [], []
    for name in ("small", "large"):
        folder = stage_folder(passages, name)
        facts.append(stage.run_chunks({}, folder, max_words=MAX_WORDS, **options))
        files.append(files_of(folder))
        monkeypatch.setattr(cutting, "LARGE", 1000)
        monkeypatch.setattr(cutting, "PART_BYTES", 400)
        monkeypatch.setattr(stage, "num_cores", lambda: 1)
    assert facts[0] == facts[1]
    assert files[0] == files[1]


def test_a_large_folder_of_own_data_gives_the_same_files(passages, monkeypatch):
    lines = []
    for number in range(1, 61):
        line = {"id": f"q{number}", "question": f"{number}?", "answers": ["fish", "sea"]}
        lines.append(json.dumps({**line, "positive_passage_id": f"p{number}"}) + "\n")
    (passages.parent / "questions.jsonl").write_text("".join(lines))
    settings = Folder(str(passages.parent), max_words=MAX_WORDS)
    facts, files, cut_by = [], [], []

    def noting(*arguments, **options):
        cut_by.append(len(files))
        return cut_corpus(*arguments, **options)

    monkeypatch.setattr(stage, "cut_corpus", noting)
    for name in ("small", "large"):
        folder = stage_folder(passages, name)
        facts.append(stage.run({}, folder, data=settings, seed=0, mesh=MeshConfig()))
        files.append(files_of(folder))
        monkeypatch.setattr(cutting, "LARGE", 1000)
        monkeypatch.setattr(cutting, "PART_BYTES", 400)
        monkeypatch.setattr(stage, "num_cores", lambda: 1)
    assert facts[0] == facts[1] and files[0] == files[1]
    assert cut_by == [1]  # the second alone


def test_a_large_corpus_without_text_is_refused(tmp_path, monkeypatch):
    lines = [json.dumps({"id": str(number), "title": "", "text": " "}) for number in range(50)]
    (tmp_path / "passages.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(cutting, "LARGE", 1000)
    monkeypatch.setattr(cutting, "PART_BYTES", 400)
    monkeypatch.setattr(stage, "num_cores", lambda: 1)
    options = {"format": "auto", "quoting": "auto", "max_words": 9, "mesh": MeshConfig()}
    folder = stage_folder(tmp_path / "passages.jsonl", "cut")
    with pytest.raises(ValueError, match="expected a document with text to retrieve, got none"):
        stage.run_chunks({}, folder, passages=str(tmp_path), **options)
