"""embed: one vector per chunk, by the frozen chunk encoder, in shards."""

from collections.abc import Sequence
from typing import Any

from radit_jax.config import EmbedConfig, MeshConfig
from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.retrieval.search import Encoder
from radit_jax.runtime.monitoring.progress import Progress
from radit_jax.runtime.storage.fingerprints import shard_name
from radit_jax.runtime.storage.stage_folder import StageFolder, StageInputs


def run(inputs: StageInputs, output: StageFolder, *, embed: EmbedConfig, mesh: MeshConfig) -> dict[str, Any]:
    """Embed every chunk; shards that a killed run finished are kept."""
    chunks = Corpus(inputs["corpus"]).chunks
    encoder = Encoder.load(inputs["retriever"].verified_path("chunk_encoder"), mesh, dtype=embed.dtype)

    # The rows of the shards that are not there yet, by the shard's file.
    starts = range(0, len(chunks), embed.shard_size)
    missing: dict[str, range] = {}
    for number, start in enumerate(starts):
        name = f"{shard_name('embeddings', number, len(starts))}.npy"
        if not output.has(name):
            end = min(start + embed.shard_size, len(chunks))
            missing[name] = range(start, end)

    with Progress(len(chunks), "embed", "passages") as bar:
        num_missing = sum(len(rows) for rows in missing.values())
        bar.advance(len(chunks) - num_missing)
        # A shard's passages are read while the devices embed those of the shard before it.
        passages = (_passages(chunks, rows) for rows in missing.values())
        embedded = encoder.embed_each(passages, embed.batch_size, bar)
        for name, embeddings in zip(missing, embedded, strict=True):
            output.write_array(name, embeddings)
    width = encoder.model.module.config.vector_size
    return {"chunks": len(chunks), "width": width, "shards": len(starts)}


def _passages(chunks: Chunks, rows: Sequence[int]) -> list[str]:
    return [chunk.passage for chunk in chunks.take(rows)]
