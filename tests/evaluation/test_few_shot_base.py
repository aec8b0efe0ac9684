"""The untuned language model's examples: which they are, and what stands before each."""

import numpy as np
import pytest

from radit_jax.config import EvaluateConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.evaluation.few_shot_base import KINDS, FewShotBase


class Searcher:
    """Finds chunk 9 for every query."""

    def search(self, queries, k):
        return np.full((len(queries), k), 9), np.zeros((len(queries), k))

    def retrieve(self, queries, k, temperature):
        raise AssertionError("a shot has its best chunk, without a weight")


@pytest.fixture(scope="module")
def corpus(inputs):
    return Corpus(inputs["corpus"])


def test_examples_are_train_questions_after_their_own_chunks(corpus):
    few_shot = FewShotBase.draw(corpus, Searcher(), EvaluateConfig(shots=3), seed=0)
    train = {question.id: question for question in corpus.questions("train")}
    assert len({example.id for example in few_shot.examples}) == 3
    assert all(train[example.id] == example and example.gold_chunks for example in few_shot.examples)
    passages = {kind: [shot.passage for shot in few_shot.shots(kind, corpus)] for kind in KINDS}
    assert passages["none"] == [None] * 3
    assert passages["retrieved"] == [corpus.chunks.take(np.array([9]))[0].passage] * 3
    for example, shot in zip(few_shot.examples, few_shot.shots("gold", corpus), strict=True):
        gold = corpus.chunks.take(np.array([corpus.rows[example.gold_chunks[0]]]))[0]
        assert shot.passage == gold.passage
        assert shot.prompt + shot.answer == f"Q: {example.question}\nA: {example.answers[0]}"


def test_more_examples_than_there_are_questions_for_are_refused(corpus):
    settings = EvaluateConfig(shots=1_000_000)
    with pytest.raises(ValueError, match=r"evaluate\.shots: expected at most \d+, .*, got 1000000\. Lower"):
        FewShotBase.draw(corpus, Searcher(), settings, seed=0)


def test_the_same_seed_draws_the_same_examples_and_another_others(corpus):
    def ids(seed):
        drawn = FewShotBase.draw(corpus, Searcher(), EvaluateConfig(shots=3), seed=seed)
        return [example.id for example in drawn.examples]

    assert ids(0) == ids(0) != ids(1)
