"""Corpora in the forms that people have them, read a document at a time.

    jsonl   passages.jsonl             {"id": "p7", "title": "Emma", "text": "Emma is a novel …"}
    atlas   text-list-100-sec.jsonl    the same with "section": Atlas' Wikipedia dumps
    dpr     psgs_w100.tsv              id, text, title, under a line that says so: DPR's Wikipedia
    kilt    kilt_knowledgesource.json  {"wikipedia_id", "wikipedia_title", "text": [paragraphs]}
    beir    corpus.jsonl               {"_id", "title", "text"}
    csv     passages.csv               a head with text, and perhaps id and title; Parquet likewise
    text    a folder of *.txt          a blank line between paragraphs
    documents   a folder of *.md, *.html, *.pdf and *.txt, and folders in it (`markup.py`)

Any file may be compressed (`passages.jsonl.gz`, `.zst`). An id is a string or a whole number, and a string
from here on; a title may be missing. `{"id", "contents"}` is Pyserini's and FlashRAG's, whose contents begin
with a line that is the title. A table may have fewer columns: id and text, as MS MARCO's, or text alone.

A section's name is folded into the title, `Emma: Plot`; `chunking` splits a long section into equal chunks.
Nothing here holds more than one document, so memory does not grow with the corpus.
"""

import codecs
import fnmatch
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from etils import epath

from radit_jax.data.readers.chunking import Document, own_ids, split_document
from radit_jax.data.readers.columns import csv_objects, parquet_objects
from radit_jax.data.readers.kilt_articles import read_kilt
from radit_jax.data.readers.lines import (
    COMPRESSED,
    JsonObject,
    checked,
    identifier,
    json_objects,
    lacking,
    one_of,
    plain_name,
    quoted,
    text_lines,
)
from radit_jax.data.readers.markup import read_html, read_markdown, read_pdf, titled
from radit_jax.data.readers.tables import Quoting, table_rows
from radit_jax.data.readers.unique_ids import UniqueIds
from radit_jax.data.records import Chunk

# Forms of a single document, by the endings of their files' names.
_DOCUMENTS = {
    ".txt": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".pdf": "pdf",
}
_ID_FIELDS = ("id", "_id", "docid")
_TEXT_FIELDS = ("text", "contents")
_HEADS: tuple[set[str], ...] = ({"id", "text", "title"}, {"id", "text"}, {"text"})
_TITLE_CHARACTERS = 200  # at most, of a first line of "contents" that is the title

Reader = Callable[[epath.Path, Quoting], Iterator[Document]]


class Format(NamedTuple):
    """How a form of corpus is known by its file's name, and how it is read."""

    patterns: tuple[str, ...]  # of file names, without an ending of compression
    read: Reader


@dataclass(frozen=True)
class Passages:
    """The chunks of a corpus file; every iteration reads the file again."""

    path: epath.Path  # a file, or a folder of texts
    format: str  # a name in `FORMATS`
    max_words: int  # of a chunk: fewer
    num_chunks: int  # counted before, when the ids were checked
    quoting: Quoting = "auto"

    def __len__(self) -> int:
        return self.num_chunks

    def __iter__(self) -> Iterator[Chunk]:
        for document in read_documents(self.path, self.format, self.quoting):
            yield from split_document(document, self.max_words)


def find_corpus(folder: epath.Path) -> epath.Path | None:
    """The corpus in `folder`, known by its name: a file, or the folder itself if it holds texts."""
    names = sorted(child.name for child in folder.iterdir()) if folder.is_dir() else []
    # The files whose names say that they are corpora, in the order of the formats.
    corpora: list[str] = []
    for format_name, form in FORMATS.items():
        if format_name not in _DOCUMENTS.values():
            corpora += _matching(names, form.patterns)
    corpora = list(dict.fromkeys(corpora))  # a name may match two formats
    # The project's own form is the one, whatever else is there.
    corpora = [name for name in corpora if plain_name(name) == "passages.jsonl"] or corpora
    if len(corpora) > 1:
        raise ValueError(
            f"data folder {folder}: expected one corpus, got {' and '.join(corpora)}. Name the one to read "
            "by --set data.passages_file=NAME."
        )
    if corpora:
        return folder / corpora[0]
    if not folder.is_dir():
        return None
    return folder if any(map(_is_content, _document_files(folder))) else None


