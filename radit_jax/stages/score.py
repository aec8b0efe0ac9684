"""score: what Eq. 4 is made of, how likely each answer is under each of its chunks and under none.

The summed log-probability is stored with the token count, so that the LM score's form, τ, the KL's direction
and the target can all change without scoring again.
"""

from typing import Any

import numpy as np

from radit_jax.config import MeshConfig, ScoreConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.artifacts.lsr_scores import Scores
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.data.artifacts.scores_file import import_scores
from radit_jax.data.batches.prefix_trees import LmTokenizer, answer_token_count
from radit_jax.lm.scoring import NO_CHUNK, PairScorer, PairScores, every_pair
from radit_jax.lm.sharded_scoring import ShardedScorer
from radit_jax.runtime.pretrained.model_io import load_own_tokenizer
from radit_jax.runtime.row_parts import write_parts
from radit_jax.runtime.storage.stage_folder import StageFolder, StageInputs
from radit_jax.text.card import Origin


def run(inputs: StageInputs, output: StageFolder, *, score: ScoreConfig, mesh: MeshConfig) -> dict[str, Any]:
    """Score every (example, chunk) pair, in shards ordered by chunk so that each chunk is read once.

    Each of several processes reads, tokenises, scores and writes shards of its own.
    """
    retrieved = Retrieved.load(inputs["retrieved"], "train")
    path = inputs["lm"].verified_path("lm")
    loaded: list[PairScorer] = []

    def load() -> PairScorer:
        loaded.append(PairScorer.load(path, score, mesh))
        return loaded[0]

    # Each example has one pair more than chunks: its answer without a chunk.
    no_chunk = np.full((len(retrieved.examples), 1), NO_CHUNK)
    pairs = every_pair(np.concatenate([retrieved.chunk_rows, no_chunk], axis=1))
    scorer = ShardedScorer(load, output, Corpus(inputs["corpus"]).chunks, score.shard_size)
    scorer.make("pairs", retrieved.examples, pairs, "score")

    # What is kept by chunk is written by example, in parts that processes have between them.
    pair_scores = scorer.read("pairs", pairs)
    _save(output, retrieved, pair_scores, load_own_tokenizer(path))
    fill = loaded[0].filled.share if loaded else 0.0
    return {
        "examples": len(retrieved.examples),
        "pairs": len(pairs),
        "truncated": int(pair_scores.truncated.sum()),
        "fill": round(fill, 4),  # of the rows that this process scored in this run; 0: it scored none
        "language_model": inputs["lm"].fingerprint,
        "scorer": _name(inputs["lm"]),
        "origin": inputs["lm"].manifest.get("origin"),
    }


def _save(output: StageFolder, retrieved: Retrieved, pair_scores: PairScores, tokenizer: LmTokenizer) -> None:
    """Write the scores with a row for each example."""
    # The last column is the answer without a chunk.
    num_examples, k = retrieved.chunk_rows.shape
    by_example = (array.reshape(num_examples, k + 1) for array in pair_scores)
    log_probs, token_counts, truncated = by_example

    def write(part: str, rows: slice) -> None:
        answer_lengths = [answer_token_count(tokenizer, example) for example in retrieved.examples[rows]]
        scores = Scores(
            chunk_rows=retrieved.chunk_rows[rows],
            retrieval_scores=retrieved.retrieval_scores[rows],
            answer_log_probs=log_probs[rows, :k],
            no_chunk_log_probs=log_probs[rows, k],
            answer_token_counts=np.array(answer_lengths),
            token_counts=token_counts[rows, :k],
            truncated=truncated[rows, :k],
        )
        scores.save(output, part)

    write_parts(output, "scores.npz", num_examples, write)


def _name(lm: StageFolder) -> str:
    """A language model by its checkpoint, or by the stage that trained it."""
    origin = lm.manifest.get("origin")
    return origin["name"] if origin else lm.stage


def run_imported(inputs: StageInputs, output: StageFolder, *, file: str, mesh: MeshConfig) -> dict[str, Any]:
    """The scores of a file; ValueError where it lacks a pair of an example and one of its chunks."""
    retrieved = Retrieved.load(inputs["retrieved"], "train")
    scores, facts = import_scores(file, retrieved, Corpus(inputs["corpus"]).chunks)
    scores.save(output)
    return {
        "examples": len(retrieved.examples),
        "pairs": int((scores.chunk_rows >= 0).sum()),
        "truncated": int(scores.truncated.sum()),
        **facts,
        "origin": Origin("labels", facts["scorer"], licence="")._asdict(),
    }
