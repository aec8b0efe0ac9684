"""Chunks come back by row, from few open files at a time, and never fewer than were written."""

import json
import pathlib
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from small import CHUNKS

from radit_jax.data.artifacts.chunk_writing import write_chunks
from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.runtime.storage.workdir import Workdir


@pytest.fixture(scope="module")
def chunks(inputs):
    return Chunks(inputs["corpus"])


@pytest.fixture
def folder(tmp_path):
    return Workdir(tmp_path).folder("corpus", "0123456789ab")


def test_chunks_are_read_by_row_in_any_order_and_as_often_as_asked(chunks):
    assert len(chunks) == len(CHUNKS)
    assert chunks[9] == CHUNKS[9]
    assert chunks.take(np.array([3, 0, 3])) == [CHUNKS[3], CHUNKS[0], CHUNKS[3]]
    assert chunks.take([]) == []


def test_chunks_of_several_files_are_read_as_one(tmp_path):
    folder = Workdir(tmp_path).folder("corpus", "x")
    for chunks in (CHUNKS[:8], CHUNKS[:9]):  # the second time over the first
        assert write_chunks(folder, iter(chunks), chunks_per_file=4) == len(chunks)
        read = Chunks(folder)
        assert list(read) == list(chunks)
        assert read.take([7, 0, 4, 7]) == [CHUNKS[7], CHUNKS[0], CHUNKS[4], CHUNKS[7]]
    assert len(list((folder.path / "chunks.array_record").iterdir())) == 3
    export = Workdir(tmp_path).published("export", "a" * 12)
    export.copy_from(folder, "chunks.array_record")
    assert list(Chunks(export)) == list(CHUNKS[:9])
    with pytest.raises(IndexError, match="expected rows from 0 to 8, got 2 to 9"):
        read.take([2, 9])


# ---- damage ----


