"""The corpus stage's folder: chunks with random access by row, and the questions asked of them."""

import dataclasses
import functools
import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath
from jaxtyping import Bool, Int

from radit_jax.data.records import Chunk, Example, Question
from radit_jax.runtime.bucket import get_file, put_file
from radit_jax.runtime.store import StageFolder
from radit_jax.text.metrics import contains_answer

SPLITS = ("train", "dev", "test")
CHUNKS = "chunks.array_record"  # a folder of numbered files
PREPARED = "chunks.json"  # beside them, where radit_jax.data.beam made them
CHUNKS_PER_FILE = 1 << 16  # a writer remembers about 300 bytes a record until its file is closed


@dataclass(frozen=True)
class CorpusData:
    """What a source of data gives: chunks, questions by split, and text to train base models with.

    `chunks` may be read from a file each time they are iterated over. `documents` and `encoder_groups` are
    empty where base models are checkpoints, or learn from the chunks. `examples` are those of D_L ("lm_ft")
    and D_R ("r_ft") by mixture and split, each beside its question; empty where they are made of questions.
    """

    chunks: Iterable[Chunk]
    questions: dict[str, list[Question]]
    documents: Sequence[str] = ()
    encoder_groups: Sequence[Sequence[tuple[str, str]]] = ()  # groups of (query, passage) hard to tell apart
    examples: Mapping[tuple[str, str], Sequence[tuple[Question, Example]]] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)


def write_corpus(folder: StageFolder, data: CorpusData) -> int:
    """Write the corpus stage's files, a chunk in memory at a time, and say how many chunks there are."""
    num_chunks = write_chunks(folder, data.chunks)
    write_questions(folder, data)
    return num_chunks


def write_questions(folder: StageFolder, data: CorpusData) -> None:
    """All files but the chunks'."""
    for split in SPLITS:
        folder.write_jsonl(f"questions-{split}.jsonl", map(dataclasses.asdict, data.questions[split]))
    folder.write_jsonl("documents.jsonl", ({"text": text} for text in data.documents))
    folder.write_jsonl("encoder_groups.jsonl", ({"pairs": group} for group in data.encoder_groups))
    for (mixture, split), pairs in data.examples.items():
        rows = (
            {"question": dataclasses.asdict(question), "example": dataclasses.asdict(example)}
            for question, example in pairs
        )
        folder.write_jsonl(f"{mixture}-{split}.jsonl", rows)


def write_chunks(folder: StageFolder, chunks: Iterable[Chunk]) -> int:
    """Write the chunks alone, and say how many there are."""
    target, count = folder.path / CHUNKS, 0
    if target.exists():
        target.rmtree()
    target.mkdir(parents=True)
    rest = iter(chunks)
    while some := write_chunk_file(
        target / f"{count // CHUNKS_PER_FILE:05d}", itertools.islice(rest, CHUNKS_PER_FILE)
    ):
        count += some
    folder.commit(CHUNKS)
    return count


def write_chunk_file(target: epath.Path, chunks: Iterator[Chunk]) -> int:
    """Write one of the numbered files, which may be in a bucket, and say how many chunks came."""
    # The writer knows local files only; a group of one record makes every row its own random access.
    with tempfile.TemporaryDirectory() as scratch:
        path, count = Path(scratch) / "records", 0
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for chunk in chunks:
            writer.write(json.dumps(dataclasses.asdict(chunk)).encode())
            count += 1
        writer.close()
        if count:
            put_file(path, target)
    return count


def prepared(passages: epath.PathLike, max_words: int) -> dict[str, Any] | None:
    """What `radit_jax.data.beam` says of the chunks that it left in `passages`; None of any other corpus."""
    facts = epath.Path(passages) / PREPARED
    if not facts.exists():
        return None
    found = json.loads(facts.read_text())
    if found["max_words"] != max_words:
        raise ValueError(
            f"{passages}: chunks of fewer than {found['max_words']} words came, needed are fewer than "
            f"{max_words}; set data.max_words={found['max_words']}, or prepare the corpus again"
        )
    return found


def copy_chunks(folder: StageFolder, passages: epath.PathLike) -> None:
    """Takes the prepared chunks over as the stage's own."""
    target = folder.path / CHUNKS
    if target.exists():
        target.rmtree()
    target.mkdir(parents=True)
    for file in sorted((epath.Path(passages) / CHUNKS).iterdir()):
        get_file(file, target / file.name)
    folder.commit(CHUNKS)