def corpus_format(path: epath.Path) -> str:
    """The name in `FORMATS` that a file's name, or a folder, calls for."""
    if path.is_dir():
        if packed_or_plain(path, "corpus.jsonl").exists():
            return "beir"
        others = [file for file in _document_files(path) if not file.name.endswith(".txt")]
        return "documents" if any(map(_is_content, others)) else "text"
    # A name of its own says more than an ending.
    for name, (patterns, _) in FORMATS.items():
        if _matching([path.name], patterns):
            return name
    suffix = epath.Path(plain_name(path)).suffix  # of "a.jsonl.gz" it is .jsonl
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    known: list[str] = []
    for form in FORMATS.values():
        known += form.patterns
    raise ValueError(
        f"{path}: expected a name that says its format ({one_of(known)}), got another. Rename it, or give "
        f"its format by --set data.passages_format={one_of(list(FORMATS))}."
    )


def corpus_files(path: epath.Path, format: str = "auto") -> list[epath.Path]:
    """The files that a corpus is read from: `path`, or those in the folder that it is."""
    name = corpus_format(path) if format == "auto" else format
    if not path.is_dir():
        return [path]
    if name == "text":
        return _text_files(path)
    if name == "documents":
        return _document_files(path)
    return [packed_or_plain(path, "corpus.jsonl")]


def packed_or_plain(folder: epath.Path, name: str) -> epath.Path:
    """The file `name` in `folder`, or the compressed one that is there in its place."""
    for suffix in ("", *COMPRESSED):
        file = folder / (name + suffix)
        if file.exists():
            return file
    return folder / name


def read_documents(path: epath.Path, format: str = "auto", quoting: Quoting = "auto") -> Iterator[Document]:
    """The documents of a corpus in order; `format` is a name in `FORMATS`, or read off the file's name."""
    name = corpus_format(path) if format == "auto" else format
    if name not in FORMATS:
        raise ValueError(
            f"data.passages_format: expected {one_of(list(FORMATS))}, got {name!r}. Name that of {path}."
        )
    return FORMATS[name].read(path, quoting)


def read_chunked(
    path: epath.Path, format: str, max_words: int, quoting: Quoting = "auto"
) -> Iterator[tuple[Document, tuple[Chunk, ...]]]:
    """Each document of a corpus with its chunks; after the last, ValueError if an id was used twice."""
    # Documents and chunks share one set of ids: P#1 is the first chunk of P, so no document may be named so.
    with UniqueIds() as ids:
        for document in read_documents(path, format, quoting):
            chunks = split_document(document, max_words)
            for name in own_ids(document, chunks):
                ids.add(name)  # the check takes place when all have been given
            yield document, chunks
        # Where two ids may be equal the corpus is read a second time, to say where they are.
        ids.check(lambda: ids_with_places(path, format, max_words, quoting))


def ids_with_places(
    path: epath.Path, format: str, max_words: int, quoting: Quoting = "auto"
) -> Iterator[tuple[str, str]]:
    """Every id that no other document or chunk of the corpus may have, with the place where it stands."""
    for document in read_documents(path, format, quoting):
        for name in own_ids(document, split_document(document, max_words)):
            yield name, document.where


def _matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that match one of the patterns, as they are without compression."""
    return [name for name in names if _matches_any(plain_name(name), patterns)]


def _matches_any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _is_text(name: str) -> bool:
    """Whether a file in a folder is one of its texts; what begins with a dot is an editor's or a system's."""
    return name.endswith(".txt") and not name.startswith(".")


def _text_files(folder: epath.Path) -> list[epath.Path]:
    return sorted(file for file in folder.iterdir() if _is_text(file.name))


def _is_content(file: epath.Path) -> bool:
    """Whether a document is more than what explains a folder's other files."""
    return not file.name.lower().startswith(("readme", "licen"))


