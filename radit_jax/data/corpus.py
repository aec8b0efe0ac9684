"""The corpus stage's folder: chunks with random access by row, and the questions asked of them."""

import dataclasses
import functools
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from jaxtyping import Bool, Int

from radit_jax.data.records import Chunk, Question
from radit_jax.runtime.store import StageFolder
from radit_jax.text.metrics import contains_answer

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class CorpusData:
    """What a source of data gives: chunks, questions by split, and text to train base models with.

    `documents` and `encoder_groups` are empty where base models are checkpoints, or learn from the chunks.
    """

    chunks: Sequence[Chunk]
    questions: dict[str, list[Question]]
    documents: Sequence[str] = ()
    encoder_groups: Sequence[Sequence[tuple[str, str]]] = ()  # groups of (query, passage) hard to tell apart
    counts: dict[str, int] = field(default_factory=dict)


def write_corpus(folder: StageFolder, data: CorpusData) -> None:
    folder.write("chunks.array_record", _array_record(json.dumps(dataclasses.asdict(c)) for c in data.chunks))
    for split in SPLITS:
        folder.write_jsonl(f"questions-{split}.jsonl", map(dataclasses.asdict, data.questions[split]))
    folder.write_jsonl("documents.jsonl", ({"text": text} for text in data.documents))
    folder.write_jsonl("encoder_groups.jsonl", ({"pairs": group} for group in data.encoder_groups))


def _array_record(lines: Iterable[str]) -> bytes:
    # The writer knows local files only; a group of one record makes every row its own random access.
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "records"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for line in lines:
            writer.write(line.encode())
        writer.close()
        return path.read_bytes()


class Chunks:
    """The corpus' chunks by row, read from an ArrayRecord file when asked for."""

    def __init__(self, folder: StageFolder):
        self._reader = ArrayRecordReader(str(folder.check("chunks.array_record")))

    def __len__(self) -> int:
        return self._reader.num_records()

    def __getitem__(self, row: int) -> Chunk:
        return self.take([row])[0]

    def __iter__(self) -> Iterator[Chunk]:
        for start in range(0, len(self), 4096):
            yield from self.take(range(start, min(start + 4096, len(self))))

    def take(self, rows: Iterable[SupportsIndex]) -> list[Chunk]:
        """The chunks at `rows`, read in one parallel access."""
        return [Chunk(**json.loads(record)) for record in self._reader.read([int(row) for row in rows])]


class Corpus:
    """A read-only view of a finished corpus folder."""

    def __init__(self, folder: StageFolder):
        self._folder = folder
        self.chunks = Chunks(folder)

    @functools.cached_property
    def rows(self) -> dict[str, int]:
        """The row of every chunk id."""
        return {chunk.id: row for row, chunk in enumerate(self.chunks)}

    def questions(self, split: str) -> list[Question]:
        return [
            Question(q["id"], q["question"], tuple(q["answers"]), tuple(q["gold_chunks"]), q["group"])
            for q in self._folder.read_jsonl(f"questions-{split}.jsonl")
        ]

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
