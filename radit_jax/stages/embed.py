"""embed: one vector per chunk, by the frozen chunk encoder, in shards."""

from collections.abc import Mapping
from typing import Any

from radit_jax.config import EmbedConfig, MeshConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.retrieval.search import Encoder
from radit_jax.runtime.monitoring.progress import Progress
from radit_jax.runtime.storage.fingerprints import shard_name
from radit_jax.runtime.storage.stage_folder import StageFolder


def run(
    inputs: Mapping[str, StageFolder], output: StageFolder, *, embed: EmbedConfig, mesh: MeshConfig
) -> dict[str, Any]:
    """Embed every chunk; shards that a killed run finished are kept."""
    chunks = Corpus(inputs["corpus"]).chunks
    encoder = Encoder.load(inputs["retriever"].verified_path("chunk_encoder"), mesh, dtype=embed.dtype)
    rows = [
        range(start, min(start + embed.shard_size, len(chunks)))
        for start in range(0, len(chunks), embed.shard_size)
    ]
    names = [f"{shard_name('embeddings', number, len(rows))}.npy" for number in range(len(rows))]
    missing = [number for number, name in enumerate(names) if not output.has(name)]
    passages = ([chunk.passage for chunk in chunks.take(rows[number])] for number in missing)
    with Progress(len(chunks), "embed", "passages") as bar:
        bar.advance(len(chunks) - sum(len(rows[number]) for number in missing))
        shards = encoder.embed_each(passages, embed.batch_size, bar)
        for number, embeddings in zip(missing, shards, strict=True):
            output.write_array(names[number], embeddings)
    return {"chunks": len(chunks), "width": encoder.model.module.config.vector_size, "shards": len(rows)}