def _document_files(folder: epath.Path) -> list[epath.Path]:
    """The documents in a folder and in those inside, in order; hidden ones and questions are none."""
    files: list[epath.Path] = []
    for child in sorted(folder.iterdir()):
        if child.name.startswith("."):
            continue
        if child.is_dir():
            files += _document_files(child)
        elif child.suffix.lower() in _DOCUMENTS and not child.name.startswith("questions"):
            files.append(child)
    return files


# ---- the formats ----


def _object_reader(
    objects: Callable[[epath.Path], Iterator[tuple[str, JsonObject]]] = json_objects,
    section_field: str = "",
    *,
    has_ids: bool = True,
) -> Reader:
    """A reader of objects with an id and a text, and perhaps a title and the name of a section.

    Without `has_ids` those that have no id are named after file and place.
    """

    def read(path: epath.Path, quoting: Quoting) -> Iterator[Document]:
        file = packed_or_plain(path, "corpus.jsonl") if path.is_dir() else path
        for number, (where, line) in enumerate(objects(file), start=1):
            # The text, and the title where the line has one.
            text_field = _present(line, _TEXT_FIELDS, where)
            text = checked(line, text_field, "a string", where)
            title = _optional(line, "title", where)
            if text_field == "contents" and "title" not in line:
                title, text = _title_of_contents(text)
            # What Atlas calls its section is part of the title.
            section = _optional(line, section_field, where) if section_field else ""
            if not has_ids and not set(_ID_FIELDS) & line.keys():
                line["id"] = f"{plain_name(path)}:{number}"
            id_field = _present(line, _ID_FIELDS, where)
            document_id = identifier(line, id_field, where)
            yield Document(document_id, ((titled(title, section), text),), where)

    return read


def _present(line: JsonObject, names: Sequence[str], where: str) -> str:
    """The first of the names that is a field of the line."""
    for name in names:
        if name in line:
            return name
    raise ValueError(f"{where}: expected a field {one_of(names)}, got {lacking(line, names[0])}. Add it.")


def _optional(line: JsonObject, name: str, where: str) -> str:
    """A string that may be missing, or null."""
    return "" if line.get(name) is None else checked(line, name, "a string", where)


def _title_of_contents(contents: str) -> tuple[str, str]:
    """(title, text) of contents whose first line is the title, as Pyserini writes them.

    >>> _title_of_contents('"Emma"\\nA novel.'), _title_of_contents("A novel.")
    (('Emma', 'A novel.'), ('', 'A novel.'))
    """
    title, line_end, rest = contents.strip().partition("\n")
    # A first line that is long is the text's.
    if not line_end or len(title) > _TITLE_CHARACTERS:
        return "", contents
    title = title.strip()
    if len(title) > 1 and title.startswith('"') and title.endswith('"'):
        title = title[1:-1]
    return title, rest


def _read_table(path: epath.Path, quoting: Quoting) -> Iterator[Document]:
    """The rows of a table, whose first may be a head; without ids they are named after file and place."""
    columns = ["id", "text"]
    rows = table_rows(path, delimiter="\t", num_columns=(1, 2, 3), quoting=quoting)
    for number, (where, row) in enumerate(rows, start=1):
        if number == 1:
            columns = _columns(row, where)
            if columns == row:  # the head
                continue
        line = dict(zip(columns, row, strict=True))
        name = identifier(line, "id", where) if "id" in line else f"{plain_name(path)}:{number}"
        section = (line.get("title", ""), line["text"])
        yield Document(name, (section,), where)


