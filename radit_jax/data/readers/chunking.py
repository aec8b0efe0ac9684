"""From a document to its chunks, the passages that are retrieved."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from radit_jax.data.records import Chunk
from radit_jax.text.words import pieces


class Document(NamedTuple):
    """An article or passage: what a gold passage's id names, and what is split into chunks."""

    id: str
    sections: tuple[tuple[str, str], ...]  # (title, text); an article without sections has one
    where: str  # file and line, for errors


def own_ids(document: Document, chunks: Sequence[Chunk]) -> list[str]:
    """The ids that no other document may have, nor any chunk of one: its own, and those of its chunks."""
    return list(dict.fromkeys([document.id, *(chunk.id for chunk in chunks)]))


def count_document(counts: Counter[str], chunks: Sequence[Chunk]) -> None:
    """Count a document with its chunks, for the manifest; one without text has none."""
    counts["documents"] += 1
    counts["documents_split"] += len(chunks) > 1
    counts["documents_skipped_without_text"] += not chunks


def split_document(document: Document, max_words: int) -> tuple[Chunk, ...]:
    """The document's chunks: the whole if it is one, else numbered through, `{id}#1`, `{id}#2`, ….

    >>> split_document(Document("7", (("Emma", "A novel."), ("Emma: Plot", "She errs.")), ""), max_words=9)[1]
    Chunk(id='7#2', title='Emma: Plot', text='She errs.')
    """
    parts: list[tuple[str, str]] = []  # (title, text)
    for title, section in document.sections:
        # A section without text has no part.
        parts += [(title, text) for text in split_passage(section, max_words)]
    if len(parts) == 1:
        ids = [document.id]
    else:
        ids = [f"{document.id}#{number}" for number in range(1, len(parts) + 1)]
    chunks = []
    for chunk_id, (title, text) in zip(ids, parts, strict=True):
        single_spaced_title = " ".join(title.split())
        chunks.append(Chunk(chunk_id, single_spaced_title, text))
    return tuple(chunks)


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
    if not words:
        return []
    num_words = len(words)
    num_chunks = _divide_up(num_words, max_words - 1)
    # Chunk i begins at word ceil(i × words / chunks), so that no two lengths differ by more than one word.
    texts = []
    for i in range(num_chunks):
        start = _divide_up(i * num_words, num_chunks)
        end = _divide_up((i + 1) * num_words, num_chunks)
        texts.append(between.join(words[start:end]).lstrip())
    return texts


def _divide_up(dividend: int, divisor: int) -> int:
    """The quotient, rounded up."""
    return -(-dividend // divisor)
