"""Corpora in the forms that people have them, read a document at a time and split into chunks.

    jsonl   passages.jsonl             {"id": "p7", "title": "Emma", "text": "Emma is a novel …"}
    atlas   text-list-100-sec.jsonl    the same with "section": Atlas' Wikipedia dumps
    dpr     psgs_w100.tsv              id, text, title, under a line that says so: DPR's Wikipedia
    kilt    kilt_knowledgesource.json  {"wikipedia_id", "wikipedia_title", "text": [paragraphs]}
    beir    corpus.jsonl               {"_id", "title", "text"}
    text    a folder of *.txt          a blank line between paragraphs

A section's name is folded into the title, `Emma: Plot`, and a long section becomes equal chunks. Nothing here
holds more than one document, so memory does not grow with the corpus.
"""

import fnmatch
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from radit_jax.data.lines import demand, json_objects, one_of, table_rows, text_lines
from radit_jax.data.records import Chunk

_HASHES_AT_ONCE = 1 << 18  # ids compared with each other in memory


class Document(NamedTuple):
    """An article or passage: what a gold passage's id names, and what is split into chunks."""

    id: str
    sections: tuple[tuple[str, str], ...]  # (title, text); an article without sections has one
    where: str  # file and line, for errors


Reader = Callable[[epath.Path], Iterator[Document]]


class Format(NamedTuple):
    """How a form of corpus is known by its file's name, and how it is read."""

    patterns: tuple[str, ...]
    read: Reader


@dataclass(frozen=True)
class Passages:
    """The chunks of a corpus file; every iteration reads the file anew."""

    path: epath.Path
    format: str
    max_words: int
    num_chunks: int

    def __len__(self) -> int:
        return self.num_chunks

    def __iter__(self) -> Iterator[Chunk]:
        for document in read_documents(self.path, self.format):
            yield from split_document(document, self.max_words)


def find_corpus(folder: epath.Path) -> epath.Path | None:
    """The corpus in `folder`, known by its name: a file, or the folder itself if it holds texts."""
    names = sorted(child.name for child in folder.iterdir()) if folder.is_dir() else []
    found = [
        n for name, (patterns, _) in FORMATS.items() if name != "text" for n in _matching(names, patterns)
    ]
    found = list(dict.fromkeys(found))
    if "passages.jsonl" in found:  # the project's own form, whatever else is there
        return folder / "passages.jsonl"
    if len(found) > 1:
        raise ValueError(
            f"data folder {folder}: {one_of(found)} may be the corpus, needed is one; "
            "name it by --set data.passages_file=NAME"
        )
    if found:
        return folder / found[0]
    return folder if _matching(names, ("*.txt",)) else None


def corpus_format(path: epath.Path) -> str:
    """The name in `FORMATS` that a file's name, or a folder, calls for."""
    if path.is_dir():
        return "beir" if (path / "corpus.jsonl").exists() else "text"
    for name, (patterns, _) in FORMATS.items():
        if _matching([path.name], patterns):
            return name
    if path.suffix in _SUFFIXES:
        return _SUFFIXES[path.suffix]
    patterns = one_of([pattern for form in FORMATS.values() for pattern in form.patterns])
    raise ValueError(
        f"{path}: its name says no format, needed is {patterns}; "
        f"rename it or give its format by --set data.passages_format={one_of(list(FORMATS))}"
    )


def read_documents(path: epath.Path, format: str = "auto") -> Iterator[Document]:
    """The documents of a corpus in order; `format` is a name in `FORMATS`, or read off the file's name."""
    name = corpus_format(path) if format == "auto" else format
    if name not in FORMATS:
        raise ValueError(
            f"{path}: no format {name!r}; needed is {one_of(list(FORMATS))}; correct data.passages_format"
        )
    return FORMATS[name].read(path)


def split_document(document: Document, max_words: int) -> tuple[Chunk, ...]:
    """The document's chunks: the whole if it is one, else numbered through, `{id}#1`, `{id}#2`, ….

    >>> split_document(Document("7", (("Emma", "A novel."), ("Emma: Plot", "She errs.")), ""), max_words=9)[1]
    Chunk(id='7#2', title='Emma: Plot', text='She errs.')
    """
    pieces = [
        (title, text) for title, section in document.sections for text in split_passage(section, max_words)
    ]
    ids = [f"{document.id}#{n}" for n in range(1, len(pieces) + 1)] if len(pieces) > 1 else [document.id]
    return tuple(Chunk(i, " ".join(title.split()), t) for i, (title, t) in zip(ids, pieces, strict=False))


def document_id(chunk_id: str) -> str:
    """The id of the document that a chunk was split from: for KILT's Wikipedia, the page's.

    >>> document_id("736#12"), document_id("736")
    ('736', '736')
    """
    head, hash_sign, number = chunk_id.rpartition("#")
    return head if hash_sign and number.isdigit() else chunk_id


