"""score: Eq. 4's raw material, how likely each answer is under each of its chunks and under none.

What is stored is the summed log-probability with the token count, so that the LM score's form, τ, the KL's
direction and the target can all change without scoring again.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from radit_jax.config import MeshConfig, ScoreConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.artifacts.lsr_scores import Scores
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.data.batches.prefix_trees import answer_token_count
from radit_jax.lm.scoring import NO_CHUNK, PairScorer, every_pair, score_in_shards
from radit_jax.runtime.storage.stage_folder import StageFolder


def run(
    inputs: Mapping[str, StageFolder], output: StageFolder, *, score: ScoreConfig, mesh: MeshConfig
) -> dict[str, Any]:
    """Score every (example, chunk) pair, in shards ordered by chunk so that each chunk is read once."""
    retrieved, chunks = Retrieved.load(inputs["retrieved"], "train"), Corpus(inputs["corpus"]).chunks
    scorer = PairScorer.load(inputs["lm"].verified_path("lm"), score, mesh)
    examples, (num_examples, k) = retrieved.examples, retrieved.chunk_rows.shape
    rows = np.concatenate([retrieved.chunk_rows, np.full((num_examples, 1), NO_CHUNK)], axis=1)
    pairs = every_pair(rows)
    found = score_in_shards(
        output,
        "pairs",
        pairs,
        lambda shard, bar: scorer.score(examples, shard, chunks, bar),
        shard_size=score.shard_size,
        title="score",
    )
    log_probs, token_counts, truncated = (array.reshape(num_examples, k + 1) for array in found)
    scores = Scores(
        retrieved.chunk_rows,
        retrieved.retrieval_scores,
        log_probs[:, :k],
        log_probs[:, k],
        np.array([answer_token_count(scorer.model.tokenizer, example) for example in examples]),
        token_counts[:, :k],
        truncated[:, :k],
    )
    scores.save(output)
    return {
        "examples": num_examples,
        "pairs": len(pairs),
        "truncated": int(truncated.sum()),
        "fill": round(scorer.filled.share, 4),  # of the rows that this run scored; 0: all were there
        "language_model": inputs["lm"].fingerprint,
    }
