"""The method on lists and arrays has the stages' own results, and refuses what does not fit together."""

import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import CHUNKS, QUESTIONS

import radit_jax
from radit_jax.api.inputs import ChunkTable, as_chunk
from radit_jax.api.integrations import langchain_retriever, llama_index_retriever
from radit_jax.config import MeshConfig, ScoreConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.batches.examples import question_example
from radit_jax.data.records import Chunk
from radit_jax.lm.scoring import PairScorer, every_pair

ASKED = [question.question for question in QUESTIONS["train"][:3]]
ANSWERS = [question.answers[0] for question in QUESTIONS["train"][:3]]
ROWS = np.array([[0, 1], [1, 2], [2, 0]])
FOUND = [[CHUNKS[row] for row in rows] for rows in ROWS]
FEW_STEPS = radit_jax.Training(steps=3, learning_rate=1e-2, batch_size=8)


@pytest.fixture(scope="module")
def retriever(exported):
    return radit_jax.Retriever.load(exported)


def test_importing_the_package_imports_no_jax():
    code = "import sys, radit_jax; dir(radit_jax); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in ("Retriever", "answer", "losses", "open", "score_pairs", "train_query_encoder", "tune_lm"):
        assert name in dir(radit_jax) and getattr(radit_jax, name)
    with pytest.raises(AttributeError, match="no attribute 'retriever'"):
        radit_jax.retriever  # noqa: B018


# ---- what callers pass ----


def test_a_chunk_is_a_text_a_mapping_or_one_of_ours():
    assert as_chunk("A tower.", 3) == Chunk("3", "", "A tower.")
    assert as_chunk({"id": 7, "title": "Elm", "text": "A tower."}) == Chunk("7", "Elm", "A tower.")
    assert as_chunk(CHUNKS[0]) is CHUNKS[0]
    with pytest.raises(
        ValueError, match=r"chunk 0: expected a text, or a mapping .* got \"{'title': 'Elm'}\""
    ):
        as_chunk({"title": "Elm"})


def test_questions_share_the_rows_of_their_chunks_and_may_have_different_numbers_of_them():
    table = ChunkTable.of([["a", "b"], ["b"], [None, "c"]])
    assert table.rows.tolist() == [[0, 1], [1, -1], [-1, 2]]
    assert table.mask.tolist() == [[True, True], [True, False], [True, True]]
    assert [chunk.text for chunk in table.chunks.chunks] == ["a", "b", "c"]


# ---- search ----


def test_a_finished_run_is_searched_from_its_workdir_or_its_export(exported, retriever):
    (hits,) = retriever.search([CHUNKS[4].passage], k=3)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert math.isclose(sum(math.exp(hit.log_prob) for hit in hits), 1, rel_tol=1e-5)
    (again,) = radit_jax.open(exported.parent).retriever().search([CHUNKS[4].passage], k=3)
    assert again == hits
    assert len(retriever.search(["Who?"], k=99)[0]) == len(CHUNKS) and retriever.search([]) == []


