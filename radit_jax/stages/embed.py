"""embed: one vector per chunk, by the frozen chunk encoder, in shards."""

from collections.abc import Mapping
from typing import Any

from radit_jax.config import EmbedConfig, MeshConfig
from radit_jax.data.corpus import Corpus
from radit_jax.retrieval.search import Encoder
from radit_jax.runtime.progress import Progress
from radit_jax.runtime.store import StageFolder, shard_name


def run(
    inputs: Mapping[str, StageFolder], output: StageFolder, *, embed: EmbedConfig, mesh: MeshConfig
) -> dict[str, Any]:
    """Embed every chunk; shards that a killed run finished are kept."""
    chunks = Corpus(inputs["corpus"]).chunks
    encoder = Encoder.load(inputs["retriever"].check("chunk_encoder"), mesh, dtype=embed.dtype)
    num_shards = -(-len(chunks) // embed.shard_size)
    with Progress(len(chunks), "embed", "passages") as bar:
        for number in range(num_shards):
            rows = range(number * embed.shard_size, min((number + 1) * embed.shard_size, len(chunks)))
            name = f"{shard_name('embeddings', number, num_shards)}.npy"
            if output.has(name):
                bar.advance(len(rows))
                continue
            passages = [chunk.passage for chunk in chunks.take(rows)]
            output.write_array(name, encoder.embed(passages, embed.batch_size, bar))
    return {"chunks": len(chunks), "width": encoder.model.module.config.hidden_size, "shards": num_shards}
