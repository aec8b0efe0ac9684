"""Which examples there are, and which chunks they get."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from exact import assert_rounded
from small import CHUNKS, LONG, QUESTIONS, SHORT

from radit_jax.config import MeshConfig
from radit_jax.data.artifacts.corpus import CorpusData, write_corpus
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.data.batches.examples import question_example
from radit_jax.data.records import Question
from radit_jax.models.decoder import DecoderLm
from radit_jax.retrieval.exact import ExactIndex
from radit_jax.runtime.pretrained.model_io import save_model
from radit_jax.runtime.pretrained.tokenizer_files import load_tokenizer
from radit_jax.runtime.pretrained.tokenizer_training import train_bpe
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.runtime.storage.workdir import Workdir
from radit_jax.selfcheck.tiny_models import random_params
from radit_jax.stages import retrieve

ROW = {chunk.id: row for row, chunk in enumerate(CHUNKS)}
TRAIN = QUESTIONS["train"]


def run_lm_ft(inputs, folder, **changed):
    settings = {
        "chunks_per_example": 2,
        "corpus_text_fraction": 0.0,
        "gold_context_fraction": 0.0,
        "force_gold": False,
        "retrieved_background": True,
        "max_length": 500,
    }
    output = StageFolder(folder)
    facts = retrieve.run_lm_ft(inputs, output, **{**settings, "seed": 0, **changed}, mesh=MeshConfig())
    return facts, Retrieved.load(output, "train"), Retrieved.load(output, "dev")


def run_r_ft(inputs, folder, **changed):
    settings = {"num_chunks": 3, "corpus_text_fraction": 0.0, "text_tokens": 2, "num_examples": 0}
    settings |= {"max_length": 500, "seed": 0}
    output = StageFolder(folder)
    facts = retrieve.run_r_ft(inputs, output, **{**settings, **changed}, mesh=MeshConfig())
    return facts, Retrieved.load(output, "train")


def test_a_gold_chunk_takes_the_last_place_only_where_none_was_retrieved():
    questions = [
        Question("missing", "", (), ("c5", "c6")),
        Question("first", "", (), ("c1",)),
        Question("second gold", "", (), ("c7", "c2")),
        Question("unknown", "", ()),
    ]
    rows = np.array([[1, 2], [1, 2], [1, 2], [1, 2]])
    assert retrieve.with_gold(rows, questions, ROW).tolist() == [[1, 5], [1, 2], [1, 2], [1, 2]]
    assert rows.tolist() == [[1, 2]] * 4  # its input is as it was


def test_forced_gold_is_among_the_chunks_of_every_question_that_has_one(inputs, tmp_path):
    _, free, _ = run_lm_ft(inputs, tmp_path / "free", chunks_per_example=1, corpus_text_fraction=0.5)
    _, forced, dev = run_lm_ft(
        inputs, tmp_path / "forced", chunks_per_example=1, corpus_text_fraction=0.5, force_gold=True
    )
    with_gold = [number for number, question in enumerate(TRAIN) if question.gold_chunks]
    gold = [[ROW[TRAIN[number].gold_chunks[0]]] for number in with_gold]
    assert forced.chunk_rows[with_gold].tolist() == gold != free.chunk_rows[with_gold].tolist()
    others = np.setdiff1d(np.arange(len(free.examples)), with_gold)
    np.testing.assert_array_equal(forced.chunk_rows[others], free.chunk_rows[others])
    assert dev.chunk_rows.tolist() == [[4], [5]]


def test_a_question_to_be_read_has_its_first_gold_chunk_and_no_other():
    questions = [
        Question("read", "", (), ("c5", "c6")),
        Question("not read", "", (), ("c5",)),
        Question("unknown", "", ()),
    ]
    rows = np.array([[1, 5, 2], [1, 2, 3], [1, 2, 3]])
    alone = retrieve.with_gold_alone(rows, questions, ROW, np.array([True, False, True]))
    assert alone.tolist() == [[5, -1, -1], [1, 2, 3], [1, 2, 3]]
    assert rows[0].tolist() == [1, 5, 2]  # its input is as it was


def test_of_reading_only_train_questions_are_read(inputs, tmp_path):
    _, retrieved, dev = run_lm_ft(
        inputs, tmp_path / "out", gold_context_fraction=1.0, corpus_text_fraction=0.5
    )
    assert retrieved.chunk_rows[:3].tolist() == [[0, -1], [1, -1], [2, -1]]
    assert (retrieved.chunk_rows[3:] >= 0).all()  # no gold chunk is known of the question, none is of a text
    assert (dev.chunk_rows >= 0).all()


@pytest.mark.parametrize("run", [run_lm_ft, run_r_ft])
def test_a_text_example_retrieves_every_chunk_but_its_own(inputs, tmp_path, run):
    everything = {"chunks_per_example": 9} if run is run_lm_ft else {"num_chunks": 9}
    retrieved = run(inputs, tmp_path / "out", corpus_text_fraction=0.6, **everything)[1]
    texts = np.flatnonzero(~retrieved.is_question)
    assert len(texts) == 6
    for number in texts:
        own = ROW[retrieved.examples[number].source_chunk]
        assert sorted(retrieved.chunk_rows[number]) == [row for row in range(10) if row != own]


@pytest.mark.parametrize(("fraction", "texts"), [(0.0, 0), (0.2, 1), (0.5, 4), (0.6, 6)])
def test_text_examples_are_the_given_fraction_of_all(inputs, tmp_path, fraction, texts):
    facts, retrieved, dev = run_lm_ft(inputs, tmp_path / "out", corpus_text_fraction=fraction)
    assert (facts["questions"], facts["text_examples"]) == (4, texts)
    assert (~retrieved.is_question).tolist() == [False] * 4 + [True] * texts
    assert dev.is_question.tolist() == [True, True]  # whatever the fraction


def test_a_question_too_long_for_a_row_is_left_out_with_its_chunks_and_counted(inputs, tmp_path):
    facts, whole = run_r_ft(inputs, tmp_path / "whole")
    assert facts["questions_too_long"] == 0
    tokenizer = load_tokenizer(inputs["lm"].verified_path("lm") / "tokenizer")
    lengths = [2 + len(tokenizer.encode(e.prompt) + tokenizer.encode(e.answer)) for e in whole.examples]
    facts, cut = run_r_ft(inputs, tmp_path / "cut", max_length=max(lengths) - 1)
    kept = np.array(lengths) < max(lengths)
    assert facts["questions_too_long"] == (~kept).sum() > 0
    assert cut.examples == [e for e, keep in zip(whole.examples, kept, strict=True) if keep]
    np.testing.assert_array_equal(cut.chunk_rows, whole.chunk_rows[kept])


@pytest.mark.parametrize("run", [run_lm_ft, run_r_ft])
def test_rows_too_short_for_every_question_are_an_error(inputs, tmp_path, run):
    with pytest.raises(
        ValueError, match="expected a question .* into the 9 tokens .* got 4 .*sequence_length"
    ):
        run(inputs, tmp_path / "out", max_length=9)


def test_chunks_without_a_text_example_are_counted_and_replaced_by_others(inputs, tmp_path, capsys):
    # 0.9 of all would be 36 texts, so every chunk is drawn; a stop has no halves.
    facts, retrieved, _ = run_lm_ft(inputs, tmp_path / "lm", corpus_text_fraction=0.9)
    assert (facts["text_examples"], facts["chunks_skipped"]) == (9, 1)
    assert CHUNKS[SHORT].id not in {example.source_chunk for example in retrieved.examples}
    # Only the long chunk has 40 tokens twice.
    facts, retrieved = run_r_ft(inputs, tmp_path / "r", corpus_text_fraction=0.9, text_tokens=40)
    assert (facts["text_examples"], facts["chunks_skipped"]) == (1, 9)
    assert retrieved.examples[-1].source_chunk == CHUNKS[LONG].id
    said = capsys.readouterr().out
    assert (
        "9 chunks gave none. Lower r_ft.text_tokens (40), because a chunk needs twice as many tokens" in said
    )


def test_fewer_texts_than_asked_for_are_said_with_their_share(inputs, tmp_path, capsys):
    facts, retrieved, _ = run_lm_ft(inputs, tmp_path / "lm", corpus_text_fraction=0.9)
    assert (facts["text_examples"], facts["text_examples_asked"]) == (9, 36)
    assert facts["text_share"] == pytest.approx(9 / 13, abs=1e-4)
    said = capsys.readouterr().out
    assert (
        "warning: lm_ft.corpus_text_fraction 0.9 asks for 36 text examples, the corpus gives 9: "
        "they are 69.2% of the instances, each as often as any other. Add passages." in said
    )
    run_lm_ft(inputs, tmp_path / "enough", corpus_text_fraction=0.5)
    run_r_ft(inputs, tmp_path / "r", corpus_text_fraction=0.5)
    assert "warning" not in capsys.readouterr().out


def test_lm_fts_shares_are_of_instances(inputs, tmp_path):
    """Of four questions three are read, under one chunk each; the fourth has two chunks, as texts have."""
    facts, retrieved, _ = run_lm_ft(
        inputs, tmp_path / "out", gold_context_fraction=1.0, corpus_text_fraction=0.5
    )
    assert facts["text_examples"] == 2  # 5 instances of questions ask for as many of texts: 2.5 examples
    instances = (retrieved.chunk_rows >= 0).sum(axis=1)
    assert (instances[:4].sum(), instances[4:].sum()) == (5, 4)
    assert facts["text_share"] == pytest.approx(4 / 9, abs=1e-4)


def test_a_passage_that_repeats_a_texts_end_is_not_retrieved_for_it(inputs, searcher, tmp_path):
    chunks = [*CHUNKS, replace(CHUNKS[LONG], id="again", title="Other")]
    workdir = Workdir(tmp_path)
    corpus, embeddings, index = (workdir.folder(name, name) for name in ("corpus", "embed", "index"))
    write_corpus(corpus, CorpusData(chunks, QUESTIONS))
    vectors = searcher.encoder.embed([chunk.passage for chunk in chunks])
    embeddings.write_array("embeddings-00000-of-00001.npy", vectors)
    ExactIndex(vectors).save(index)
    for folder in (corpus, embeddings, index):
        folder.finish()
    made = {**inputs, "corpus": corpus, "embeddings": embeddings, "index": index}
    facts, retrieved = run_r_ft(made, tmp_path / "out", corpus_text_fraction=0.9, text_tokens=40)
    texts = {example.source_chunk: n for n, example in enumerate(retrieved.examples) if example.source_chunk}
    assert set(texts) == {"long", "again"}
    assert not {LONG, 10} & set(retrieved.chunk_rows[list(texts.values())].ravel().tolist())
    assert (facts["copies_excluded"], facts["texts_short_of_chunks"]) == (2, 0)


def test_the_seed_draws_the_texts_and_nothing_else(inputs, tmp_path):
    def sources(name, seed):
        _, retrieved, _ = run_lm_ft(inputs, tmp_path / name, corpus_text_fraction=0.5, seed=seed)
        return [example.source_chunk for example in retrieved.examples]

    assert sources("a", 0) == sources("b", 0) != sources("c", 1)


def test_lm_ft_learns_the_first_answer_and_r_ft_the_shortest(inputs, tmp_path):
    _, lm_ft, _ = run_lm_ft(inputs, tmp_path / "lm")
    _, r_ft = run_r_ft(inputs, tmp_path / "r")
    assert (lm_ft.examples[0].answer, r_ft.examples[0].answer) == (" Hob Crane", " Crane")


def test_chunks_come_with_the_scores_of_the_search(inputs, tmp_path, searcher, searcher64):
    _, retrieved = run_r_ft(inputs, tmp_path / "out", num_chunks=10)
    questions = [question.question for question in TRAIN]
    rows, _ = searcher.search(questions, 10)
    np.testing.assert_array_equal(retrieved.chunk_rows, rows)
    params = searcher64.encoder.model.params
    assert_rounded(
        retrieved.retrieval_scores, lambda p: searcher64.with_params(p).score(questions, rows), params
    )


def test_without_retrieved_backgrounds_every_example_stands_alone(inputs, tmp_path):
    _, retrieved, dev = run_lm_ft(
        inputs, tmp_path / "out", corpus_text_fraction=0.5, retrieved_background=False
    )
    for part in (retrieved, dev):
        assert {example.background for example in part.examples} == {""}
        assert (part.chunk_rows == -1).all()


@pytest.mark.parametrize(("fraction", "tasks"), [(0.25, 3), (0.5, 2), (1.0, 0)])
def test_d_r_has_the_number_of_examples_that_is_asked_for(inputs, tmp_path, fraction, tasks):
    facts, retrieved = run_r_ft(inputs, tmp_path / "out", num_examples=4, corpus_text_fraction=fraction)
    assert (facts["questions"], facts["text_examples"]) == (tasks, 4 - tasks)
    assert retrieved.is_question.sum() == tasks


def test_where_there_are_too_few_tasks_no_text_stands_in_for_them(inputs, tmp_path):
    facts, _ = run_r_ft(inputs, tmp_path / "out", num_examples=10, corpus_text_fraction=0.2)
    assert (facts["questions"], facts["text_examples"]) == (4, 2)


def test_an_example_that_the_labeller_cannot_hold_in_a_row_is_left_out(inputs, lm, tmp_path):
    letters = lm._replace(tokenizer=train_bpe(["Background: QA"], 260))  # about a token for each character
    module = DecoderLm(replace(lm.module.config, vocab_size=letters.tokenizer.vocab_size))
    params = random_params(module, jnp.zeros((1, 4), jnp.int32))
    labeller = Workdir(tmp_path).folder("base", "labeller")
    save_model(labeller.path / "lm", letters._replace(module=module, params=params))
    labeller.commit("lm")
    labeller.finish()
    lengths = []
    for question in TRAIN:
        example = question_example(question, min(question.answers, key=len))
        lengths.append(2 + len(letters.tokenizer.encode_pair(example.prompt, example.answer)[0]))
    longest = max(lengths)
    alone, _ = run_r_ft(inputs, tmp_path / "alone", max_length=longest - 1)
    both, retrieved = run_r_ft({**inputs, "labeller": labeller}, tmp_path / "both", max_length=longest - 1)
    assert (alone["questions"], alone["questions_too_long"]) == (4, 0)
    assert both["questions_too_long"] == lengths.count(longest)
    assert len(retrieved.examples) == 4 - lengths.count(longest)
