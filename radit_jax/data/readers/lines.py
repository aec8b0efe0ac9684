"""Text files that people bring, read a line at a time: bytes, lines and JSON, with errors that say where.

A file may be gzipped or in zstd's form, whatever its name, and may begin with a byte order mark. No line, and
no element of a JSON list, is longer than `MAX_LINE_BYTES`, so that a small file cannot fill the memory.
"""

import codecs
import contextlib
import gzip
import importlib
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from radit_jax.runtime.storage import files

MAX_LINE_BYTES = 1 << 26  # the longest article of KILT's Wikipedia has about a million
MAX_FILE_BYTES = 1 << 31  # of what is read whole, unpacked
COMPRESSED = (".gz", ".zst")

JsonObject = dict[str, Any]
BinaryFile = Any  # opened by Python, by etils or by one who unpacks; no type is common to all

_JSON_LINE = "Write one JSON object per line."
_JSON_LIST = "Write a JSON list of objects."
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"  # how files of these forms begin
_QUOTED_CHARACTERS = 60  # of a value, in a message
_SHOWN_FIELDS = 8  # of a line, in a message
_WHITE_SPACE = re.compile(r"[ \t\r\n]*")


# ---- bytes and lines ----


@contextlib.contextmanager
def open_bytes(path: epath.Path) -> Iterator[BinaryFile]:
    """The file's bytes, unpacked where it is compressed; what is cut short or damaged is a ValueError.

    How it is compressed is read off its first bytes, for names are not always right.
    """
    with contextlib.ExitStack() as opened:
        stream: Any = opened.enter_context(path.open("rb"))
        start = stream.read(4)
        stream.seek(0)
        # What reading a damaged file raises, by the form of compression.
        damage: tuple[type[Exception], ...] = ()
        if start.startswith(_GZIP):
            damage = (gzip.BadGzipFile, EOFError, zlib.error)
            unpacked = opened.enter_context(gzip.GzipFile(fileobj=stream))
            stream = io.BufferedReader(unpacked)
        elif start.startswith(_ZSTD):
            stream, damage = _open_zstd(stream, path)
        try:
            yield stream
        except damage as error:
            raise ValueError(
                f"{path}: expected a whole compressed file, got a damaged one ({error}). Get it again."
            ) from None


def is_compressed(start: bytes) -> bool:
    """Whether a file that begins with these bytes is one that `open_bytes` unpacks."""
    return start.startswith((_GZIP, _ZSTD))


def _open_zstd(stream: BinaryFile, path: epath.Path) -> tuple[BinaryFile, tuple[type[Exception], ...]]:
    """The unpacked stream, and what it raises where the file is damaged.

    Python has zstd's form from 3.14 on; a package gives the same module to those before.
    """
    for name in ("compression.zstd", "backports.zstd"):
        with contextlib.suppress(ImportError):
            zstd: Any = importlib.import_module(name)
            return zstd.ZstdFile(stream), (zstd.ZstdError, EOFError)
    raise ValueError(
        f"{path}: expected a package that reads zstd's form, got none. Run pip install backports.zstd, or "
        "unpack the file with zstd -d."
    )


def plain_name(path: epath.PathLike) -> str:
    """The file's name without what says that it is compressed.

    >>> plain_name("raw/psgs_w100.tsv.gz")
    'psgs_w100.tsv'
    """
    name = epath.Path(path).name
    return name.removesuffix(".gz").removesuffix(".zst")


def numbered_lines(path: epath.Path) -> Iterator[tuple[str, bytes]]:
    """(`FILE line N`, its bytes with the line end) of every line, without byte order marks."""
    name = str(path)
    with open_bytes(path) as file:
        for number in itertools.count(1):
            where = f"{name} line {number}"
            # One byte more than is allowed, by which a line that is too long is known.
            raw = file.readline(MAX_LINE_BYTES + 1)
            if len(raw) > MAX_LINE_BYTES:
                raise ValueError(
                    f"{where}: expected a line of at most {MAX_LINE_BYTES:,} bytes, got a longer one. Break "
                    "it into lines."
                )
            if not raw:
                return
            yield where, raw.removeprefix(codecs.BOM_UTF8)


