"""Corpora in the forms that people have them, read a document at a time and split into chunks.

    jsonl   passages.jsonl             {"id": "p7", "title": "Emma", "text": "Emma is a novel …"}
    atlas   text-list-100-sec.jsonl    the same with "section": Atlas' Wikipedia dumps
    dpr     psgs_w100.tsv              id, text, title, under a line that says so: DPR's Wikipedia
    kilt    kilt_knowledgesource.json  {"wikipedia_id", "wikipedia_title", "text": [paragraphs]}
    beir    corpus.jsonl               {"_id", "title", "text"}
    text    a folder of *.txt          a blank line between paragraphs

Any file may be compressed (`passages.jsonl.gz`, `.zst`). An id is a string or a whole number, and a string
from here on; a title may be missing. `{"id", "contents"}` is Pyserini's and FlashRAG's, whose contents begin
with a line that is the title. A table may have fewer columns: id and text, as MS MARCO's, or text alone.

A section's name is folded into the title, `Emma: Plot`, and a long section becomes equal chunks. Nothing here
holds more than one document, so memory does not grow with the corpus.
"""

import codecs
import fnmatch
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from radit_jax.data.readers.lines import (
    COMPRESSED,
    Quoting,
    checked,
    demand,
    identifier,
    json_objects,
    one_of,
    plain_name,
    quoted,
    table_rows,
    text_lines,
)
from radit_jax.data.records import Chunk
from radit_jax.text.words import pieces

_HASHES_AT_ONCE = 1 << 18  # ids compared with each other in memory
_ID_FIELDS = ("id", "_id", "docid")
_TEXT_FIELDS = ("text", "contents")
_HEADS: tuple[set[str], ...] = ({"id", "text", "title"}, {"id", "text"}, {"text"})
_TITLE_CHARACTERS = 200  # at most, of a first line of "contents" that is the title


class Document(NamedTuple):
    """An article or passage: what a gold passage's id names, and what is split into chunks."""

    id: str
    sections: tuple[tuple[str, str], ...]  # (title, text); an article without sections has one
    where: str  # file and line, for errors


Reader = Callable[[epath.Path, Quoting], Iterator[Document]]


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
    quoting: Quoting = "auto"

    def __len__(self) -> int:
        return self.num_chunks

    def __iter__(self) -> Iterator[Chunk]:
        for document in read_documents(self.path, self.format, self.quoting):
            yield from split_document(document, self.max_words)


def find_corpus(folder: epath.Path) -> epath.Path | None:
    """The corpus in `folder`, known by its name: a file, or the folder itself if it holds texts."""
    names = sorted(child.name for child in folder.iterdir()) if folder.is_dir() else []
    found = [
        n for name, (patterns, _) in FORMATS.items() if name != "text" for n in _matching(names, patterns)
    ]
    found = list(dict.fromkeys(found))
    # The project's own form is the one, whatever else is there.
    found = [name for name in found if plain_name(name) == "passages.jsonl"] or found
    if len(found) > 1:
        raise ValueError(
            f"data folder {folder}: expected one corpus, got {' and '.join(found)}. Name the one to read by "
            "--set data.passages_file=NAME."
        )
    if found:
        return folder / found[0]
    return folder if any(_is_text(name) for name in names) else None


def corpus_format(path: epath.Path) -> str:
    """The name in `FORMATS` that a file's name, or a folder, calls for."""
    if path.is_dir():
        return "beir" if packed_or_plain(path, "corpus.jsonl").exists() else "text"
    for name, (patterns, _) in FORMATS.items():
        if _matching([path.name], patterns):
            return name
    suffix = epath.Path(plain_name(path)).suffix
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    patterns = one_of([pattern for form in FORMATS.values() for pattern in form.patterns])
    raise ValueError(
        f"{path}: expected a name that says its format ({patterns}), got another. Rename it, or give its "
        f"format by --set data.passages_format={one_of(list(FORMATS))}."
    )


def corpus_files(path: epath.Path, format: str = "auto") -> list[epath.Path]:
    """The files that a corpus is read from: `path`, or those in the folder that it is."""
    if not path.is_dir():
        return [path]
    if (corpus_format(path) if format == "auto" else format) == "text":
        return _text_files(path)
    return [packed_or_plain(path, "corpus.jsonl")]