def is_head(line: bytes) -> bool:
    """Whether a table's line says what its columns are instead of being a row."""
    text = line.removeprefix(codecs.BOM_UTF8).decode(errors="replace")
    return set(text.split()) in _HEADS


def _columns(first_row: Sequence[str], where: str) -> list[str]:
    """The names of a table's columns, which are those of its first row if that is the head."""
    if set(first_row) in _HEADS:
        return list(first_row)
    # Without a head id and text, or text alone, stand in that order; of three columns no order is usual.
    if len(first_row) == 3:
        raise ValueError(
            f"{where}: expected the head id, text, title, got {quoted(' '.join(first_row))}. Add it as the "
            "first line."
        )
    return ["id", "text"] if len(first_row) == 2 else ["text"]


def _read_texts(path: epath.Path, quoting: Quoting) -> Iterator[Document]:
    """The paragraphs of a text, or of every text in a folder, under the file's name as title."""
    files = _text_files(path) if path.is_dir() else [path]
    for file in files:
        title = plain_name(file).removesuffix(".txt")
        # A text has no ids: its paragraphs are numbered under its name.
        for number, (where, text) in enumerate(_paragraphs(file), start=1):
            yield Document(f"{title}#{number}", ((title, text),), where)


def _paragraphs(path: epath.Path) -> Iterator[tuple[str, str]]:
    """(place of the first line, text) of every run of lines that are not blank."""
    first_line = ""
    lines: list[str] = []
    for where, line in text_lines(path):
        if line.strip():
            if not lines:
                first_line = where
            lines.append(line.strip())
        elif lines:
            yield first_line, " ".join(lines)
            lines = []
    if lines:
        yield first_line, " ".join(lines)


def _markup_reader(read_file: Callable[[epath.Path, str], Iterator[Document]]) -> Reader:
    """A reader of a single document, whose id is its file's name."""

    def read(path: epath.Path, quoting: Quoting) -> Iterator[Document]:
        yield from read_file(path, path.name)

    return read


def _read_folder_of_documents(path: epath.Path, quoting: Quoting) -> Iterator[Document]:
    """All documents in a folder, or one, each read by its ending; its id is its name from the folder on."""
    files = _document_files(path) if path.is_dir() else [path]
    for file in files:
        name = _DOCUMENTS[file.suffix.lower()]
        if name == "text":
            yield from FORMATS[name].read(file, quoting)
        else:
            document_id = os.path.relpath(file, path) if file != path else file.name
            yield from _MARKUP[name](file, document_id)


_TEXTS = [[name] for name in _TEXT_FIELDS]  # columns, one of which a table has
_csv_rows = partial(csv_objects, expected=_TEXTS)
_parquet_rows = partial(parquet_objects, expected=_TEXTS)
# By name, in the order in which a file's name is compared with their patterns.
_MARKUP = {"markdown": read_markdown, "html": read_html, "pdf": read_pdf}
FORMATS: dict[str, Format] = {
    "atlas": Format(("text-list-*.jsonl",), _object_reader(section_field="section")),
    "dpr": Format(("psgs_w100*.tsv",), _read_table),
    "kilt": Format(("kilt_knowledgesource*",), read_kilt),
    "beir": Format(("corpus.jsonl",), _object_reader()),
    "jsonl": Format(("passages.jsonl",), _object_reader()),
    "csv": Format(("passages.csv",), _object_reader(_csv_rows, has_ids=False)),
    "parquet": Format(("passages.parquet",), _object_reader(_parquet_rows, has_ids=False)),
    "text": Format(("*.txt",), _read_texts),
    "markdown": Format(("*.md", "*.markdown"), _markup_reader(read_markdown)),
    "html": Format(("*.html", "*.htm"), _markup_reader(read_html)),
    "pdf": Format(("*.pdf",), _markup_reader(read_pdf)),
    "documents": Format((), _read_folder_of_documents),
}
# The format of a file whose name matches no pattern.
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".tsv": "dpr",
    ".csv": "csv",
    ".parquet": "parquet",
}
