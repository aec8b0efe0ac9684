"""A corpus in parts that can be read without those before them: by Beam's workers, or by a host's cores."""

import codecs
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from etils import epath

from radit_jax.data.readers.chunking import Document
from radit_jax.data.readers.documents import corpus_files, corpus_format, is_head, read_documents
from radit_jax.data.readers.lines import is_compressed
from radit_jax.data.readers.tables import Quoting

PART_BYTES = 1 << 26


class FileRange(NamedTuple):
    """The lines of a file that begin at the bytes from `start` to before `end`."""

    number: int  # of the part, in the order of the corpus
    path: str
    form: str  # a name in `documents.FORMATS`
    start: int
    end: int
    quoting: Quoting = "auto"


def find_parts(
    path: epath.Path, form: str = "auto", quoting: Quoting = "auto", part_bytes: int = PART_BYTES
) -> list[FileRange]:
    """The parts of a corpus' file, or of the texts in a folder, in order."""
    form = corpus_format(path) if form == "auto" else form
    parts: list[FileRange] = []
    for file in corpus_files(path, form):
        size = file.stat().length
        step = part_bytes if _may_be_cut(file, form, quoting) else max(size, 1)
        for start in range(0, size, step):
            end = min(start + step, size)
            parts.append(FileRange(len(parts), str(file), form, start, end, quoting))
    return parts


# Of the others a part is a whole file: a text's paragraphs are numbered, a CSV file has a head.
LINE_FORMS = ("jsonl", "atlas", "dpr", "kilt", "beir")


def _may_be_cut(file: epath.Path, form: str, quoting: Quoting) -> bool:
    """Whether the lines of a file can be read without those before them."""
    with file.open("rb") as stream:
        start = stream.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
        stream.seek(0)
        first_line = stream.readline()
    if is_compressed(start) or form not in LINE_FORMS:
        return False
    if form == "dpr":
        return quoting != "csv" and b"\t" in first_line  # rows of one column are numbered, too
    return not start.startswith(b"[")  # which one JSON list does


def part_lines(part: FileRange) -> Iterator[bytes]:
    """The part's lines; a line that begins in it and goes on after its end is whole."""
    with epath.Path(part.path).open("rb") as file:
        # A table's head is shown to the reader of every part.
        if part.form == "dpr" and part.start and is_head(head := file.readline()):
            yield head
        # The end of a line that began before belongs to the part before. One byte back, because a line that
        # begins at the part's first byte does not.
        file.seek(max(part.start - 1, 0))
        if part.start:
            file.readline()
        while file.tell() < part.end and (line := file.readline()):
            yield line


def part_documents(part: FileRange) -> Iterator[Document]:
    """The documents of a part, through the readers of `documents.py`, which know files."""
    with tempfile.TemporaryDirectory() as scratch:
        local = epath.Path(scratch) / epath.Path(part.path).name
        with local.open("wb") as file:
            file.writelines(part_lines(part))
        # Errors name the corpus, not the copy of a part.
        place = f"{part.path} from byte {part.start}" if part.start else part.path
        try:
            for document in read_documents(local, part.form, part.quoting):
                yield document._replace(where=document.where.replace(str(local), place))
        except ValueError as error:
            raise ValueError(str(error).replace(str(local), place)) from None
