"""index: search over the chunk embeddings, by ScaNN where the corpus is large, its recall measured."""

from typing import Any

import numpy as np
from jaxtyping import Float

from radit_jax.config import IndexConfig, MeshConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.retrieval.embeddings import Embeddings
from radit_jax.retrieval.exact import ExactIndex
from radit_jax.retrieval.index import build_index, neighbour_recall
from radit_jax.retrieval.products import search_devices
from radit_jax.retrieval.search import Encoder
from radit_jax.runtime.storage.stage_folder import StageFolder, StageInputs

MEASURED_AT = 10  # k of the recall
TUNING_QUERIES = 500  # at most


def run(inputs: StageInputs, output: StageFolder, *, index: IndexConfig, mesh: MeshConfig) -> dict[str, Any]:
    """Build the index, tuned on train questions; its recall is measured on development questions.

    Shards that a killed run finished are kept; each of several processes builds and searches its own.
    """
    corpus = Corpus(inputs["corpus"])
    embeddings = Embeddings.load(inputs["embeddings"])
    encoder = Encoder.load(inputs["retriever"].verified_path("query_encoder"), mesh)

    def embed(split: str, most: int) -> Float[np.ndarray, "Q D"]:
        return encoder.embed([question.question for question in corpus.questions(split)[:most]])

    # Questions that the index was not tuned on say how it does on others.
    tuning, held_out = embed("train", TUNING_QUERIES), embed("dev", len(embeddings))
    devices = search_devices(encoder.mesh, len(embeddings))
    built = build_index(
        embeddings,
        tuning,
        kind=index.kind,
        target_recall=index.target_recall,
        shard_size=index.shard_size,
        folder=output,
        devices=devices,
    )
    k = min(MEASURED_AT, len(embeddings))
    exact_rows, _ = ExactIndex(embeddings, devices).search(held_out, k)
    rows, _ = built.search(held_out, k)
    recall = neighbour_recall(rows, exact_rows)
    built.save(output)
    return {
        **built.facts,
        "recall@10": recall,
        "recall@10_tuning": built.facts["recall@10"],
        "held_out_queries": len(held_out),
    }
