"""The corpus stage's folder: its chunks, and the questions asked of them."""

import dataclasses
import functools
import itertools
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Int

from radit_jax.data.artifacts.chunk_rows import (
    CHUNK_HASHES,
    CHUNK_ROWS,
    HASH_BYTES,
    ChunkRows,
    write_chunk_rows,
)
from radit_jax.data.artifacts.chunk_writing import (
    CHUNKS_PER_FILE,
    empty_chunks_folder,
    write_chunks,
)
from radit_jax.data.artifacts.chunks import CHUNKS, Chunks, open_chunk_file
from radit_jax.data.records import Chunk, Example, Question, Record, record_from_json
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage.bucket import get_file
from radit_jax.runtime.storage.files import read_json
from radit_jax.runtime.storage.listed_folder import commit_listed
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.text.metrics import contains_answer

SPLITS = ("train", "dev", "test")
PREPARED = "chunks.json"  # next to them, where radit_jax.data.sources.beam made them
_PREPARE = "Prepare the corpus again (python -m radit_jax.data.sources.beam)."
_AGAIN = "Delete the folder that holds it, and make it again."


@dataclass(frozen=True)
class CorpusData:
    """What a source of data gives: chunks, questions by split, and text to train base models with.

    `chunks` may be read from a file each time they are iterated over. `documents` and `encoder_groups` are
    empty where base models are checkpoints, or learn from the chunks. `examples` are those of D_L ("lm_ft")
    and D_R ("r_ft") by mixture and split, each with its question; empty where they are made of questions.
    """

    chunks: Iterable[Chunk]
    questions: dict[str, list[Question]]  # by split
    documents: Sequence[str] = ()  # text for a base language model
    encoder_groups: Sequence[Sequence[tuple[str, str]]] = ()  # groups of (query, passage) hard to tell apart
    examples: Mapping[tuple[str, str], Sequence[tuple[Question, Example]]] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)  # what was read and left out, for the manifest
    first_of: Mapping[str, str] = field(default_factory=dict)  # the first of some counts, in words


# ---- writing ----


def write_corpus(folder: StageFolder, data: CorpusData, chunks_per_file: int = CHUNKS_PER_FILE) -> int:
    """Write the corpus stage's files, a chunk in memory at a time, and say how many chunks there are."""
    num_chunks = write_chunks(folder, data.chunks, chunks_per_file)
    write_questions(folder, data)
    return num_chunks


def write_questions(folder: StageFolder, data: CorpusData) -> None:
    """All files but the chunks'."""
    for split in SPLITS:
        folder.write_jsonl(f"questions-{split}.jsonl", map(dataclasses.asdict, data.questions[split]))
    folder.write_jsonl("documents.jsonl", ({"text": text} for text in data.documents))
    folder.write_jsonl("encoder_groups.jsonl", ({"pairs": group} for group in data.encoder_groups))
    for (mixture, split), pairs in data.examples.items():
        folder.write_jsonl(f"{mixture}-{split}.jsonl", map(_example_record, pairs))


def _example_record(pair: tuple[Question, Example]) -> dict[str, Any]:
    question, example = pair
    return {"question": dataclasses.asdict(question), "example": dataclasses.asdict(example)}


# ---- chunks that Beam prepared ----


def prepared(passages: epath.PathLike, max_words: int) -> dict[str, Any] | None:
    """What `data.sources.beam` says of the chunks that it left in `passages`; None of any other corpus."""
    file = epath.Path(passages) / PREPARED
    if not file.exists():
        return None
    facts = _prepared_facts(file)
    prepared_words = facts["max_words"]
    if prepared_words != max_words:
        raise ValueError(
            f"{passages}: expected chunks of fewer than {max_words} words, got chunks of fewer than "
            f"{prepared_words}. Set data.max_words={prepared_words}, or prepare the corpus again."
        )
    return facts


def _prepared_facts(file: epath.Path) -> dict[str, Any]:
    """What `PREPARED` says; ValueError where a number is missing or is not one."""
    facts = read_json(file, _PREPARE)
    # `True` is an int to isinstance, so the type itself is compared below.
    numbers = [facts.get("chunks"), facts.get("max_words")]
    counts = facts.get("counts")
    numbers += counts.values() if isinstance(counts, dict) else [None]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(
            f"{file}: expected numbers of chunks, words and counts, got {str(facts)[:80]}. {_PREPARE}"
        )
    return facts


def copy_chunks(folder: StageFolder, passages: epath.PathLike) -> None:
    """Take the prepared chunks over as the stage's own; ValueError where some of them are missing."""
    source = epath.Path(passages) / CHUNKS
    target = empty_chunks_folder(folder)
    files = sorted(source.iterdir()) if source.exists() else []
    num_copied = 0
    with tempfile.TemporaryFile() as hashes:
        for file in files:
            get_file(file, target / file.name)
            reader = open_chunk_file(target / file.name, str(file), _PREPARE)
            num_copied += reader.num_records()
            # An earlier version left none.
            hashes_of_file = epath.Path(passages) / CHUNK_HASHES / file.name
            if hashes_of_file.exists():
                hashes.write(hashes_of_file.read_bytes())
        # Only a complete copy is committed.
        num_prepared = _prepared_facts(epath.Path(passages) / PREPARED)["chunks"]
        if num_copied != num_prepared:
            raise ValueError(
                f"{source}: expected the {num_prepared} chunks of {PREPARED}, got {num_copied}. {_PREPARE}"
            )
        commit_listed(folder, CHUNKS)
        if hashes.tell() == num_copied * HASH_BYTES:
            write_chunk_rows(folder, hashes)