def text_lines(path: epath.Path) -> Iterator[tuple[str, str]]:
    """(`FILE line N`, its text with the line end) of every line of a UTF-8 file, one in memory at a time."""
    for where, raw in numbered_lines(path):
        try:
            yield where, raw.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{where}: expected UTF-8, got {error.reason} at byte {error.start}. Convert the file to "
                "UTF-8."
            ) from None


# ---- JSON ----


def json_objects(path: epath.Path) -> Iterator[tuple[str, JsonObject]]:
    """(place, object) of every line of a JSON-lines file that is not blank, or of a file with one list."""
    # How the file begins says which of both it is.
    with open_bytes(path) as file:
        start = file.read(256).removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"["):  # which no line with an object does
        yield from json_list(path)
        return
    for where, raw in numbered_lines(path):
        if raw.strip():
            value = files.parse_json(raw, where, _JSON_LINE)
            yield where, line_object(value, where)


def json_list(path: epath.Path, field: str = "") -> Iterator[tuple[str, JsonObject]]:
    """(`FILE item N`, the object) of a file that is one JSON list, or has it in `field`.

    A list is read an element at a time; an object with the list in a field is read whole.
    """
    elements = _field_elements(path, field) if field else _elements(path)
    for number, element in enumerate(elements, start=1):
        where = f"{path} item {number}"
        yield where, files.as_object(element, where, _JSON_LIST)


def _field_elements(path: epath.Path, field: str) -> Iterator[Any]:
    """The elements of the list in `field` of the file's one object, or of the list that the file is."""
    with open_bytes(path) as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(
            f"{path}: expected a file of at most {MAX_FILE_BYTES:,} bytes, got a longer one. Write its "
            f"{field!r} as JSON lines."
        )
    value = files.parse_json(data, str(path), _JSON_LIST)
    elements = value.get(field) if isinstance(value, dict) else value
    if not isinstance(elements, list):
        raise ValueError(f"{path}: expected a list in {field!r}, got {quoted(elements)}. {_JSON_LIST}")
    yield from elements


def _elements(path: epath.Path) -> Iterator[Any]:
    """The elements of the list that is the file's whole JSON, with one in memory at a time."""
    with open_bytes(path) as file:
        text = _JsonText(file, path)
        text.expect("[")
        # Elements with commas between them; an empty list ends at once.
        for number in itertools.count(1):
            if number == 1 and text.next_mark() == "]":
                break
            yield text.value(f"{path} item {number}")
            if text.next_mark() == "]":
                break
            text.expect(",")
        # Nothing may follow the list.
        text.expect("]")
        text.expect("")


class _JsonText:
    """The text of a JSON file; only the part that is being parsed is in memory."""

    def __init__(self, file: BinaryFile, path: epath.Path):
        self._file = file
        self._path = path
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""  # what was read and is not parsed yet, and some that is
        self._at = 0  # where in it parsing goes on

    def next_mark(self) -> str:
        """The next character that is not white space; "" at the end of the file."""
        while True:
            white_space = _WHITE_SPACE.match(self._text, self._at)
            if white_space:
                self._at = white_space.end()
            if self._at < len(self._text) or not self._read_more():
                return self._text[self._at : self._at + 1]

    def expect(self, mark: str) -> None:
        """Take `mark`, or be at the end where it is none."""
        if self.next_mark() != mark:
            expected = f"{mark!r} in a JSON list" if mark else "nothing after the JSON list"
            rest = self._text[self._at : self._at + 60]
            got = quoted(rest) if rest else "the end"
            raise ValueError(f"{self._path}: expected {expected}, got {got}. {_JSON_LIST}")
        self._at += len(mark)

    def value(self, where: str) -> Any:
        """Take the next value, which begins at `next_mark`."""
        self.next_mark()
        end = self._end_of_value(where)
        text = self._text[self._at : end]
        self._at = end
        return files.parse_json(text, where, _JSON_LIST)

    def _end_of_value(self, where: str) -> int:
        """Where the value that begins here ends: at the end of the text if it never does."""
        decoder = json.JSONDecoder()
        while True:
            try:
                _, end = decoder.raw_decode(self._text, self._at)
            except RecursionError:
                return len(self._text)
            except ValueError:
                end = len(self._text)  # wrong, or not yet whole
            # A number that ends with the text may go on in what is not read yet.
            if end < len(self._text):
                return end
            if len(self._text) - self._at > MAX_LINE_BYTES:
                raise ValueError(
                    f"{where}: expected at most {MAX_LINE_BYTES:,} characters, got more. {_JSON_LIST}"
                )
            if not self._read_more():
                return len(self._text)

    def _read_more(self) -> bool:
        """Read on, and say whether there was anything.

        The part read is as long as what is not yet taken, so that a long value is parsed a few times only.
        """
        rest = self._text[self._at :]
        data = self._file.read(max(1 << 16, len(rest)))
        # A read may end inside a character; its bytes wait in the decoder for the rest.
        try:
            self._text = rest + self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self._path}: expected UTF-8, got {error.reason}. Convert the file to UTF-8."
            ) from None
        self._at = 0
        return bool(data)