def split_passage(text: str, max_words: int) -> list[str]:
    """`text` in the fewest chunks of fewer than `max_words` words, of equal length within a word.

    White space becomes single spaces, so that a blank line only ever ends a Background.

    >>> split_passage("one two three four five", max_words=4)
    ['one two three', 'four five']
    """
    if max_words < 2:
        raise ValueError(f"max_words: {max_words} came, needed are at least 2; raise data.max_words")
    words = text.split()
    count = -(-len(words) // (max_words - 1))
    bounds = [-(-len(words) * number // count) for number in range(count + 1)] if count else []
    return [" ".join(words[start:end]) for start, end in zip(bounds, bounds[1:], strict=False)]


class UniqueIds:
    """Finds an id that came twice, with 8 bytes a document on disk and none in memory."""

    def __enter__(self) -> "UniqueIds":
        self._file = tempfile.TemporaryFile()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, identifier: str) -> None:
        self._file.write(_hash(identifier).to_bytes(8, "little"))

    def check(self, documents: Callable[[], Iterable[Document]]) -> None:
        """Refuse ids that were added twice; `documents` reads them again, to say where they stand."""
        suspects = self._repeated()
        seen: dict[str, str] = {}
        for document in documents() if suspects else ():
            if _hash(document.id) in suspects:
                if document.id in seen:
                    raise ValueError(
                        f"{document.where}: id {document.id!r} came before, at {seen[document.id]}; "
                        "make ids unique"
                    )
                seen[document.id] = document.where

    def _repeated(self) -> set[int]:
        self._file.flush()
        size = self._file.tell() // 8
        hashes = np.memmap(self._file, np.dtype("<u8"), "r") if size else np.zeros(0, np.uint64)
        parts = -(-size // _HASHES_AT_ONCE)
        repeated: set[int] = set()
        for part in range(parts):  # a part is a residue class, of which the file is read block by block
            blocks = (hashes[start : start + _HASHES_AT_ONCE] for start in range(0, size, _HASHES_AT_ONCE))
            own = np.sort(np.concatenate([block[block % parts == part] for block in blocks]))
            repeated.update(own[1:][own[1:] == own[:-1]].tolist())
        return repeated


def _hash(identifier: str) -> int:
    return int.from_bytes(hashlib.blake2b(identifier.encode(), digest_size=8).digest(), "little")


def _matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


# ---- the formats ----


def _json_reader(id_field: str, id_kind: str, section_field: str = "") -> Reader:
    fields = {id_field: id_kind, "title": "a string", "text": "a string"}
    if section_field:
        fields[section_field] = "a string"

    def read(path: epath.Path) -> Iterator[Document]:
        for where, line in json_objects(path / "corpus.jsonl" if path.is_dir() else path):
            demand(line, fields, where)
            title = _titled(line["title"], line.get(section_field, "") if section_field else "")
            yield Document(str(line[id_field]), ((title, line["text"]),), where)

    return read


def _read_dpr(path: epath.Path) -> Iterator[Document]:
    for number, (where, row) in enumerate(table_rows(path, delimiter="\t", num_columns=3)):
        identifier, text, title = row
        if number == 0:
            if row != ["id", "text", "title"]:
                raise ValueError(f"{where}: {row!r} came, needed is the head id, text, title; add it")
            continue
        yield Document(identifier, ((title, text),), where)


def _read_kilt(path: epath.Path) -> Iterator[Document]:
    fields = {
        "wikipedia_id": "a string or a number",
        "wikipedia_title": "a string",
        "text": "a list of strings",
    }
    for where, line in json_objects(path):
        demand(line, fields, where)
        sections = tuple(_kilt_sections(line["wikipedia_title"], line["text"]))
        yield Document(str(line["wikipedia_id"]), sections, where)


def _kilt_sections(title: str, paragraphs: list[str]) -> Iterator[tuple[str, str]]:
    """(title, text) of the article's head and of each section that has text.

    `Section::::Plot.:Volume one.` begins a section, `BULLET::::- ` a list's item; the first paragraph
    repeats the title.
    """
    name, texts = "", []
    for number, paragraph in enumerate(paragraphs):
        if paragraph.startswith("Section::::"):
            if texts:
                yield _titled(title, name), " ".join(texts)
            texts = []
            name = paragraph.removeprefix("Section::::").strip().removesuffix(".").replace(".:", ": ")
        elif number or paragraph.strip() != title.strip():
            texts += [paragraph.removeprefix("BULLET::::").strip()] if paragraph.strip() else []
    if texts:
        yield _titled(title, name), " ".join(texts)


def _read_texts(path: epath.Path) -> Iterator[Document]:
    files = sorted(file for file in path.iterdir() if file.suffix == ".txt") if path.is_dir() else [path]
    for file in files:
        for number, (where, text) in enumerate(_paragraphs(file), start=1):
            yield Document(f"{file.stem}#{number}", ((file.stem, text),), where)


def _paragraphs(path: epath.Path) -> Iterator[tuple[str, str]]:
    begun, lines = "", []
    for where, line in text_lines(path):
        if line.strip():
            begun = begun if lines else where
            lines.append(line.strip())
        elif lines:
            yield begun, " ".join(lines)
            lines = []
    if lines:
        yield begun, " ".join(lines)


def _titled(title: str, section: str) -> str:
    """
    >>> _titled("Emma", "Plot"), _titled("Emma", "")
    ('Emma: Plot', 'Emma')
    """
    return f"{title}: {section}" if section.strip() else title


FORMATS: dict[str, Format] = {
    "atlas": Format(("text-list-*.jsonl",), _json_reader("id", "a string or a number", "section")),
    "dpr": Format(("psgs_w100*.tsv",), _read_dpr),
    "kilt": Format(("kilt_knowledgesource*",), _read_kilt),
    "beir": Format(("corpus.jsonl",), _json_reader("_id", "a string")),
    "jsonl": Format(("passages.jsonl",), _json_reader("id", "a string")),
    "text": Format(("*.txt",), _read_texts),
}
_SUFFIXES: dict[str, Any] = {".jsonl": "jsonl", ".tsv": "dpr"}