# ---- reading ----


class Corpus:
    """A read-only view of a finished corpus folder."""

    def __init__(self, folder: StageFolder):
        self._folder = folder
        self.chunks = Chunks(folder)
        # All processes are here, but perhaps not where the first row is looked up.
        has_rows = folder.has(CHUNK_ROWS)
        self._rows_file = folder.verified_path(CHUNK_ROWS) if has_rows else None

    @functools.cached_property
    def rows(self) -> ChunkRows:
        """The row of every chunk id."""
        if self._rows_file is None:
            return ChunkRows.of(self.chunks)
        return ChunkRows.load(self._rows_file, self.chunks)

    def source_rows(self, examples: Sequence[Example]) -> Int[np.ndarray, " E"]:
        """The row of the chunk that each example was cut from; −1 is none, and reads no chunk."""
        rows = np.full(len(examples), -1)
        with_source = [i for i, example in enumerate(examples) if example.source_chunk]
        # The keys are opened for examples that have one.
        if with_source:
            rows[with_source] = self.rows.find([examples[i].source_chunk for i in with_source])
        return rows

    def questions(self, split: str) -> list[Question]:
        """The questions of a split."""
        return self._records(Question, f"questions-{split}.jsonl")

    def examples(self, mixture: str, split: str) -> list[tuple[Question, Example]] | None:
        """The examples of D_L ("lm_ft") or D_R ("r_ft"), with their questions; None: made of these."""
        name = f"{mixture}-{split}.jsonl"
        if not self._folder.has(name):
            return None
        where = str(self._folder.home / name)
        # A line has one of each.
        pairs = []
        for record in self._folder.read_jsonl(name):
            question = record_from_json(Question, record.get("question"), where)
            pairs.append((question, record_from_json(Example, record.get("example"), where)))
        return pairs

    def documents(self) -> list[str]:
        """The texts that the base language model learns from."""
        name = "documents.jsonl"
        return [self._text(name, record.get("text")) for record in self._folder.read_jsonl(name)]

    def encoder_groups(self) -> list[list[tuple[str, str]]]:
        """The groups of (query, passage) that the base encoders learn to tell apart."""
        name = "encoder_groups.jsonl"
        groups = []
        for record in self._folder.read_jsonl(name):
            # A group is written as a list of lists.
            pairs = record.get("pairs")
            if not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
                raise ValueError(f"{self._folder.home / name}: expected pairs of texts, got others. {_AGAIN}")
            group = []
            for query, passage in pairs:
                group.append((self._text(name, query), self._text(name, passage)))
            groups.append(group)
        return groups

    def _text(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"{self._folder.home / name}: expected texts, got {str(value)[:60]}. {_AGAIN}")
        return value

    def _records(self, kind: type[Record], name: str) -> list[Record]:
        where = str(self._folder.home / name)
        return [record_from_json(kind, record, where) for record in self._folder.read_jsonl(name)]

    def holds_answer(
        self, questions: Sequence[Question], rows: Int[np.ndarray, "Q K"]
    ) -> Bool[np.ndarray, "Q K"]:
        """Whether each question's retrieved chunk contains one of its answers; −1 rows do not.

        All processes call it, and each reads the chunks of some questions.
        """

        # Each chunk is read once, however many questions retrieved it.
        def look(places: Sequence[int]) -> list[list[bool]]:
            chunk_of = self.chunks.by_row(rows[places])
            return [_holds(questions[place], rows[place].tolist(), chunk_of) for place in places]

        holds = processes.in_shares("chunks with an answer", range(len(questions)), look)
        return np.array(holds, bool).reshape(rows.shape)

    def is_gold(self, questions: Sequence[Question], rows: Int[np.ndarray, "Q K"]) -> Bool[np.ndarray, "Q K"]:
        """Whether each question's retrieved chunk is one of its gold chunks."""
        is_gold = np.zeros(rows.shape, bool)
        row_of = self.gold_rows(questions)
        for i, (question, retrieved) in enumerate(zip(questions, rows, strict=True)):
            gold_rows = [row_of[chunk] for chunk in question.gold_chunks]
            is_gold[i] = np.isin(retrieved, gold_rows)
        return is_gold

    def gold_rows(self, questions: Sequence[Question]) -> dict[str, int]:
        """The row of each gold chunk of the questions, by its id; all processes look up some of them."""
        gold_ids = itertools.chain.from_iterable(question.gold_chunks for question in questions)
        ids = list(dict.fromkeys(gold_ids))
        rows = processes.in_shares("gold chunks", ids, lambda own: self.rows.find(own).tolist())
        row_of = dict(zip(ids, rows, strict=True))
        unknown = [chunk_id for chunk_id, row in row_of.items() if row < 0]
        if unknown:
            raise KeyError(unknown[0])
        return row_of

    def first_gold_rows(self, questions: Sequence[Question]) -> Int[np.ndarray, " Q"]:
        """The row of each question's first gold chunk; −1 is none."""
        row_of = self.gold_rows(questions)
        rows = np.full(len(questions), -1)
        for place, question in enumerate(questions):
            if question.gold_chunks:
                rows[place] = row_of[question.gold_chunks[0]]
        return rows


def _holds(question: Question, rows: Sequence[int], chunk_of: Mapping[int, Chunk]) -> list[bool]:
    """Whether the chunk at each row contains an answer."""
    holds = []
    for row in rows:
        has_chunk = row >= 0
        holds.append(has_chunk and contains_answer(chunk_of[row].passage, question.answers))
    return holds


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2