class Chunks:
    """The corpus' chunks by row, read from ArrayRecord files when asked for."""

    def __init__(self, folder: StageFolder):
        files = sorted(folder.check(CHUNKS).iterdir())
        self._readers = [ArrayRecordReader(str(file)) for file in files]
        self._num_chunks = sum(reader.num_records() for reader in self._readers)
        self._per_file = (
            self._readers[0].num_records() if self._readers else 1
        )  # all but the last are as long

    def __len__(self) -> int:
        return self._num_chunks

    def __getitem__(self, row: int) -> Chunk:
        return self.take([row])[0]

    def __iter__(self) -> Iterator[Chunk]:
        for start in range(0, len(self), 4096):
            yield from self.take(range(start, min(start + 4096, len(self))))

    def take(self, rows: Iterable[SupportsIndex]) -> list[Chunk]:
        """The chunks at `rows`, read in one parallel access to each file."""
        wanted = np.array([int(row) for row in rows], np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"chunks: rows {wanted.min()} to {wanted.max()} came, there are {len(self)}")
        found: dict[int, Chunk] = {}
        for file in np.unique(wanted // self._per_file):
            own = np.unique(wanted[wanted // self._per_file == file])
            records = self._readers[file].read((own - file * self._per_file).tolist())
            found.update(zip(own.tolist(), (Chunk(**json.loads(r)) for r in records), strict=True))
        return [found[row] for row in wanted.tolist()]


class Corpus:
    """A read-only view of a finished corpus folder."""

    def __init__(self, folder: StageFolder):
        self._folder = folder
        self.chunks = Chunks(folder)

    @functools.cached_property
    def rows(self) -> dict[str, int]:
        """The row of every chunk id."""
        return {chunk.id: row for row, chunk in enumerate(self.chunks)}

    def source_rows(self, examples: Sequence[Example]) -> Int[np.ndarray, " E"]:
        """The row of the chunk that each example was cut from; −1 is none, and reads no chunk."""
        return np.array([self.rows.get(e.source_chunk, -1) if e.source_chunk else -1 for e in examples], int)

    def questions(self, split: str) -> list[Question]:
        return [_question(record) for record in self._folder.read_jsonl(f"questions-{split}.jsonl")]

    def examples(self, mixture: str, split: str) -> list[tuple[Question, Example]] | None:
        """The examples of D_L ("lm_ft") or D_R ("r_ft"), beside their questions; None: made of these."""
        name = f"{mixture}-{split}.jsonl"
        if not self._folder.has(name):
            return None
        records = self._folder.read_jsonl(name)
        return [(_question(record["question"]), Example(**record["example"])) for record in records]

    def documents(self) -> list[str]:
        return [record["text"] for record in self._folder.read_jsonl("documents.jsonl")]

    def encoder_groups(self) -> list[list[tuple[str, str]]]:
        groups = self._folder.read_jsonl("encoder_groups.jsonl")
        return [[(query, passage) for query, passage in record["pairs"]] for record in groups]

    def holds_answer(
        self, questions: Sequence[Question], rows: Int[np.ndarray, "Q K"]
    ) -> Bool[np.ndarray, "Q K"]:
        """Whether each question's retrieved chunk contains one of its answers; −1 rows do not."""
        wanted = np.unique(rows[rows >= 0])
        passages = dict(zip(wanted.tolist(), (c.passage for c in self.chunks.take(wanted)), strict=True))
        return np.array(
            [
                [row >= 0 and contains_answer(passages[row], question.answers) for row in found]
                for question, found in zip(questions, rows.tolist(), strict=True)
            ],
            dtype=bool,
        ).reshape(rows.shape)

    def is_gold(self, questions: Sequence[Question], rows: Int[np.ndarray, "Q K"]) -> Bool[np.ndarray, "Q K"]:
        """Whether each question's retrieved chunk is one of its gold chunks."""
        gold = [{self.rows[chunk] for chunk in question.gold_chunks} for question in questions]
        return np.array(
            [[row in wanted for row in found] for wanted, found in zip(gold, rows.tolist(), strict=True)],
            dtype=bool,
        ).reshape(rows.shape)


def _question(record: Mapping[str, Any]) -> Question:
    lists = {name: tuple(record[name]) for name in ("answers", "gold_chunks")}
    return Question(**{**record, **lists})
