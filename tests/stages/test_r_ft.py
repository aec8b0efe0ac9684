"""Targets by hand, and rounds of candidates in which no pair is scored twice."""

from dataclasses import asdict, replace

import jax
import numpy as np
import pytest
from exact import assert_rounded, assert_stored
from small import CHUNKS, QUESTIONS

from radit_jax.config import MeshConfig, OptimizerConfig, RFtConfig, ScoreConfig
from radit_jax.data.artifacts.corpus import Corpus, CorpusData, write_corpus
from radit_jax.data.artifacts.lsr_scores import Scores
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.data.batches.examples import question_example
from radit_jax.data.records import Example, Question
from radit_jax.lm.scoring import PairScores
from radit_jax.runtime.storage.workdir import Workdir
from radit_jax.stages import r_ft

K = 3


def settings(steps=10, **changed):
    return RFtConfig(optimizer=OptimizerConfig(steps=steps, peak_lr=1e-3), **changed)


def scores_of(rows, retrieval_scores, answer_probs, tokens):
    rows = np.array(rows)
    return Scores(
        chunk_rows=rows,
        retrieval_scores=np.array(retrieval_scores, np.float32),
        answer_log_probs=np.log(np.array(answer_probs, np.float32)),
        no_chunk_log_probs=np.zeros(len(rows), np.float32),
        answer_token_counts=np.array(tokens),
        token_counts=np.full(rows.shape, 10),
        truncated=np.zeros(rows.shape, bool),
    )


def test_the_lsr_target_is_eq_4_over_the_real_chunks():
    scores = scores_of([[5, 2, -1]], [[0, 0, 0]], [[0.81, 0.25, 0.9]], [2])
    target = r_ft.target_log_probs(scores, settings(tau=0.5, lm_score="token_geomean"), 1.0)
    # Square roots 0.9 and 0.5, over τ: 1.8 and 1.0.
    odds = np.exp(0.8)
    np.testing.assert_allclose(np.exp(target), [[odds / (1 + odds), 1 / (1 + odds), 0]], rtol=1e-5)


def test_the_posterior_target_multiplies_the_untuned_retriever_in():
    scores = scores_of([[5, 2, 7]], np.log([[0.2, 0.6, 0.2]]) / 10, [[0.6, 0.2, 0.2]], [3])
    target = r_ft.target_log_probs(
        scores, settings(target="posterior", lm_score="sum_log_prob", tau=1.0), temperature=0.1
    )
    # p_R · p_LM is 0.12, 0.12 and 0.04.
    np.testing.assert_allclose(np.exp(target), [[3 / 7, 3 / 7, 1 / 7]], rtol=1e-5)


@pytest.mark.parametrize(
    ("steps", "every", "ends"),
    [(10, 0, [10]), (0, 0, [0]), (10, 4, [4, 8, 10]), (10, 5, [5, 10]), (10, 20, [10])],
)
def test_rounds_end_where_candidates_are_refreshed_and_the_last_with_training(steps, every, ends):
    assert r_ft._round_ends(settings(steps, refresh_every=every)) == ends


class CountingScorer:
    """Instead of a language model: a score that tells example and chunk, and a list of what was asked."""

    asked: list[tuple[int, int]] = []
    own = False

    @classmethod
    def load(cls, path, score, mesh):
        return cls()

    def score_each(self, parts, examples, chunks, bar=None):
        for pairs in parts:
            self.asked.extend(map(tuple, pairs.tolist()))
            yield PairScores(log_prob(pairs[:, 0], pairs[:, 1]), 10 + pairs[:, 1], pairs[:, 1] % 2 == 0)


class KilledScorer(CountingScorer):
    """Scores one shard and is killed in the next."""

    def score_each(self, parts, *rest):
        yield next(super().score_each(parts, *rest))
        raise KeyboardInterrupt


def log_prob(example: np.ndarray, row: np.ndarray) -> np.ndarray:
    return np.asarray(-100 * example - row, np.float32)


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setattr(r_ft, "PairScorer", CountingScorer)
    monkeypatch.setattr(CountingScorer, "asked", [])
    return CountingScorer.asked


@pytest.fixture
def first(searcher):
    """Round 0: what retrieve and score leave."""
    examples = [question_example(question, question.answers[0]) for question in QUESTIONS["train"]]
    examples.append(Example("text", CHUNKS[2].text, CHUNKS[2].text, " the end", source_chunk="c2"))
    exclude = np.array([-1] * 4 + [2])
    rows, retrieval_scores = searcher.search([example.query for example in examples], K, exclude)
    numbers = np.arange(len(examples))
    return Retrieved(examples, rows, retrieval_scores), Scores(
        chunk_rows=rows,
        retrieval_scores=retrieval_scores,
        answer_log_probs=log_prob(numbers[:, None], rows),
        no_chunk_log_probs=np.full(len(examples), -1.0, np.float32),
        answer_token_counts=numbers + 1,
        token_counts=10 + rows,
        truncated=rows % 2 == 0,
    )