def test_passages_in_a_list_are_searched_as_an_index_searches_them(searcher):
    encoder = searcher.encoder.model
    retriever = radit_jax.Retriever.embed(encoder, encoder, CHUNKS)
    rows, scores = searcher.search(ASKED, 3)
    found = retriever.search(ASKED, 3)
    assert [[hit.row for hit in hits] for hits in found] == rows.tolist()
    np.testing.assert_allclose([[hit.score for hit in hits] for hits in found], scores, rtol=1e-5)
    np.testing.assert_allclose(retriever.vectors(found), searcher.embeddings[rows], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(retriever.embed_queries(ASKED), searcher.encoder.embed(ASKED), atol=1e-6)


def test_what_cannot_be_searched_is_said(tmp_path, retriever, searcher):
    with pytest.raises(
        ValueError, match="expected a workdir with a finished export, or an export, got neither"
    ):
        radit_jax.Retriever.load(tmp_path)
    with pytest.raises(ValueError, match="queries: expected a list, got one text"):
        retriever.search("Who?")
    encoder = searcher.encoder.model
    with pytest.raises(ValueError, match="chunks: expected passages to search, got none"):
        radit_jax.Retriever.embed(encoder, encoder, [])


# ---- the language model ----


def test_pairs_have_the_score_stages_scores(lm, inputs):
    scores = radit_jax.score_pairs(lm, ASKED, FOUND, ANSWERS, sequence_length=64)
    examples = [question_example(question, question.answers[0]) for question in QUESTIONS["train"][:3]]
    settings = ScoreConfig(sequence_length=64)
    scorer = PairScorer.load(inputs["lm"].verified_path("lm"), settings, MeshConfig())
    expected = scorer.score(examples, every_pair(ROWS), Corpus(inputs["corpus"]).chunks)
    np.testing.assert_allclose(scores.answer_log_probs.ravel(), expected.answer_log_probs, rtol=1e-5)
    p_lsr = radit_jax.losses.lsr_log_prob(*scores, form="token_geomean", tau=0.1)
    np.testing.assert_allclose(jnp.exp(p_lsr).sum(axis=1), 1, rtol=1e-5)


def test_a_question_without_a_chunk_is_scored_alone_and_a_missing_chunk_not_at_all(lm):
    scores = radit_jax.score_pairs(lm, ASKED[:2], [[CHUNKS[0], None], [CHUNKS[1]]], ANSWERS[:2])
    assert scores.chunk_mask.tolist() == [[True, True], [True, False]]
    assert scores.answer_log_probs[0, 1] < 0 and scores.answer_log_probs[1, 1] == 0


def test_lists_that_do_not_fit_together_are_refused(lm):
    with pytest.raises(ValueError, match="expected as many of each, got 3 questions, 2 chunks, 3 answers"):
        radit_jax.score_pairs(lm, ASKED, FOUND[:2], ANSWERS)
    with pytest.raises(ValueError, match=r"chunks: expected as many for every question, got \[1, 2\]"):
        radit_jax.answer(lm, ASKED[:2], [FOUND[0], FOUND[1][:1]])
    with pytest.raises(ValueError, match=r"log_probs: expected one of each chunk, \(3, 2\), got \(3,\)"):
        radit_jax.answer(lm, ASKED, FOUND, np.zeros(3))


# ---- the query encoder ----


def test_the_query_encoder_learns_to_rank_as_the_target_does(searcher):
    model = searcher.encoder.model
    vectors = searcher.embeddings[ROWS]
    target = np.log(np.array([[0.1, 0.9]] * 3, np.float32))
    before = jax.tree.map(np.array, model.params)
    tuned = radit_jax.train_query_encoder(model, ASKED, vectors, target, FEW_STEPS, temperature=0.1)
    jax.tree.map(np.testing.assert_array_equal, model.params, before)

    def loss(encoder):
        queries = searcher.encoder.with_params(encoder.params).embed(ASKED)
        scores = jnp.einsum("qd,qkd->qk", queries, vectors)
        mask = jnp.ones((3, 2), bool)
        log_p_r = radit_jax.losses.retrieval_log_prob(scores, mask, 0.1)
        return float(radit_jax.losses.r_ft_loss(log_p_r, jnp.asarray(target), mask).mean())

    assert loss(tuned) < loss(model)


def test_arrays_of_other_shapes_are_refused(searcher):
    model = searcher.encoder.model
    with pytest.raises(ValueError, match=r"expected vectors \[Q, K, 16\], .* got \(3, 2, 8\), \(3, 2\)"):
        radit_jax.train_query_encoder(model, ASKED, np.zeros((3, 2, 8)), np.zeros((3, 2)), FEW_STEPS)


# ---- a finished run ----


def test_a_run_that_was_not_evaluated_says_what_to_run(tmp_path, exported):
    run = radit_jax.open(exported.parent)
    assert run.settings["temperature"] and run.language_model().tokenizer
    with pytest.raises(
        ValueError,
        match=r"a finished run with results.json, got none. Run `radit run",
    ):
        run.results  # noqa: B018
    (tmp_path / "predictions.jsonl").write_text('{"id": "q1"}\n')
    (tmp_path / "results" / "nq-dev").mkdir(parents=True)
    (tmp_path / "results" / "nq-dev" / "results.json").write_text('{"num_questions": 3}')
    run = radit_jax.open(tmp_path)
    assert run.predictions == [{"id": "q1"}] and run.evaluations == {"nq-dev": {"num_questions": 3}}
    with pytest.raises(ValueError, match="nowhere: expected a workdir, got no such folder"):
        radit_jax.open("nowhere")


# ---- LangChain and LlamaIndex ----


@pytest.mark.filterwarnings("ignore")  # of LangChain and what it imports
def test_langchain_retrieves_what_a_search_finds(retriever):
    pytest.importorskip("langchain_core")
    (hits,) = retriever.search(ASKED[:1], k=3)
    documents = retriever.as_langchain(k=3).invoke(ASKED[0])
    assert [document.page_content for document in documents] == [hit.chunk.text for hit in hits]
    assert [document.id for document in documents] == [hit.chunk.id for hit in hits]
    assert documents[0].metadata["title"] == hits[0].chunk.title
    assert len(retriever.as_langchain(k=3).batch(ASKED)) == 3


@pytest.mark.filterwarnings("ignore")  # of LlamaIndex and what it imports
def test_llama_index_retrieves_what_a_search_finds(retriever):
    pytest.importorskip("llama_index.core")
    (hits,) = retriever.search(ASKED[:1], k=3)
    nodes = retriever.as_llama_index(k=3).retrieve(ASKED[0])
    assert [node.node.text for node in nodes] == [hit.chunk.text for hit in hits]
    assert [node.score for node in nodes] == [hit.score for hit in hits]


@pytest.mark.parametrize(
    ("make", "module", "package"),
    [
        (langchain_retriever, "langchain_core.documents", "langchain-core"),
        (llama_index_retriever, "llama_index.core.base.base_retriever", "llama-index-core"),
    ],
)
def test_a_package_that_is_not_installed_is_named(monkeypatch, make, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ValueError, match=rf"expected the package {package}, got none. pip install 'radit_jax\["
    ):
        make(None, 3)
