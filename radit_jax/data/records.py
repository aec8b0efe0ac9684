"""What the stages pass to each other: chunks to retrieve from, and questions asked of them."""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, Protocol, SupportsIndex, TypeVar, runtime_checkable

from radit_jax.text.prompts import PASSAGE_FORM

Record = TypeVar("Record")


@dataclass(frozen=True)
class Chunk:
    """A passage short enough to be prepended to a prompt; the unit of retrieval."""

    id: str
    title: str  # may be ""; a section's name is part of it
    text: str

    @property
    def passage(self) -> str:
        """The text that both the encoder and the language model see: `{title} {text}`."""
        return PASSAGE_FORM.format(title=self.title, text=self.text).strip()


@runtime_checkable
class ChunkReader(Protocol):
    """Chunks by row, as a corpus has them in its files (`artifacts.corpus.Chunks`)."""

    def take(self, rows: Iterable[SupportsIndex]) -> list[Chunk]:
        """The chunks at `rows`, in that order."""
        ...


@dataclass(frozen=True)
class ChunkList:
    """Chunks in memory."""

    chunks: tuple[Chunk, ...]

    def take(self, rows: Iterable[SupportsIndex]) -> list[Chunk]:
        """The chunks at `rows`, in that order."""
        return [self.chunks[row] for row in rows]


@dataclass(frozen=True)
class Question:
    """A question with its gold answers, the first of which is the one to learn."""

    id: str
    question: str
    answers: tuple[str, ...]
    gold_chunks: tuple[str, ...] = ()  # ids of chunks that hold the answer, where known
    group: str = ""  # questions of one group (an entity, a passage) are resampled together
    prompt: str = ""  # what the language model reads, with the choices if there are any; "": the usual form

    @property
    def resampling_group(self) -> str:
        """What is drawn together when intervals are made: the question itself, unless its data say more."""
        return self.group or f"question {self.id}"


@dataclass(frozen=True)
class Example:
    """One (x, y) of D_L or D_R: what the retriever reads, what the language model reads and writes.

    `prompt` and `answer` are concatenated as they are, so an answer carries its own leading space.
    A `background` stands where a chunk would, and nothing is retrieved: the gold context, or "" for no
    Background at all. None: chunks are retrieved.
    """

    id: str
    query: str  # what the retriever reads
    prompt: str  # x, without a Background
    answer: str  # y
    source_chunk: str = ""  # the chunk that a corpus example was cut from, which it must not retrieve
    background: str | None = None


@dataclass(frozen=True)
class Item:
    """One example of a fine-tuning dataset, before a template makes it an `Example`.

    Every dataset is read into this form, and TFDS stores it. What a dataset does not have is empty.
    """

    id: str
    question: str  # or the last turn of a user; a summary has none
    answers: tuple[str, ...]  # the first is the one to learn
    choices: tuple[str, ...] = ()  # of a multiple-choice question, whose answer is the text of one
    context: str = ""  # the gold context that holds the answer, or the article to summarise
    reasoning: str = ""  # what leads to the answer
    turns: tuple[str, ...] = ()  # of a dialogue, before the question: a user's and a reply in turn

    @property
    def query(self) -> str:
        """What the retriever reads: the turns and the question, without the choices."""
        return " ".join((*self.turns, self.question))


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_string_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_list_of_strings(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_string, value))


# By a field's annotation: whether a value from JSON is one.
_FORMS: dict[Any, Callable[[Any], bool]] = {
    str: _is_string,
    str | None: _is_string_or_none,
    tuple[str, ...]: _is_list_of_strings,
}


def record_from_json(kind: type[Record], value: Any, where: str) -> Record:
    """One of the classes above from JSON; ValueError where `value` has other fields or other types.

    >>> record_from_json(Chunk, {"id": "a", "title": "", "text": "b"}, "chunks")
    Chunk(id='a', title='', text='b')
    """
    forms: dict[str, Any] = {field.name: field.type for field in fields(kind)}  # pyright: ignore[reportArgumentType]
    is_known = isinstance(value, dict) and value.keys() <= forms.keys()
    if is_known and all(_FORMS[forms[name]](part) for name, part in value.items()):
        # JSON's lists are tuples here, so that a record cannot change.
        parts = {name: tuple(part) if isinstance(part, list) else part for name, part in value.items()}
        with contextlib.suppress(TypeError):  # a field is missing
            return kind(**parts)
    raise ValueError(
        f"{where}: expected the fields {', '.join(forms)} of a {kind.__name__}, got {str(value)[:80]}. "
        "The file is not as this version writes it: delete its folder and run its stage again."
    )