@pytest.fixture
def candidates(inputs, first, searcher, tmp_path):
    """Makes new candidates, as a resumed run does."""
    workdir = Workdir(tmp_path)
    retrieved, scores = workdir.folder("retrieve", "r"), workdir.folder("score", "s")
    first[0].save(retrieved, "train")
    first[1].save(scores)
    for folder in (retrieved, scores):
        folder.finish()
    folders = {**inputs, "retrieved": retrieved, "scores": scores}
    corpus = Corpus(inputs["corpus"])

    def make(name="o", **score):
        output = workdir.folder("r_ft", name)
        scorer = r_ft._scorer(folders, output, corpus, ScoreConfig(**score), MeshConfig())
        return r_ft.Candidates(folders, output, corpus, searcher, scorer)

    return make


def tuned(searcher, seed):
    """Query parameters that retrieve other chunks than the untuned ones."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + np.float32(0.5) * rng.normal(size=leaf.shape).astype(np.float32),
        searcher.encoder.model.params,
    )


def test_the_first_round_is_what_the_score_stage_left(candidates, searcher, first, asked):
    scores = candidates().round(0, tuned(searcher, 1))
    np.testing.assert_array_equal(scores.chunk_rows, first[1].chunk_rows)
    assert asked == []


def test_a_refresh_scores_only_pairs_that_no_earlier_round_has(candidates, searcher, first, asked):
    rounds = candidates()
    known = {(example, row) for example, rows in enumerate(first[1].chunk_rows.tolist()) for row in rows}
    for number in (1, 2):
        asked.clear()
        rows = rounds.round(number, tuned(searcher, number)).chunk_rows
        retrieved = {(example, row) for example, found in enumerate(rows.tolist()) for row in found}
        assert len(asked) == len(set(asked))
        assert set(asked) == retrieved - known
        assert 0 < len(asked) < len(retrieved), "the test needs known pairs and new ones"
        known |= retrieved
    asked.clear()
    rounds.round(3, searcher.encoder.model.params)  # finds what round 0 found
    assert asked == []


def test_known_and_new_scores_stand_beside_their_own_chunks(candidates, searcher, asked):
    rounds = candidates()
    for number in (0, 1, 2):
        scores = rounds.round(number, tuned(searcher, number))
        examples = np.arange(len(scores.chunk_rows))[:, None]
        np.testing.assert_array_equal(scores.answer_log_probs, log_prob(examples, scores.chunk_rows))
        np.testing.assert_array_equal(scores.token_counts, 10 + scores.chunk_rows)
        np.testing.assert_array_equal(scores.truncated, scores.chunk_rows % 2 == 0)


def test_a_refresh_retrieves_with_the_tuned_encoder_and_scores_retrieval_with_the_untuned(
    candidates, searcher, searcher64, first, asked
):
    params = tuned(searcher, 1)
    scores = candidates().round(1, params)
    queries, exclude = [example.query for example in first[0].examples], np.array([-1] * 4 + [2])
    rows, tuned_scores = searcher.with_params(params).search(queries, K, exclude)
    np.testing.assert_array_equal(scores.chunk_rows, rows)
    assert 2 not in rows[4]  # its own chunk
    untuned = searcher64.encoder.model.params
    assert_rounded(scores.retrieval_scores, lambda p: searcher64.with_params(p).score(queries, rows), untuned)
    assert not np.allclose(scores.retrieval_scores, tuned_scores)
    np.testing.assert_array_equal(scores.answer_token_counts, first[1].answer_token_counts)


def test_a_resumed_run_reads_its_rounds_back_whatever_its_parameters_are_now(candidates, searcher, asked):
    before = candidates().round(1, tuned(searcher, 1))
    asked.clear()
    again = candidates().round(1, tuned(searcher, 2))
    assert asked == []
    np.testing.assert_array_equal(again.chunk_rows, before.chunk_rows)
    np.testing.assert_array_equal(again.answer_log_probs, before.answer_log_probs)


def test_an_interrupted_refresh_keeps_its_pairs_and_scores_only_the_shards_that_are_left(
    candidates, searcher, asked, monkeypatch
):
    params = tuned(searcher, 1)
    whole = candidates("whole").round(1, params)
    pairs = asked.copy()
    asked.clear()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(r_ft, "PairScorer", KilledScorer)
        candidates(shard_size=2).round(1, params)
    before = asked.copy()
    asked.clear()
    again = candidates(shard_size=2).round(1, tuned(searcher, 2))  # which would find others
    assert 0 < len(before) < len(pairs), "the test needs several shards"
    assert before + asked == pairs
    for name, wanted in asdict(whole).items():
        np.testing.assert_array_equal(getattr(again, name), wanted)


@pytest.mark.usefixtures("exact_scorers")
def test_a_language_models_scores_of_new_pairs_do_not_depend_on_shards(candidates, searcher):
    params, settings = tuned(searcher, 1), {"batch_size": 8, "sequence_length": 64}
    whole = candidates("whole", **settings).round(1, params)
    sharded = candidates("shards", shard_size=2, **settings).round(1, params)
    np.testing.assert_array_equal(sharded.chunk_rows, whole.chunk_rows)
    assert_stored(sharded.answer_log_probs, whole.answer_log_probs)
    np.testing.assert_array_equal(sharded.token_counts, whole.token_counts)


def test_a_refresh_whose_shards_are_all_there_loads_no_language_model(
    candidates, searcher, asked, monkeypatch
):
    def killed(*_):
        raise KeyboardInterrupt

    params = tuned(searcher, 1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Scores, "save", killed)
        candidates().round(1, params)
    assert asked
    monkeypatch.delattr(r_ft, "PairScorer")
    rows = candidates().round(1, params).chunk_rows
    assert rows.shape == (len(QUESTIONS["train"]) + 1, K)


def test_a_refresh_of_questions_alone_does_not_read_the_whole_corpus(inputs, candidates, searcher, asked):
    rounds = candidates()
    rounds.examples = [replace(example, source_chunk="") for example in rounds.examples]
    rounds.round(1, tuned(searcher, 1))
    assert "rows" not in vars(rounds.corpus)


def test_a_refresh_that_retrieves_nothing_new_asks_the_language_model_for_nothing(
    candidates, searcher, first, monkeypatch
):
    monkeypatch.delattr(r_ft, "PairScorer")
    scores = candidates().round(1, searcher.encoder.model.params)
    np.testing.assert_array_equal(scores.chunk_rows, first[1].chunk_rows)
    np.testing.assert_array_equal(scores.answer_log_probs, first[1].answer_log_probs)


def drawn(inputs, tmp_path, questions):
    """The folders of a run whose development questions were drawn with examples."""
    workdir = Workdir(tmp_path)
    folders = {name: workdir.folder(name, "d") for name in ("corpus", "retrieved")}
    pairs = [(q, question_example(q, q.answers[0])) for q in questions]
    examples = {("r_ft", "dev"): pairs}
    write_corpus(folders["corpus"], CorpusData(CHUNKS, {**QUESTIONS, "dev": questions}, examples=examples))
    rows = np.array([[4, 0, 1], [0, 1, 2], [5, 6, 7]])
    nothing = np.zeros(rows.shape, np.float32)
    Retrieved([example for _, example in pairs], rows, nothing).save(folders["retrieved"], "dev")
    for folder in folders.values():
        folder.finish()
    return {**inputs, **folders}


def test_where_no_candidate_holds_an_answer_the_one_that_helps_most_is_the_hit(inputs, tmp_path, asked):
    held, without = QUESTIONS["dev"][0], replace(QUESTIONS["dev"][1], answers=("nobody",))
    yes_no = Question("yes", "Is it a tower?", ("yes",))
    folders = drawn(inputs, tmp_path, [held, without, yes_no])
    corpus, output = Corpus(folders["corpus"]), Workdir(tmp_path).folder("r_ft", "o")
    scorer = r_ft._scorer(folders, output, corpus, ScoreConfig(), MeshConfig())
    made = r_ft.development_questions(folders, output, corpus, scorer)
    # `log_prob` falls with the chunk's row, so the lowest row helps most.
    assert made.helpful_rows.tolist() == [-1, 0, 5]
    assert len(asked) == 9
    rows = np.array([[4, 8, -1], [1, 0, -1], [6, 7, 5]])
    assert made.hits(corpus, rows).tolist() == [
        [True, True, False],
        [False, True, False],
        [False, False, True],
    ]
    r_ft.development_questions(folders, output, corpus, scorer)
    assert len(asked) == 9  # read back


def test_questions_without_drawn_examples_are_judged_by_their_answers_alone(inputs, tmp_path):
    corpus, output = Corpus(inputs["corpus"]), Workdir(tmp_path).folder("r_ft", "o")
    scorer = r_ft._scorer(inputs, output, corpus, ScoreConfig(), MeshConfig())
    made = r_ft.development_questions(inputs, output, corpus, scorer)
    assert (made.questions, made.helpful_rows.tolist()) == (QUESTIONS["dev"], [-1, -1])
