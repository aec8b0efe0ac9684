"""The diagnostics read no passage that nothing can be judged by."""

from dataclasses import replace

import numpy as np
import pytest
from small import CHUNKS, QUESTIONS

from radit_jax.config import OptimizerConfig, RFtConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.artifacts.lsr_scores import Scores
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.data.batches.examples import question_example
from radit_jax.data.records import Example
from radit_jax.lm.lsr_diagnostics import report

SETTINGS = RFtConfig(optimizer=OptimizerConfig(steps=1, peak_lr=1e-3))
TEXT = Example("r_text/c2", CHUNKS[2].text, CHUNKS[2].text, " the end", source_chunk="c2")


@pytest.fixture
def read(monkeypatch, inputs):
    """The corpus, and the rows whose passages were taken from it."""
    corpus, rows = Corpus(inputs["corpus"]), []
    take = corpus.chunks.take
    monkeypatch.setattr(corpus.chunks, "take", lambda some: (rows.extend(map(int, some)), take(some))[1])
    corpus.rows  # noqa: B018 - gold chunks are looked up by it, which reads all once
    rows.clear()
    return corpus, rows


def diagnose(corpus, examples, rows):
    nothing = np.zeros(rows.shape, np.float32)
    counts, cut = np.ones(rows.shape, int), np.zeros(rows.shape, bool)
    scores = Scores(rows, nothing, nothing - 1, nothing[:, 0] - 2, counts[:, 0], counts, cut)
    return report(corpus, Retrieved(examples, rows, nothing), scores, SETTINGS, temperature=1.0)


def test_passages_are_read_of_judged_questions_alone(read):
    corpus, taken = read
    question = QUESTIONS["train"][0]
    examples = [TEXT, question_example(question, question.answers[0]), replace(TEXT, id="r_text/c3")]
    found = diagnose(corpus, examples, np.array([[3, 4], [0, 1], [5, 6]]))
    assert set(taken) == {0, 1}
    assert (found["judged_examples"], found["answer_among_candidates"]) == (1, 1.0)


def test_text_alone_is_judged_without_reading_a_passage(read):
    corpus, taken = read
    found = diagnose(corpus, [TEXT], np.array([[3, 4]]))
    assert taken == []
    assert (found["judged_examples"], found["answer_among_candidates"]) == (0, None)