def packed_or_plain(folder: epath.Path, name: str) -> epath.Path:
    """The file `name` in `folder`, or the compressed one that is there in its place."""
    names = [name, *(name + suffix for suffix in COMPRESSED)]
    return next((folder / one for one in names if (folder / one).exists()), folder / name)


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
    """Each document of a corpus with its chunks; ids that are not unique are refused after the last."""

    def read() -> Iterator[tuple[Document, tuple[Chunk, ...]]]:
        for document in read_documents(path, format, quoting):
            yield document, split_document(document, max_words)

    with UniqueIds() as ids:
        for document, chunks in read():
            for name in own_ids(document, chunks):
                ids.add(name)
            yield document, chunks
        ids.check(lambda: ((name, d.where) for d, chunks in read() for name in own_ids(d, chunks)))


def own_ids(document: Document, chunks: Sequence[Chunk]) -> list[str]:
    """The ids that no other document may have, nor any chunk of one: its own, and those of its chunks."""
    return list(dict.fromkeys([document.id, *(chunk.id for chunk in chunks)]))


def split_document(document: Document, max_words: int) -> tuple[Chunk, ...]:
    """The document's chunks: the whole if it is one, else numbered through, `{id}#1`, `{id}#2`, ….

    >>> split_document(Document("7", (("Emma", "A novel."), ("Emma: Plot", "She errs.")), ""), max_words=9)[1]
    Chunk(id='7#2', title='Emma: Plot', text='She errs.')
    """
    parts = [
        (title, text) for title, section in document.sections for text in split_passage(section, max_words)
    ]
    ids = [f"{document.id}#{n}" for n in range(1, len(parts) + 1)] if len(parts) > 1 else [document.id]
    return tuple(Chunk(i, " ".join(title.split()), t) for i, (title, t) in zip(ids, parts, strict=False))


def document_id(chunk_id: str) -> str:
    """The id of the document that a chunk was split from: for KILT's Wikipedia, the page's.

    >>> document_id("736#12"), document_id("736")
    ('736', '736')
    """
    head, hash_sign, number = chunk_id.rpartition("#")
    return head if hash_sign and number.isdigit() else chunk_id


def split_passage(text: str, max_words: int) -> list[str]:
    """`text` in the fewest chunks of fewer than `max_words` words, of equal length within a word.

    White space becomes single spaces, so that a blank line only ever ends a Background. Of a script without
    spaces a character counts as a word.

    >>> split_passage("one two three four five", max_words=4)
    ['one two three', 'four five']
    >>> split_passage("北京是中国的首都。", max_words=5)
    ['北京是中', '国的首都。']
    """
    if max_words < 2:
        raise ValueError(f"data.max_words: expected at least 2, got {max_words}. Raise it.")
    words, between = pieces(text)
    count = -(-len(words) // (max_words - 1))
    bounds = [-(-len(words) * number // count) for number in range(count + 1)] if count else []
    return [between.join(words[start:end]).lstrip() for start, end in zip(bounds, bounds[1:], strict=False)]


class UniqueIds:
    """Finds an id that stands twice, with 8 bytes an id on disk and none in memory."""

    def __enter__(self) -> "UniqueIds":
        self._file = tempfile.TemporaryFile()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, name: str) -> None:
        self._file.write(_hash(name).to_bytes(8, "little"))

    def check(self, read: Callable[[], Iterable[tuple[str, str]]]) -> None:
        """Refuse ids that were added twice; `read` gives all again, with their places."""
        suspects = self._repeated()
        seen: dict[str, str] = {}
        for name, where in read() if suspects else ():
            if _hash(name) in suspects:
                if name in seen:
                    refuse_repeated_id(name, where, seen[name])
                seen[name] = where

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


def refuse_repeated_id(name: str, where: str, first: str) -> None:
    raise ValueError(
        f"{where}: expected an id that no other passage or chunk has, got {quoted(name)}, which is also that "
        f"of {first}. Rename one; the chunks of a long passage P are named P#1, P#2 and so on."
    )


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatch(plain_name(name), one) for one in patterns)]


def _is_text(name: str) -> bool:
    """Whether a file in a folder is one of its texts; what begins with a dot is an editor's or a system's."""
    return name.endswith(".txt") and not name.startswith(".")


