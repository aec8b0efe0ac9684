"""The row of an id is found through a mapped file, and is never another chunk's."""

import io

import numpy as np
import pytest
from small import CHUNKS

from radit_jax.data.artifacts import chunk_rows
from radit_jax.data.artifacts.chunk_rows import CHUNK_ROWS, ChunkRows, id_hash
from radit_jax.data.artifacts.chunk_writing import write_chunks
from radit_jax.data.artifacts.corpus import PREPARED, Corpus, copy_chunks
from radit_jax.data.records import Chunk
from radit_jax.data.sources import beam
from radit_jax.runtime.storage.workdir import Workdir

IDS = [chunk.id for chunk in CHUNKS]


@pytest.fixture
def folder(tmp_path):
    return Workdir(tmp_path).folder("corpus", "0123456789ab")


def written(folder, chunks=CHUNKS):
    write_chunks(folder, iter(chunks), chunks_per_file=4)
    folder.finish(chunks=len(chunks))
    return Corpus(folder)


def test_every_id_has_its_row_and_no_other_id_has_one(folder):
    rows = written(folder).rows
    assert dict(rows) == {chunk_id: row for row, chunk_id in enumerate(IDS)}
    assert len(rows) == len(CHUNKS)
    assert rows.find(["short", "c", "c0", "short", ""]).tolist() == [9, -1, 0, 9, -1]
    assert rows.find([]).tolist() == []
    assert rows.get("c") is None and "c" not in rows
    with pytest.raises(KeyError, match="none"):
        rows.rows_of(["c0", "none"])


def test_the_keys_are_mapped_and_have_8_bytes_a_chunk(folder):
    keys = written(folder).rows._keys
    assert isinstance(keys, np.memmap) and keys.nbytes == 8 * len(CHUNKS)
    hashes = [int.from_bytes(id_hash(chunk_id), "little") for chunk_id in IDS]
    assert sorted(zip(hashes, range(10), strict=True)) == [(key >> 32, key % 2**32) for key in keys.tolist()]


def test_ids_that_share_a_hash_are_told_apart(folder, monkeypatch):
    monkeypatch.setattr(chunk_rows, "id_hash", lambda _: b"\xff\xff\xff\xff")
    monkeypatch.setattr("radit_jax.data.artifacts.chunk_writing.id_hash", lambda _: b"\xff\xff\xff\xff")
    rows = written(folder).rows
    assert dict(rows) == {chunk_id: row for row, chunk_id in enumerate(IDS)}
    assert rows.find(["c", "long"]).tolist() == [-1, 8]


def test_an_id_that_stands_twice_has_the_last_row(folder):
    rows = written(folder, [*CHUNKS, Chunk("c1", "", "Again.")]).rows
    assert (rows["c1"], rows["c2"]) == (10, 2)


def test_a_corpus_of_an_earlier_version_has_the_same_rows(folder):
    write_chunks(folder, iter(CHUNKS), chunks_per_file=4)
    (folder.path / CHUNK_ROWS).unlink()
    (folder.path / f"{CHUNK_ROWS}.sha256").unlink()
    folder.finish(chunks=len(CHUNKS))
    corpus = Corpus(folder)
    assert CHUNK_ROWS not in folder.manifest["files"]
    rows = corpus.rows
    assert dict(rows) == {chunk_id: row for row, chunk_id in enumerate(IDS)}
    assert isinstance(rows._keys, np.memmap)


def test_keys_of_another_corpus_are_refused(folder):
    write_chunks(folder, iter(CHUNKS))
    folder.write_array(CHUNK_ROWS, np.zeros(9, "<u8"))
    with pytest.raises(ValueError, match=r"chunk_rows\.npy: expected 10 keys of 64 bits, .* got uint64 of"):
        Corpus(folder).rows  # noqa: B018


def test_damaged_keys_are_refused_when_the_corpus_is_opened(folder):
    written(folder)
    path = folder.path / CHUNK_ROWS
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(ValueError, match=r"chunk_rows\.npy: expected the bytes that were written"):
        Corpus(folder)


def test_no_chunks_have_no_rows(folder):
    write_chunks(folder, iter([]))
    assert dict(Corpus(folder).rows) == {}
    assert len(ChunkRows.of(Corpus(folder).chunks)) == 0


def test_chunks_that_beam_prepared_have_the_rows_of_the_local_path(folder, tmp_path):
    """What a worker writes of two files, in any order, and the stage that takes them over."""
    for number, rows in enumerate((range(6), range(6, 10))):
        numbered = [(row, (CHUNKS[row].id, CHUNKS[row].title, CHUNKS[row].text)) for row in rows]
        beam.write_file((number, numbered[::-1]), str(tmp_path / "out"))
    (tmp_path / "out" / PREPARED).write_text('{"chunks": 10, "max_words": 9, "counts": {}}')
    copy_chunks(folder, tmp_path / "out")
    local = written(Workdir(tmp_path / "local").folder("corpus", "0123456789ab"))
    assert np.array_equal(np.load(folder.path / CHUNK_ROWS), local.rows._keys)
    assert dict(Corpus(folder).rows) == dict(local.rows)


def test_many_keys_are_made_block_by_block(monkeypatch):
    monkeypatch.setattr(chunk_rows, "_HASHES_AT_ONCE", 3)
    hashes = [5, 1, 5, 0, 2**32 - 1, 1, 7]
    keys = np.zeros(7, "<u8")
    chunk_rows._fill(keys, io.BytesIO(np.array(hashes, "<u4").tobytes()))
    assert [divmod(key, 2**32) for key in keys.tolist()] == sorted((h, row) for row, h in enumerate(hashes))
