"""corpus: reads or generates the chunks to retrieve from and the questions that are asked of them.

For instructions the chunks are a stage of their own, so that other datasets leave the embeddings as they are.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from radit_jax.config import Folder, GeneratedWorld, Instructions, MeshConfig
from radit_jax.data.artifacts.chunks import CHUNKS, write_chunks
from radit_jax.data.artifacts.corpus import (
    SPLITS,
    CorpusData,
    copy_chunks,
    prepared,
    write_corpus,
    write_questions,
)
from radit_jax.data.readers.documents import corpus_format
from radit_jax.data.readers.tables import Quoting
from radit_jax.data.sources import folder as text_folder
from radit_jax.data.sources import generated_world, instructions
from radit_jax.data.sources.small_data import small_data_warnings
from radit_jax.runtime.storage.stage_folder import StageFolder, StageInputs


def run(
    inputs: StageInputs,
    output: StageFolder,
    *,
    data: GeneratedWorld | Folder,
    seed: int,
    mesh: MeshConfig,
) -> dict[str, Any]:
    """Read or generate the data, check it, and write chunks (ArrayRecord) and questions (JSON lines)."""
    if isinstance(data, GeneratedWorld):
        corpus = generated_world.generate_world(data, seed)
    else:
        corpus = text_folder.read_folder(data, seed)
        _warn(text_folder.folder_warnings(corpus))
        _warn(small_data_warnings(corpus.questions))
    return {"chunks": write_corpus(output, corpus), **_counts(corpus)}


def run_chunks(
    inputs: StageInputs,
    output: StageFolder,
    *,
    passages: str,
    format: str,
    quoting: Quoting,
    max_words: int,
    mesh: MeshConfig,
) -> dict[str, Any]:
    """Split the corpus into chunks, or take over those that Beam made of it."""
    made = prepared(passages, max_words)
    if made:
        copy_chunks(output, passages)
        facts = {"chunks": made["chunks"], "format": made.get("format", "")}
        return {**facts, "passages": passages, **made["counts"]}
    # One document after the other: a corpus need not fit into memory. Reading fills `counts`.
    counts = Counter[str]()
    path = instructions.corpus_path(passages)
    form = corpus_format(path) if format == "auto" else format
    chunks = instructions.read_chunks(passages, form, max_words, counts, quoting)
    num_chunks = write_chunks(output, chunks)
    return {"chunks": num_chunks, "format": form, "passages": passages, **counts}


def run_examples(
    inputs: StageInputs,
    output: StageFolder,
    *,
    data: Instructions,
    corpus_text_fraction: float,
    instances_per_example: int,
    seed: int,
    mesh: MeshConfig,
) -> dict[str, Any]:
    """Draw the examples of D_L and D_R, and write them next to the chunks."""
    corpus = instructions.read_examples(data, corpus_text_fraction, instances_per_example, seed)
    # Readers of the corpus find what they need in this stage's manifest alone.
    facts = {name: inputs["chunks"].manifest.get(name, "") for name in ("chunks", "passages", "format")}
    _warn(instructions.instruction_warnings(data, facts["chunks"], corpus))
    output.copy_from(inputs["chunks"], CHUNKS)
    write_questions(output, corpus)
    sizes = {f"{mixture}_{split}_tasks": len(pairs) for (mixture, split), pairs in corpus.examples.items()}
    return {**facts, **sizes, **_counts(corpus)}


def _warn(surprises: Sequence[str]) -> None:
    for surprise in surprises:
        print(f"   warning: {surprise}", flush=True)


def _counts(corpus: CorpusData) -> dict[str, Any]:
    # How many questions each split has, and what the reader counted.
    num_questions = {f"{split}_questions": len(corpus.questions[split]) for split in SPLITS}
    return {**num_questions, **corpus.counts}
