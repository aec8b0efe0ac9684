"""embed: one vector per chunk, by the frozen chunk encoder, in shards."""

import contextlib
from collections.abc import Sequence
from typing import Any

from etils import epath

from radit_jax.config import EmbedConfig, MeshConfig
from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.retrieval.search import Encoder
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.memory import DoesNotFitError
from radit_jax.runtime.monitoring.progress import Progress
from radit_jax.runtime.storage.fingerprints import shard_name
from radit_jax.runtime.storage.stage_folder import StageFolder, StageInputs


def run(inputs: StageInputs, output: StageFolder, *, embed: EmbedConfig, mesh: MeshConfig) -> dict[str, Any]:
    """Embed every chunk; shards that a killed run finished are kept.

    Each of several processes makes every n-th shard that is missing, on its own devices: it reads, tokenises
    and writes nothing of the others'.
    """
    chunks = Corpus(inputs["corpus"]).chunks
    path = inputs["retriever"].verified_path("chunk_encoder")
    encoder, own = _load(path, embed, mesh)
    index, count = processes.process_index_and_count() if own else (0, 1)

    # The rows of the shards that are not there yet, by the shard's file.
    starts = range(0, len(chunks), embed.shard_size)
    missing: dict[str, range] = {}
    for number, start in enumerate(starts):
        name = f"{shard_name('embeddings', number, len(starts))}.npy"
        if not output.has(name):
            end = min(start + embed.shard_size, len(chunks))
            missing[name] = range(start, end)
    names = list(missing)[index::count]

    # All processes together have the batch that the settings say.
    batch_size = -(-embed.batch_size // count)
    num_missing = sum(len(missing[name]) for name in names)
    total = max(num_missing, len(chunks) // count)
    done = total - num_missing
    with Progress(total, "embed", "passages", done=done, stops=not own) as bar:
        # A shard's passages are read while the devices embed those of the shard before it.
        passages = (_passages(chunks, missing[name]) for name in names)
        embedded = encoder.embed_each(passages, batch_size, bar)
        for turn in range(0, len(missing), count):
            # In the last turn there may be fewer shards than processes. All stop together, after a turn.
            for name in names[turn // count : turn // count + 1]:
                output.write_array(name, next(embedded), local=own)
            processes.barrier(f"embeddings from the shard {turn} on")
    width = encoder.model.module.config.vector_size
    return {"chunks": len(chunks), "width": width, "shards": len(starts)}


def _load(path: epath.Path, embed: EmbedConfig, mesh: MeshConfig) -> tuple[Encoder, bool]:
    """The chunk encoder, and whether it is on this process's own devices: if these have room for it."""
    if processes.is_multiprocess():
        with contextlib.suppress(DoesNotFitError):
            return Encoder.load(path, mesh, dtype=embed.dtype, own=True), True
    return Encoder.load(path, mesh, dtype=embed.dtype), False


def _passages(chunks: Chunks, rows: Sequence[int]) -> list[str]:
    return [chunk.passage for chunk in chunks.take(rows)]
