"""embed: one vector per chunk, by the frozen chunk encoder, in shards."""

from collections.abc import Sequence
from typing import Any

from radit_jax.config import EmbedConfig, MeshConfig
from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.retrieval.search import Encoder
from radit_jax.runtime.shards import Shards
from radit_jax.runtime.storage.fingerprints import shard_name
from radit_jax.runtime.storage.stage_folder import StageFolder, StageInputs


def run(inputs: StageInputs, output: StageFolder, *, embed: EmbedConfig, mesh: MeshConfig) -> dict[str, Any]:
    """Embed every chunk; shards that a killed run finished are kept.

    Each of several processes reads, tokenises, embeds and writes shards of its own.
    """
    chunks = Corpus(inputs["corpus"]).chunks
    path = inputs["retriever"].verified_path("chunk_encoder")
    encoder = Encoder.load_copies(path, mesh, dtype=embed.dtype)

    # The rows of each shard, by its file.
    starts = range(0, len(chunks), embed.shard_size)
    rows: dict[str, range] = {}
    for number, start in enumerate(starts):
        name = f"{shard_name('embeddings', number, len(starts))}.npy"
        rows[name] = range(start, min(start + embed.shard_size, len(chunks)))
    sizes = {name: len(rows_of_shard) for name, rows_of_shard in rows.items()}
    shards = Shards.find(output, sizes, encoder.own)

    # All processes together have the batch that the settings say.
    batch_size = -(-embed.batch_size // shards.count)
    with shards.progress("embed", "passages") as bar:
        # A shard's passages are read while the devices embed those of the shard before it.
        passages = (_passages(chunks, rows[name]) for name in shards.own)
        shards.write_each(encoder.embed_each(passages, batch_size, bar), output.write_array)
    width = encoder.model.module.config.vector_size
    return {"chunks": len(chunks), "width": width, "shards": len(starts)}


def _passages(chunks: Chunks, rows: Sequence[int]) -> list[str]:
    return [chunk.passage for chunk in chunks.take(rows)]
