"""What the corpus stage writes is what the others read."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from shares import in_three_shares
from small import CHUNKS, CORPUS, QUESTIONS

from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.artifacts.corpus import SPLITS, Corpus, write_corpus
from radit_jax.data.artifacts.lsr_scores import Scores
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.data.records import Example, Question
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage.workdir import Workdir


@pytest.fixture(scope="module")
def corpus(inputs):
    return Corpus(inputs["corpus"])


def test_chunks_questions_and_texts_come_back_as_they_were_written(corpus):
    assert list(corpus.chunks) == list(CHUNKS)
    assert {split: corpus.questions(split) for split in SPLITS} == QUESTIONS
    assert corpus.documents() == CORPUS.documents
    assert corpus.encoder_groups() == CORPUS.encoder_groups


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


def test_three_processes_find_what_one_finds_and_each_reads_the_chunks_of_its_questions(inputs, monkeypatch):
    corpus = Corpus(inputs["corpus"])
    questions = QUESTIONS["train"]
    rows = np.array([[0, 1, -1], [2, 8, 0], [3, 4, 5], [6, 7, 8]])
    holds, gold = corpus.holds_answer(questions, rows), corpus.is_gold(questions, rows)
    read = []
    by_row = Chunks.by_row
    monkeypatch.setattr(Chunks, "by_row", lambda self, rows: read.append(rows) or by_row(self, rows))
    monkeypatch.setattr(processes, "in_shares", in_three_shares)
    np.testing.assert_array_equal(corpus.holds_answer(questions, rows), holds)
    assert [part.tolist() for part in read] == [rows[[0, 3]].tolist(), rows[[1]].tolist(), rows[[2]].tolist()]
    np.testing.assert_array_equal(corpus.is_gold(questions, rows), gold)
    assert holds.any() and gold.any()


def test_a_gold_chunk_that_the_corpus_lacks_is_named(corpus):
    with pytest.raises(KeyError, match="nowhere"):
        corpus.gold_rows([Question("a", "", (), ("c1", "nowhere"))])


def test_no_questions_have_no_hits(corpus):
    rows = np.zeros((0, 4), int)
    assert corpus.holds_answer([], rows).shape == corpus.is_gold([], rows).shape == (0, 4)


# ---- files of another form ----

QUESTION = asdict(Question("q", "Who?", ("Hob",)))
EXAMPLE = asdict(Example("e", "Who?", "Q: Who?", " Hob"))


@pytest.fixture
def folder(tmp_path):
    return Workdir(tmp_path).folder("corpus", "0123456789ab")


@pytest.mark.parametrize(
    "changed", [{"answers": "Hob"}, {"id": 5}, {"answers": [5]}, {"more": ""}, {"gold_chunks": None}]
)
def test_a_question_of_another_form_is_one_error(folder, changed):
    folder.write_jsonl("questions-train.jsonl", [QUESTION, QUESTION | changed])
    corpus = object.__new__(Corpus)
    corpus._folder = folder
    with pytest.raises(
        ValueError, match=r"questions-train\.jsonl: expected the fields id, question, .* of a Question"
    ):
        corpus.questions("train")
    folder.write_jsonl("lm_ft-train.jsonl", [{"question": QUESTION | changed, "example": EXAMPLE}])
    with pytest.raises(ValueError, match=r"lm_ft-train\.jsonl: expected the fields id, question"):
        corpus.examples("lm_ft", "train")


@pytest.mark.parametrize("example", [None, [], {}, EXAMPLE | {"prompt": None}, EXAMPLE | {"background": 3}])
def test_an_example_of_another_form_is_one_error(folder, example):
    corpus = object.__new__(Corpus)
    corpus._folder = folder
    folder.write_jsonl("r_ft-dev.jsonl", [{"question": QUESTION, "example": example}])
    with pytest.raises(ValueError, match=r"r_ft-dev\.jsonl: expected the fields id, query, .* of a Example"):
        corpus.examples("r_ft", "dev")


@pytest.mark.parametrize("name", ["documents", "encoder_groups"])
@pytest.mark.parametrize(
    "row",
    [{}, {"text": 5, "pairs": 5}, {"text": None, "pairs": [["a"]]}, {"text": ["a"], "pairs": [["a", 5]]}],
)
def test_texts_of_another_form_are_one_error(folder, name, row):
    corpus = object.__new__(Corpus)
    corpus._folder = folder
    folder.write_jsonl(f"{name}.jsonl", [row])
    with pytest.raises(ValueError, match=rf"{name}\.jsonl: expected (pairs of )?texts, got"):
        getattr(corpus, name)()


def test_the_examples_of_a_finished_corpus_that_are_gone_are_not_replaced_by_others(folder):
    write_corpus(
        folder, replace(CORPUS, examples={("lm_ft", "train"): [(QUESTIONS["train"][0], Example(**EXAMPLE))]})
    )
    folder.finish()
    assert Corpus(folder).examples("r_ft", "train") is None  # made of questions
    (folder.path / "lm_ft-train.jsonl").unlink()
    with pytest.raises(
        ValueError, match=r"lm_ft-train\.jsonl: expected the \d+ bytes that were written, got 0\. Delete"
    ):
        Corpus(folder).examples("lm_ft", "train")


def test_arrays_that_do_not_belong_to_the_examples_are_refused(folder):
    rows = np.zeros((2, 3), int)
    Retrieved([Example(**EXAMPLE)] * 2, rows, rows.astype(np.float32)).save(folder, "train")
    assert len(Retrieved.load(folder, "train").examples) == 2
    folder.write_jsonl("train.jsonl", [EXAMPLE])
    with pytest.raises(
        ValueError, match=r"train\.npz: expected what was retrieved for 1 examples, got .*\(2, 3\)"
    ):
        Retrieved.load(folder, "train")
    folder.write_arrays("train.npz", rows=rows)
    for load in (lambda: Retrieved.load(folder, "train"), lambda: Scores.load(folder, "train.npz")):
        with pytest.raises(ValueError, match=r"train\.npz: expected arrays of numpy"):
            load()
