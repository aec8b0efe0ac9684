"""What the corpus stage writes is what the others read."""

from dataclasses import replace

import numpy as np
import pytest
from small import CHUNKS, CORPUS, QUESTIONS

from radit_jax.data.corpus import SPLITS, Chunks, Corpus, write_corpus
from radit_jax.data.records import Example, Question
from radit_jax.runtime.store import Workdir


@pytest.fixture(scope="module")
def corpus(inputs):
    return Corpus(inputs["corpus"])


def test_chunks_questions_and_texts_come_back_as_they_were_written(corpus):
    assert list(corpus.chunks) == list(CHUNKS)
    assert {split: corpus.questions(split) for split in SPLITS} == QUESTIONS
    assert corpus.documents() == CORPUS.documents
    assert corpus.encoder_groups() == CORPUS.encoder_groups


def test_chunks_are_read_by_row_in_any_order_and_as_often_as_asked(corpus):
    assert len(corpus.chunks) == len(CHUNKS)
    assert corpus.chunks[9] == CHUNKS[9]
    assert corpus.chunks.take(np.array([3, 0, 3])) == [CHUNKS[3], CHUNKS[0], CHUNKS[3]]
    assert corpus.chunks.take([]) == []


def test_chunks_of_several_files_are_read_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr("radit_jax.data.corpus.CHUNKS_PER_FILE", 4)
    folder = Workdir(tmp_path).folder("corpus", "x")
    for chunks in (CHUNKS[:8], CHUNKS[:9]):  # the second time over the first
        assert write_corpus(folder, replace(CORPUS, chunks=iter(chunks))) == len(chunks)
        read = Chunks(folder)
        assert list(read) == list(chunks)
        assert read.take([7, 0, 4, 7]) == [CHUNKS[7], CHUNKS[0], CHUNKS[4], CHUNKS[7]]
    assert len(list((folder.path / "chunks.array_record").iterdir())) == 3
    export = Workdir(tmp_path).published("export", "a" * 12)
    export.adopt(folder, "chunks.array_record")
    assert list(Chunks(export)) == list(CHUNKS[:9])
    with pytest.raises(IndexError, match="rows 2 to 9 came, there are 9"):
        read.take([2, 9])


def test_a_row_is_where_the_chunk_of_an_id_lies(corpus):
    assert [corpus.rows[chunk.id] for chunk in CHUNKS] == list(range(len(CHUNKS)))


def test_a_chunk_holds_an_answer_as_whole_words_in_title_or_text(corpus):
    questions = [
        Question("a", "", ("Hob Crane", "Bo Marsh")),  # either will do
        Question("b", "", ("Elm",)),  # in the title too
        Question("c", "", ("Dray Tow",)),  # a part of a word
    ]
    rows = np.array([[0, 1, 2, -1], [1, 0, 8, -1], [0, -1, 8, 8]])
    wanted = [[True, False, True, False], [True, False, True, False], [False] * 4]
    np.testing.assert_array_equal(corpus.holds_answer(questions, rows), wanted)


def test_gold_chunks_are_known_by_id_and_no_row_is_none(corpus):
    questions = [Question("a", "", (), ("c1", "long")), Question("b", "", ())]
    rows = np.array([[8, 1, 0, -1], [8, 1, 0, -1]])
    wanted = [[True, True, False, False], [False] * 4]
    np.testing.assert_array_equal(corpus.is_gold(questions, rows), wanted)


def test_the_source_of_an_example_is_a_row_and_no_source_reads_no_chunk(inputs):
    corpus, task = Corpus(inputs["corpus"]), Example("a", "", "", "")
    assert corpus.source_rows([task]).tolist() == [-1]
    assert "rows" not in vars(corpus)
    examples = [task, replace(task, source_chunk="long"), replace(task, source_chunk="of another corpus")]
    assert corpus.source_rows(examples).tolist() == [-1, 8, -1]


def test_no_questions_have_no_hits(corpus):
    rows = np.zeros((0, 4), int)
    assert corpus.holds_answer([], rows).shape == corpus.is_gold([], rows).shape == (0, 4)
