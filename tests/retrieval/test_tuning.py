"""The shape of packed queries, and what chooses a checkpoint of R-ft."""

from dataclasses import replace

import numpy as np
import optax
import pytest
from small import QUESTIONS

from radit_jax.config import OptimizerConfig, RFtConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.retrieval import tuning
from radit_jax.retrieval.tuning import (
    BothTowers,
    DevelopmentQuestions,
    PackedQueries,
    QueryTower,
    check_best_has_hit,
    check_within_reach,
)

NO_QUERIES = PackedQueries([], 1, 1)


def test_validation_is_the_mrr_of_chunks_that_hold_an_answer(inputs, searcher):
    questions = QUESTIONS["dev"]
    development = DevelopmentQuestions(questions, np.full(len(questions), -1))
    tower = QueryTower(searcher, Corpus(inputs["corpus"]), NO_QUERIES, development)
    found = tower.validate(tower.params)
    rows, _ = searcher.search([question.question for question in questions], 10)
    # Each answer is in its own chunk and in the long one.
    ranks = [
        min(row.tolist().index(own), row.tolist().index(8)) + 1 for row, own in zip(rows, (4, 5), strict=True)
    ]
    assert found["mrr@10"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert found["answer_recall@1"] == np.mean([rank == 1 for rank in ranks])
    assert found["answer_recall@10"] == 1.0


def test_each_tower_is_trained_with_its_own_module(inputs, searcher, monkeypatch):
    """Checkpoints of the two towers may pool and normalise in different ways."""
    model = searcher.encoder.model
    chunk_config = replace(model.module.config, normalize=not model.module.config.normalize)
    chunk_model = model._replace(module=model.module.clone(config=chunk_config))
    chunk_encoder = replace(searcher.encoder, model=chunk_model)
    development = DevelopmentQuestions(QUESTIONS["dev"], np.full(len(QUESTIONS["dev"]), -1))
    towers = BothTowers(searcher, Corpus(inputs["corpus"]), NO_QUERIES, development, chunk_encoder)
    made = []
    monkeypatch.setattr(
        tuning, "make_r_ft_text_step", lambda module, _, **rest: made.append((module, rest)) or print
    )
    r_ft = RFtConfig(OptimizerConfig(steps=1, peak_lr=1e-3))
    towers.make_step(optax.identity(), r_ft, 1.0, None)
    [(module, settings)] = made
    assert module.config == model.module.config
    assert settings["chunk_module"].config == chunk_config


def test_without_any_hit_no_checkpoint_is_chosen():
    assert check_best_has_hit((0, 0.1)) == (0, 0.1)
    with pytest.raises(
        ValueError, match=r"r_ft: expected a development question .* got none at any .* Raise"
    ):
        check_best_has_hit((0, 0.0))


def test_nothing_is_trained_where_no_development_question_can_have_a_hit(inputs, searcher, monkeypatch):
    """Its answer is in no chunk; one question whose answer is in some chunk is enough."""
    corpus, searched = Corpus(inputs["corpus"]), []

    def search(self, texts, depth):
        searched.append(depth)
        return np.tile(np.arange(depth), (len(texts), 1)), None

    monkeypatch.setattr(type(searcher), "search", search)

    def check(*questions):
        development = DevelopmentQuestions(questions, np.full(len(questions), -1))
        check_within_reach(QueryTower(searcher, corpus, NO_QUERIES, development))

    lost = replace(QUESTIONS["dev"][0], answers=("Nobody",))
    check(lost, QUESTIONS["dev"][1])
    assert searched == [10]
    with pytest.raises(ValueError, match=r"got none among the first 100 of any of the 1, .* Raise data.dev"):
        check(lost)
    assert searched == [10, 10, 10]  # there are ten chunks


def test_one_shape_of_rows_holds_the_queries_of_every_batch():
    ids = [list(range(1, 1 + length)) for length in (3, 40, 9, 17, 5, 12, 30, 8)]
    batches = [[0, 1, 2], [3, 4, 5], [6, 7, 0], [1, 6, 3]]
    queries = PackedQueries.fit(ids, batches, unit=1)
    # The last batch has queries of 40, 30 and 17: three rows of 40, or two of 64, or one of 128.
    assert (queries.num_rows, queries.row_length) == (3, 40)
    for some in batches:
        packed = queries.batch(some)
        assert packed.tokens.shape == (3, 40)
        for number, query in enumerate(some):
            assert packed.tokens[packed.texts == number].tolist() == ids[query]


def test_rows_of_queries_divide_over_the_devices_and_are_no_longer_than_that_takes():
    ids = [[1] * 20] * 16
    assert PackedQueries.fit(ids, [range(16)], unit=8) == PackedQueries(ids, 16, 20)
    assert PackedQueries.fit(ids, [range(16)], unit=3).num_rows % 3 == 0
