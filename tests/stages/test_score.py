"""The score stage's shards: what one run leaves of them another takes up."""

import numpy as np
import pytest
from exact import assert_stored
from small import QUESTIONS

from radit_jax.config import MeshConfig, ScoreConfig
from radit_jax.data.artifacts.lsr_scores import Scores
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.data.batches.examples import question_example
from radit_jax.lm.scoring import PairScorer
from radit_jax.runtime.storage.workdir import Workdir
from radit_jax.stages import score

ROWS = np.array([[0, 1], [1, 2], [2, 8], [3, 0]])


@pytest.fixture
def run(inputs, tmp_path):
    """Runs the stage into a folder of that name, in shards of that size."""
    workdir = Workdir(tmp_path)
    retrieved = workdir.folder("retrieve", "r")
    examples = [question_example(question, question.answers[0]) for question in QUESTIONS["train"]]
    Retrieved(examples, ROWS, np.zeros(ROWS.shape, np.float32)).save(retrieved, "train")
    retrieved.finish()

    def run_into(name, shard_size):
        settings = ScoreConfig(batch_size=8, sequence_length=64, shard_size=shard_size)
        output = workdir.folder("score", name)
        facts = score.run({**inputs, "retrieved": retrieved}, output, score=settings, mesh=MeshConfig())
        return facts, Scores.load(output)

    return run_into


@pytest.mark.usefixtures("exact_scorers")
def test_a_killed_run_loses_its_shard_alone_and_ends_with_the_scores_of_all_at_once(run, monkeypatch):
    facts, whole = run("whole", 100)
    sizes, real = [], PairScorer.score

    def killed_after_one(self, examples, pairs, chunks, bar=None):
        if sizes:
            raise KeyboardInterrupt
        sizes.append(len(pairs))
        return real(self, examples, pairs, chunks, bar)

    def counted(self, examples, pairs, chunks, bar=None):
        sizes.append(len(pairs))
        return real(self, examples, pairs, chunks, bar)

    monkeypatch.setattr(PairScorer, "score", killed_after_one)
    with pytest.raises(KeyboardInterrupt):
        run("shards", 4)
    monkeypatch.setattr(PairScorer, "score", counted)
    _, again = run("shards", 4)
    assert sizes == [4, 4, 4]  # four examples, each under two chunks and under none
    assert (facts["pairs"], facts["truncated"]) == (12, 1)
    assert_stored(again.answer_log_probs, whole.answer_log_probs)
    assert_stored(again.no_chunk_log_probs, whole.no_chunk_log_probs)
    np.testing.assert_array_equal(again.token_counts, whole.token_counts)
    np.testing.assert_array_equal(again.truncated, whole.truncated)
