"""corpus: the chunks to retrieve from and the questions asked of them, from where the data come from."""

from collections.abc import Mapping
from typing import Any

from radit_jax.config import Folder, GeneratedWorld, MeshConfig
from radit_jax.data import folder as text_folder
from radit_jax.data import world
from radit_jax.data.corpus import SPLITS, write_corpus
from radit_jax.runtime.store import StageFolder


def run(
    inputs: Mapping[str, StageFolder],
    output: StageFolder,
    *,
    data: GeneratedWorld | Folder,
    seed: int,
    mesh: MeshConfig,
) -> dict[str, Any]:
    """Read or generate the data, check it, and write chunks (ArrayRecord) and questions (JSON lines)."""
    corpus = world.read(data, seed) if isinstance(data, GeneratedWorld) else text_folder.read(data, seed)
    num_chunks = write_corpus(output, corpus)
    counts = {f"{split}_questions": len(corpus.questions[split]) for split in SPLITS}
    return {"chunks": num_chunks, **counts, **corpus.counts}
