"""corpus: reads or generates the chunks to retrieve from and the questions that are asked of them.

For instructions the chunks are a stage of their own, so that other datasets leave the embeddings as they are.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from radit_jax.config import Folder, GeneratedWorld, Instructions, MeshConfig
from radit_jax.data.artifacts.chunk_rows import CHUNK_ROWS
from radit_jax.data.artifacts.chunk_writing import write_chunks
from radit_jax.data.artifacts.chunks import CHUNKS
from radit_jax.data.artifacts.corpus import (
    SPLITS,
    CorpusData,
    copy_chunks,
    prepared,
    write_questions,
)
from radit_jax.data.readers.documents import Passages, corpus_format, ids_with_places
from radit_jax.data.readers.tables import Quoting
from radit_jax.data.records import Chunk
from radit_jax.data.sources import folder as text_folder
from radit_jax.data.sources import generated_world, instructions
from radit_jax.data.sources.cutting import cut_corpus, parts_of_large
from radit_jax.data.sources.small_data import small_data_warnings
from radit_jax.runtime.distributed.worker_processes import num_cores
from radit_jax.runtime.storage.listed_folder import LIST
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
    num_chunks = _write_chunks(output, corpus.chunks)
    write_questions(output, corpus)
    return {"chunks": num_chunks, **_counts(corpus)}


def _write_chunks(output: StageFolder, chunks: Iterable[Chunk]) -> int:
    """Write the chunks, those of a large file with all cores, and say how many there are."""
    if isinstance(chunks, Passages):
        cut = _cut_large(output, chunks.path, chunks.format, chunks.max_words, chunks.quoting)
        if cut is not None:
            return cut[0]
    return write_chunks(output, chunks)


def _cut_large(
    output: StageFolder, path: epath.Path, form: str, max_words: int, quoting: Quoting
) -> tuple[int, Counter[str]] | None:
    """Cut a large corpus with all cores: the number of chunks, and what was read; None of another corpus."""
    parts = parts_of_large(path, form, quoting)
    if not parts:
        return None

    def read_ids() -> Iterator[tuple[str, str]]:
        return ids_with_places(path, form, max_words, quoting)

    return cut_corpus(output, parts, max_words, read_ids, num_cores())


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
    path = instructions.corpus_path(passages)
    form = corpus_format(path) if format == "auto" else format
    cut = _cut_large(output, path, form, max_words, quoting)
    if cut is not None:
        num_chunks, counts = cut
        instructions.refuse_no_text(path, counts)
    else:
        # One document after the other: a corpus need not fit into memory. Reading fills `counts`.
        counts = Counter[str]()
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
    # An earlier version left no more than chunks.
    for name in (f"{CHUNKS}{LIST}", CHUNK_ROWS):
        if inputs["chunks"].has(name):
            output.copy_from(inputs["chunks"], name)
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