def _text_files(folder: epath.Path) -> list[epath.Path]:
    return sorted(file for file in folder.iterdir() if _is_text(file.name))


# ---- the formats ----


def _json_reader(section_field: str = "") -> Reader:
    """A reader of JSON objects with an id and a text, and perhaps a title and the name of a section."""

    def read(path: epath.Path, quoting: Quoting) -> Iterator[Document]:
        file = packed_or_plain(path, "corpus.jsonl") if path.is_dir() else path
        for where, line in json_objects(file):
            text_field = _present(line, _TEXT_FIELDS, where)
            text, title = checked(line, text_field, "a string", where), _optional(line, "title", where)
            if text_field == "contents" and "title" not in line:
                title, text = _title_of_contents(text)
            section = _optional(line, section_field, where) if section_field else ""
            name = identifier(line, _present(line, _ID_FIELDS, where), where)
            yield Document(name, ((_titled(title, section), text),), where)

    return read


def _present(line: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    """The first of the names that is a field of the line."""
    found = next((name for name in names if name in line), None)
    if found is None:
        raise ValueError(
            f"{where}: expected a field {one_of(names)}, got no field {names[0]!r}. Add it to the line."
        )
    return found


def _optional(line: Mapping[str, Any], name: str, where: str) -> str:
    """A string that may be missing, or null."""
    return "" if line.get(name) is None else checked(line, name, "a string", where)


def _title_of_contents(contents: str) -> tuple[str, str]:
    """
    >>> _title_of_contents('"Emma"\\nA novel.'), _title_of_contents("A novel.")
    (('Emma', 'A novel.'), ('', 'A novel.'))
    """
    first, line_end, rest = contents.strip().partition("\n")
    if not line_end or len(first) > _TITLE_CHARACTERS:
        return "", contents
    first = first.strip()
    in_quotes = len(first) > 1 and first[0] == first[-1] == '"'
    return first[1:-1] if in_quotes else first, rest


def _read_table(path: epath.Path, quoting: Quoting) -> Iterator[Document]:
    columns = ["id", "text"]
    for number, (where, row) in enumerate(
        table_rows(path, delimiter="\t", num_columns=(1, 2, 3), quoting=quoting), start=1
    ):
        if number == 1:
            columns = _columns(row, where)
            if columns == row:
                continue
        line = dict(zip(columns, row, strict=True))
        name = identifier(line, "id", where) if "id" in line else f"{plain_name(path)}:{number}"
        yield Document(name, ((line.get("title", ""), line["text"]),), where)


def is_head(line: bytes) -> bool:
    """Whether a table's line says what its columns are, and is no row."""
    return set(line.removeprefix(codecs.BOM_UTF8).decode(errors="replace").split()) in _HEADS


def _columns(first_row: Sequence[str], where: str) -> list[str]:
    """The names of a table's columns, which are those of its first row if that is the head."""
    if set(first_row) in _HEADS:
        return list(first_row)
    if len(first_row) == 3:
        raise ValueError(
            f"{where}: expected the head id, text, title, got {quoted(' '.join(first_row))}. Add it as the "
            "first line."
        )
    return ["id", "text"][-len(first_row) :]


def _read_kilt(path: epath.Path, quoting: Quoting) -> Iterator[Document]:
    fields = {"wikipedia_id": "an id", "wikipedia_title": "a string", "text": "a list of strings"}
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


def _read_texts(path: epath.Path, quoting: Quoting) -> Iterator[Document]:
    for file in _text_files(path) if path.is_dir() else [path]:
        title = plain_name(file).removesuffix(".txt")
        for number, (where, text) in enumerate(_paragraphs(file), start=1):
            yield Document(f"{title}#{number}", ((title, text),), where)


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
    "atlas": Format(("text-list-*.jsonl",), _json_reader("section")),
    "dpr": Format(("psgs_w100*.tsv",), _read_table),
    "kilt": Format(("kilt_knowledgesource*",), _read_kilt),
    "beir": Format(("corpus.jsonl",), _json_reader()),
    "jsonl": Format(("passages.jsonl",), _json_reader()),
    "text": Format(("*.txt",), _read_texts),
}
_SUFFIXES: dict[str, Any] = {".jsonl": "jsonl", ".json": "jsonl", ".tsv": "dpr"}