def chunks_of(folder, records):
    (folder.path / "chunks.array_record").mkdir(parents=True)
    writer = ArrayRecordWriter(str(folder.path / "chunks.array_record" / "00000"), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    folder.commit("chunks.array_record")
    return folder.path / "chunks.array_record" / "00000"


@pytest.mark.parametrize(
    "record", [b"[]", b"{", b'{"id": "a"}', b'{"id": 1, "title": "", "text": ""}', b"\xff"]
)
def test_a_chunk_of_another_form_is_one_error(folder, record):
    chunks_of(folder, [json.dumps(asdict(CHUNKS[0])).encode(), record])
    assert Chunks(folder)[0] == CHUNKS[0]
    with pytest.raises(ValueError, match=r"chunks\.array_record/00000: expected "):
        Chunks(folder)[1]


@pytest.mark.parametrize("data", [b"", b"not records" * 7000])
def test_chunks_in_a_damaged_file_are_one_error(folder, data):
    chunks_of(folder, [b"{}"]).write_bytes(data)
    folder.commit("chunks.array_record")  # as if it had been so when it was hashed
    with pytest.raises(ValueError, match=r"00000: expected an ArrayRecord file, got a damaged one"):
        Chunks(folder)


OF_TEN = "expected the last of the 10 chunks that the manifest says, got"


# Ten chunks in three files of 4, 4 and 2.
@pytest.mark.parametrize(
    ("file", "number", "suspect", "fault"),
    [
        (0, 3, "00002", f"{OF_TEN} 8 chunks in 3 files"),
        (0, 5, "00002", f"{OF_TEN} 12 chunks in 3 files"),
        (1, 3, "00001", "expected 4 chunks, as the first file has, got 3"),
        (2, 1, "00002", f"{OF_TEN} 9 chunks in 3 files"),
        (2, 3, "00002", f"{OF_TEN} 11 chunks in 3 files"),
        (2, None, "00001", f"{OF_TEN} 8 chunks in 2 files"),
    ],
)
def test_another_number_of_chunks_than_the_manifest_says_names_file_and_numbers(
    folder, file, number, suspect, fault
):
    write_chunks(folder, iter(CHUNKS), chunks_per_file=4)
    path = folder.path / "chunks.array_record" / f"{file:05d}"
    path.unlink()
    if number is not None:
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for chunk in CHUNKS[:number]:
            writer.write(json.dumps(asdict(chunk)).encode())
        writer.close()
    folder.commit("chunks.array_record")  # so that the hash is that of the wrong files
    folder.finish(chunks=len(CHUNKS))
    with pytest.raises(ValueError, match=rf"chunks\.array_record/{suspect}: {fault}"):
        list(Chunks(folder))


def without_its_second_half(path):
    path.write_bytes(path.read_bytes()[:40_000])


DAMAGES = [pathlib.Path.unlink, lambda path: path.write_bytes(b""), without_its_second_half]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_damaged_before_it_is_opened_is_one_error(folder, damage):
    write_chunks(folder, iter(CHUNKS), chunks_per_file=4)
    folder.finish(chunks=len(CHUNKS))
    chunks = Chunks(folder)  # which verifies all, and opens the first and the last
    damage(pathlib.Path(folder.path / "chunks.array_record" / "00001"))
    assert chunks[9] == CHUNKS[9]
    with pytest.raises((ValueError, FileNotFoundError), match=r"chunks\.array_record/00001"):
        chunks[5]
    # The next reader sees it at once, by the hash.
    with pytest.raises(ValueError, match=r"chunks\.array_record: expected the .* bytes that were written"):
        Chunks(folder)


UNREADABLE = """
import sys
from etils import epath
from radit_jax.data.artifacts.chunks import open_chunk_file
file = epath.Path(sys.argv[1])
if sys.argv[2] == "permission":
    import os
    os.chmod(file, 0)
    if os.getuid() == 0:  # whom permissions do not stop
        os.seteuid(65534)
else:
    import os, resource
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, free))
try:
    open_chunk_file(file, "here", "")
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("case", "reason"), [("permission", "Permission denied"), ("limit", "Too many open files")]
)
def test_a_file_that_may_not_be_opened_is_the_systems_error_and_not_damage(tmp_path, case, reason):
    tmp_path.chmod(0o755)
    file = tmp_path / "00000"
    writer = ArrayRecordWriter(str(file), "group_size:1")
    writer.write(b"{}")
    writer.close()
    command = [sys.executable, "-c", UNREADABLE, str(file), case]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert reason in printed and str(file) in printed


MANY = """
import os, resource, sys
import numpy as np
from radit_jax.data.artifacts.chunk_writing import write_chunks
from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.records import Chunk
from radit_jax.retrieval.embeddings import Embeddings
from radit_jax.runtime.storage.workdir import Workdir

resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
workdir = Workdir(sys.argv[1])
folder = workdir.folder("corpus", "0" * 12)
wanted = [Chunk(f"c{row}", "", "A tower.") for row in range(240)]
write_chunks(folder, iter(wanted), chunks_per_file=2)
folder.finish(chunks=240)
chunks = Chunks(folder)
assert list(chunks) == wanted
assert chunks.take([239, 0, 100]) == [wanted[239], wanted[0], wanted[100]]
del chunks

folder = workdir.folder("embed", "0" * 12)
vectors = np.arange(480, dtype=np.float32).reshape(240, 2)
for number in range(120):
    folder.write_array(f"embeddings-{number:05d}-of-00120.npy", vectors[2 * number : 2 * number + 2])
folder.finish()
embeddings = Embeddings.load(folder)
assert (embeddings[np.arange(239, -1, -1)] == vectors[::-1]).all()
assert (embeddings.take(range(240)) == vectors).all()
print(len(os.listdir("/dev/fd")))
"""


def test_a_corpus_of_more_files_than_may_be_open_is_read(tmp_path):
    """120 files of chunks, then 120 of embeddings, where 100 files may be open."""
    command = [sys.executable, "-c", MANY, str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(printed) < 100
