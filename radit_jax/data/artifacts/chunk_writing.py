"""Writes the corpus' chunks: numbered files in the order of rows, and the row of every id."""

import io
import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from radit_jax.data.artifacts.chunk_rows import id_hash, write_chunk_rows
from radit_jax.data.artifacts.chunks import CHUNKS
from radit_jax.data.records import Chunk
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage.bucket import put_file
from radit_jax.runtime.storage.listed_folder import commit_listed
from radit_jax.runtime.storage.stage_folder import StageFolder

CHUNKS_PER_FILE = 1 << 16  # a writer remembers about 300 bytes a record until its file is closed
WRITER_OPTIONS = "group_size:1"  # so that every row is its own random access


def write_chunks(folder: StageFolder, chunks: Iterable[Chunk], chunks_per_file: int = CHUNKS_PER_FILE) -> int:
    """Write the chunks, a chunk in memory at a time, and say how many there are."""
    target = empty_chunks_folder(folder)
    total = 0
    rest = iter(chunks)
    with tempfile.TemporaryFile() as hashes:
        for number in itertools.count():
            of_file = itertools.islice(rest, chunks_per_file)
            # A file that would be empty is not written: all chunks are.
            written = write_chunk_file(target / f"{number:05d}", of_file, hashes)
            if not written:
                break
            total += written
        commit_listed(folder, CHUNKS)
        write_chunk_rows(folder, hashes)
    return total


def empty_chunks_folder(folder: StageFolder) -> epath.Path:
    """Where the chunks' files are written, without those of a run that was killed."""
    target = folder.path / CHUNKS
    if target.exists():
        target.rmtree()
    target.mkdir(parents=True)
    return target


def write_chunk_file(target: epath.Path, chunks: Iterator[Chunk], hashes: io.BufferedIOBase) -> int:
    """Write one of the numbered files, which may be in a bucket, and say how many chunks it has.

    The `id_hash` of each goes to `hashes`.
    """
    # The writer knows local files only.
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "records"
        count = 0
        writer = ArrayRecordWriter(str(path), WRITER_OPTIONS)
        for chunk in chunks:
            processes.stop_if_asked("the corpus")
            writer.write(chunk_record(chunk))
            hashes.write(id_hash(chunk.id))
            count += 1
        writer.close()
        if count:
            put_file(path, target)
    return count


def chunk_record(chunk: Chunk) -> bytes:
    """A chunk as it is stored."""
    # `asdict` would take longer than all else that is done with a chunk.
    fields = {"id": chunk.id, "title": chunk.title, "text": chunk.text}
    return json.dumps(fields).encode()
