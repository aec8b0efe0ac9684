"""Cuts a large corpus into chunks with all cores of a host, and goes on where a killed run stopped.

The corpus is one file whose lines can be read without those before. Other processes read and cut its parts.
This one writes what they return, in the order of the corpus, into the same files as the path for small ones.
Until the last file is written, a folder next to them has the ids' hashes and a note of what is whole.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from radit_jax.data.artifacts.chunk_rows import HASH_BYTES, id_hash, write_chunk_rows
from radit_jax.data.artifacts.chunk_writing import CHUNKS_PER_FILE, WRITER_OPTIONS, chunk_record
from radit_jax.data.artifacts.chunks import CHUNKS, open_chunk_file
from radit_jax.data.readers.chunking import count_document, own_ids, split_document
from radit_jax.data.readers.documents import corpus_files
from radit_jax.data.readers.parts import FileRange, find_parts, part_documents
from radit_jax.data.readers.tables import Quoting
from radit_jax.data.readers.unique_ids import UniqueIds, hash_bytes
from radit_jax.runtime.distributed.worker_processes import map_in_order
from radit_jax.runtime.monitoring.progress import Progress
from radit_jax.runtime.storage.entries import sync
from radit_jax.runtime.storage.files import read_json, write_whole
from radit_jax.runtime.storage.listed_folder import commit_listed
from radit_jax.runtime.storage.stage_folder import StageFolder

CUTTING = "cutting"  # a folder that is there until the corpus has all files
NOTE = "note.json"
PART_BYTES = 1 << 22  # which is cut in a second, so that a stop waits no longer
LARGE = 1 << 26  # bytes; what is smaller is cut by one process before others would have started

ReadIds = Callable[[], Iterable[tuple[str, str]]]  # all ids of a corpus, each with its place


class CutPart(NamedTuple):
    """What a part of the corpus gives."""

    records: list[bytes]  # its chunks, as they are stored
    hashes: bytes  # the `id_hash` of each chunk
    own_ids: bytes  # the `hash_bytes` of each id that is its alone, of documents and chunks
    counts: dict[str, int]  # what was read


def parts_of_large(path: epath.Path, form: str, quoting: Quoting) -> list[FileRange]:
    """The parts of a corpus for `cut_corpus`; none of a small one, or of one that is not a file of lines."""
    files = corpus_files(path, form)
    if len(files) != 1 or files[0].stat().length < LARGE:
        return []
    parts = find_parts(path, form, quoting, PART_BYTES)
    return parts if len(parts) > 1 else []


def cut_part(part: FileRange, max_words: int) -> CutPart:
    """Read and cut a part of the corpus."""
    records: list[bytes] = []
    hashes: list[bytes] = []
    ids: list[bytes] = []
    counts = Counter[str]()
    for document in part_documents(part):
        chunks = split_document(document, max_words)
        count_document(counts, chunks)
        ids += map(hash_bytes, own_ids(document, chunks))
        for chunk in chunks:
            records.append(chunk_record(chunk))
            hashes.append(id_hash(chunk.id))
    return CutPart(records, b"".join(hashes), b"".join(ids), dict(counts))


@dataclass(frozen=True)
class Note:
    """How far whole files of chunks go."""

    corpus: str  # a hash of what is cut, and how
    num_files: int = 0  # that are whole
    part: int = 0  # the one that the next chunk is of
    used: int = 0  # chunks of that part in whole files
    id_bytes: int = 0  # of the ids of all parts before
    counts: dict[str, int] = field(default_factory=dict)  # of all parts before


def cut_corpus(
    folder: StageFolder,
    parts: Sequence[FileRange],
    max_words: int,
    read_ids: ReadIds,
    num_processes: int,
    chunks_per_file: int = CHUNKS_PER_FILE,
) -> tuple[int, Counter[str]]:
    """Write the chunks of all parts; their number, and what was read.

    ValueError where an id was used twice; `read_ids` then says where.
    """
    scratch = folder.path / CUTTING
    scratch.mkdir(parents=True, exist_ok=True)
    note = _last_note(folder, _hash(parts, max_words, chunks_per_file), chunks_per_file)
    with contextlib.ExitStack() as open_files:
        # 1) Open what is written, and forget what was written after the note.
        ids = open_files.enter_context(UniqueIds(scratch / "ids", note.id_bytes))
        hashes = open_files.enter_context(open(scratch / "hashes", "a+b"))
        hashes.truncate(note.num_files * chunks_per_file * HASH_BYTES)
        files = _ChunkFiles(folder.path / CHUNKS, note.num_files, chunks_per_file)

        # 2) Cut the parts that are left, and write their chunks in order.
        cut = functools.partial(cut_part, max_words=max_words)
        results = map_in_order(cut, parts[note.part :], num_processes)
        open_files.enter_context(contextlib.closing(results))
        bar = open_files.enter_context(Progress(len(parts), "corpus", "parts", done=note.part))
        for number, result in enumerate(results, note.part):
            place = note.used if number == note.part else 0
            while place < len(result.records):
                end = place + files.add(result.records[place:])
                hashes.write(result.hashes[place * HASH_BYTES : end * HASH_BYTES])
                place = end
                if files.is_full:
                    files.close()
                    _keep(hashes, ids.file)
                    note = replace(note, num_files=files.number, part=number, used=place)
                    write_whole(scratch / NOTE, json.dumps(asdict(note)))
            ids.add_hashes(result.own_ids)
            counts = Counter(note.counts) + Counter(result.counts)
            id_bytes = note.id_bytes + len(result.own_ids)
            note = replace(note, id_bytes=id_bytes, counts=dict(counts))
            bar.advance(1)
        files.close()

        # 3) Commit them, unless an id stands for two.
        ids.check(read_ids)
        commit_listed(folder, CHUNKS)
        num_chunks = hashes.seek(0, 2) // HASH_BYTES
        write_chunk_rows(folder, hashes)
    folder.drop(CUTTING)
    return num_chunks, Counter(note.counts)


class _ChunkFiles:
    """Numbered files of chunks, each with as many as the one before; the last has what is left."""

    def __init__(self, target: epath.Path, number: int, chunks_per_file: int):
        self.number = number  # of the next file, or of the one that is being written
        self._target = target
        self._per_file = chunks_per_file
        self._writer: Any = None
        self._count = 0

    @property
    def is_full(self) -> bool:
        """Whether the file that is being written has all its chunks."""
        return self._count == self._per_file

    def add(self, records: Sequence[bytes]) -> int:
        """Write as many of the records as the file has room for, and say how many."""
        if self._writer is None:
            self._writer = ArrayRecordWriter(str(self._path), WRITER_OPTIONS)
        taken = records[: self._per_file - self._count]
        for record in taken:
            self._writer.write(record)
        self._count += len(taken)
        return len(taken)

    def close(self) -> None:
        """Finish the file that is being written, if there is one."""
        if self._writer is not None:
            self._writer.close()
            sync(self._path)
            self.number += 1
            self._writer, self._count = None, 0

    @property
    def _path(self) -> epath.Path:
        return self._target / f"{self.number:05d}"


# ---- going on ----


def _hash(parts: Sequence[FileRange], max_words: int, chunks_per_file: int) -> str:
    """What a note is about: another version may cut other parts, or write other files."""
    said = json.dumps([max_words, chunks_per_file, *parts])
    return hashlib.sha256(said.encode()).hexdigest()


def _last_note(folder: StageFolder, corpus: str, chunks_per_file: int) -> Note:
    """The note of a run that was killed, and its whole files alone; a new one where there is none."""
    note = _read_note(folder.path / CUTTING / NOTE)
    target = folder.path / CHUNKS
    whole = [target / f"{number:05d}" for number in range(note.num_files)]
    if note.corpus != corpus or not all(_has(file, chunks_per_file) for file in whole):
        note, whole = Note(corpus), []
    # What was written after the note is written again.
    target.mkdir(parents=True, exist_ok=True)
    for file in target.iterdir():
        if file not in whole:
            file.unlink()
    if whole:
        print(f"   {len(whole)} files of chunks are there; the rest is cut", flush=True)
    return note


def _read_note(file: epath.Path) -> Note:
    """The note in `file`; one of nothing where there is none, or a damaged one."""
    if not file.exists():
        return Note("")
    with contextlib.suppress(ValueError, TypeError):
        return Note(**read_json(file, "It is made again."))
    return Note("")


def _has(file: epath.Path, num_chunks: int) -> bool:
    """Whether a file of chunks is whole."""
    try:
        return open_chunk_file(file, str(file), "").num_records() == num_chunks
    except (OSError, ValueError):
        return False


def _keep(*files: io.BufferedIOBase) -> None:
    """Bring to the disk what was written, before a note speaks of it."""
    for file in files:
        file.flush()
        os.fsync(file.fileno())
