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

from radit_jax.data.records import Chunk, Example, Question, Record, read_record
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage.bucket import get_file, put_file
from radit_jax.runtime.storage.files import parse_json, read_json
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.text.metrics import contains_answer

SPLITS = ("train", "dev", "test")
CHUNKS = "chunks.array_record"  # a folder of numbered files
PREPARED = "chunks.json"  # beside them, where radit_jax.data.sources.beam made them
_PREPARE = "Prepare the corpus again (python -m radit_jax.data.sources.beam)."
_AGAIN = "Delete the folder that holds it, and make it again."
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
            processes.stop_if_asked("the corpus")
            writer.write(json.dumps(dataclasses.asdict(chunk)).encode())
            count += 1
        writer.close()
        if count:
            put_file(path, target)
    return count


def prepared(passages: epath.PathLike, max_words: int) -> dict[str, Any] | None:
    """What `data.sources.beam` says of the chunks that it left in `passages`; None of any other corpus."""
    file = epath.Path(passages) / PREPARED
    if not file.exists():
        return None
    found = _prepared_facts(file)
    if found["max_words"] != max_words:
        raise ValueError(
            f"{passages}: chunks of fewer than {found['max_words']} words came, needed are fewer than "
            f"{max_words}; set data.max_words={found['max_words']}, or prepare the corpus again"
        )
    return found


def _prepared_facts(file: epath.Path) -> dict[str, Any]:
    found = read_json(file, _PREPARE)
    counts = found.get("counts")
    numbers = [
        found.get("chunks"),
        found.get("max_words"),
        *(counts.values() if isinstance(counts, dict) else [None]),
    ]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(
            f"{file}: expected numbers of chunks, words and counts, got {str(found)[:80]}. {_PREPARE}"
        )
    return found


def copy_chunks(folder: StageFolder, passages: epath.PathLike) -> None:
    """Takes the prepared chunks over as the stage's own; ValueError where some of them are missing."""
    target, source = folder.path / CHUNKS, epath.Path(passages) / CHUNKS
    if target.exists():
        target.rmtree()
    target.mkdir(parents=True)
    found = 0
    for file in sorted(source.iterdir()) if source.exists() else ():
        get_file(file, target / file.name)
        found += _open_chunks(target / file.name, str(file), _PREPARE).num_records()
    made = _prepared_facts(epath.Path(passages) / PREPARED)["chunks"]
    if found != made:
        raise ValueError(f"{source}: expected the {made} chunks of {PREPARED}, got {found}. {_PREPARE}")
    folder.commit(CHUNKS)


def _open_chunks(file: epath.Path, where: str, remedy: str) -> Any:
    """A reader of one of the numbered files; ValueError where it is none."""
    reader = ArrayRecordReader(str(file))
    if not reader.ok():  # it would say that there are no records
        raise ValueError(f"{where}: expected an ArrayRecord file, got a damaged one. {remedy}")
    return reader


class Chunks:
    """The corpus' chunks by row, read from ArrayRecord files when asked for."""

    def __init__(self, folder: StageFolder):
        files = sorted(folder.verified_path(CHUNKS).iterdir())
        self._where = str(folder.home / CHUNKS)
        self._readers = [_open_chunks(file, f"{self._where}/{file.name}", _AGAIN) for file in files]
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
            records = self._read(int(file), (own - file * self._per_file).tolist())
            found.update(zip(own.tolist(), records, strict=True))
        return [found[row] for row in wanted.tolist()]

    def _read(self, file: int, places: list[int]) -> list[Chunk]:
        """The records of a file at `places`."""
        try:
            records = self._readers[file].read(places)
        except (RuntimeError, IndexError) as error:
            raise ValueError(
                f"{self._where}: expected whole records, got damaged ones ({error}). {_AGAIN}"
            ) from None
        return [
            read_record(Chunk, parse_json(record, self._where, _AGAIN), self._where) for record in records
        ]


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
        return self._records(Question, f"questions-{split}.jsonl")

    def examples(self, mixture: str, split: str) -> list[tuple[Question, Example]] | None:
        """The examples of D_L ("lm_ft") or D_R ("r_ft"), beside their questions; None: made of these."""
        name = f"{mixture}-{split}.jsonl"
        if not self._folder.has(name):
            return None
        where = str(self._folder.home / name)
        pairs = []
        for record in self._folder.read_jsonl(name):
            question = read_record(Question, record.get("question"), where)
            pairs.append((question, read_record(Example, record.get("example"), where)))
        return pairs

    def documents(self) -> list[str]:
        texts = [record.get("text") for record in self._folder.read_jsonl("documents.jsonl")]
        return [self._text("documents.jsonl", text) for text in texts]

    def encoder_groups(self) -> list[list[tuple[str, str]]]:
        name = "encoder_groups.jsonl"
        groups = []
        for record in self._folder.read_jsonl(name):
            pairs = record.get("pairs")
            if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
                raise ValueError(f"{self._folder.home / name}: expected pairs of texts, got others. {_AGAIN}")
            groups.append([(self._text(name, query), self._text(name, passage)) for query, passage in pairs])
        return groups

    def _text(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"{self._folder.home / name}: expected texts, got {str(value)[:60]}. {_AGAIN}")
        return value

    def _records(self, kind: type[Record], name: str) -> list[Record]:
        where = str(self._folder.home / name)
        return [read_record(kind, record, where) for record in self._folder.read_jsonl(name)]

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