def line_object(value: Any, where: str) -> JsonObject:
    """`value`, which must be a JSON object."""
    return files.as_object(value, where, _JSON_LINE)


# ---- fields of an object ----


def demand(line: JsonObject, fields: Mapping[str, str], where: str) -> None:
    """Refuse a line without one of `fields` (name → kind: see `checked`), or with one of another kind."""
    for name, kind in fields.items():
        if name not in line:
            raise ValueError(
                f"{where}: expected the fields {', '.join(fields)}, got {lacking(line, name)}. Add it to the "
                "line."
            )
        checked(line, name, kind, where)


def checked(line: JsonObject, name: str, kind: str, where: str) -> Any:
    """The field `name`, of one of the kinds in `KINDS`."""
    value = line[name]
    if not KINDS[kind](value):
        raise ValueError(
            f"{where}: expected field {name!r} to be {kind}, got {quoted(value)}. Write {kind} there."
        )
    return value


def identifier(line: JsonObject, name: str, where: str) -> str:
    """The id in the field `name`: a string that is not blank, or a whole number, as a string."""
    return str(checked(line, name, "an id", where))


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_string_or_number(value: Any) -> bool:
    # True and False are ints to Python.
    return isinstance(value, str | int) and not isinstance(value, bool)


def _is_id(value: Any) -> bool:
    return _is_string_or_number(value) and bool(str(value).strip())


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _list_of(is_element: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def is_list(value: Any) -> bool:
        return isinstance(value, list) and all(map(is_element, value))

    return is_list


# What a field may be asked to be, in the words of an error, and whether a value is that.
KINDS: dict[str, Callable[[Any], bool]] = {
    "a string": _is_string,
    "a string or a number": _is_string_or_number,
    "an id": _is_id,
    "a list of strings": _list_of(_is_string),
    "a list of ids": _list_of(_is_id),
    "a list of objects": _list_of(_is_object),
}


# ---- words of messages ----


def quoted(value: Any) -> str:
    """The beginning of a value from a file, for a message: ASCII without control characters.

    >>> quoted({"a": "é"})
    '{"a": "\\\\u00e9"}'
    """
    if isinstance(value, str):
        return ascii(value[:_QUOTED_CHARACTERS])
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text[:_QUOTED_CHARACTERS]


def lacking(line: JsonObject, name: str) -> str:
    """That a line has no field `name`, and which it has, for a message.

    >>> lacking({"id": 1, "frage": "?"}, "question")
    "no field 'question' but 'id', 'frage'"
    """
    names = [quoted(other) for other in line]
    if not names:
        return f"no field {name!r}"
    more = ", …" if len(names) > _SHOWN_FIELDS else ""
    return f"no field {name!r} but {', '.join(names[:_SHOWN_FIELDS])}{more}"


def one_of(names: Sequence[str]) -> str:
    """The names for a sentence: `a, b or c`.

    >>> one_of(["a", "b", "c"])
    'a, b or c'
    """
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} or {names[-1]}"
