"""What callers pass, in the forms that the other rooms take: models, and chunks for each question."""

import os
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from radit_jax.data.records import Chunk, ChunkList
from radit_jax.lm.scoring import NO_CHUNK
from radit_jax.runtime.pretrained.model_io import Model, open_model


class Hit(NamedTuple):
    """A chunk that was found for a query."""

    chunk: Chunk
    row: int  # of the chunk among all that were searched
    score: float  # s(q, c), Eq. 1
    log_prob: float  # log p_R(c | q) among the k that were found, in nats


AnyChunk = Hit | Chunk | Mapping[str, Any] | str | None  # None: no Background at all
AnyModel = Model | tuple[Any, Any, Any] | str | os.PathLike[str]


def as_model(model: AnyModel) -> Model:
    """What `radit_jax.load` returns, or the model at a path that it takes."""
    if isinstance(model, str | os.PathLike):
        return open_model(os.fspath(model))
    return Model(*model)


def as_chunk(value: AnyChunk, number: int = 0) -> Chunk:
    """A chunk from a passage, a mapping with `text` and perhaps `title` and `id`, or what a search found.

    >>> as_chunk({"title": "Emma", "text": "A novel."}).passage
    'Emma A novel.'
    """
    # 1) Ours already.
    if isinstance(value, Hit):
        return value.chunk
    if isinstance(value, Chunk):
        return value
    # 2) Others' forms. A chunk without an id is known by its number.
    if isinstance(value, str):
        return Chunk(str(number), "", value)
    if isinstance(value, Mapping) and "text" in value:
        name = value.get("id", number)
        return Chunk(str(name), value.get("title", ""), value["text"])
    raise ValueError(
        f"chunk {number}: expected a text, or a mapping with title and text, got {str(value)[:60]!r}. "
        "Pass the passage as it is."
    )


@dataclass(frozen=True)
class ChunkTable:
    """The chunks of Q questions, each kept once, and where they stand."""

    chunks: ChunkList
    rows: Int[np.ndarray, "Q K"]  # NO_CHUNK: no Background, or no such chunk
    mask: Bool[np.ndarray, "Q K"]  # False where a question has fewer than K chunks

    @classmethod
    def of(cls, by_question: Sequence[Sequence[AnyChunk]]) -> "ChunkTable":
        """The chunks of each question, which may have different numbers of them."""
        # 1) As wide as the question with most chunks.
        num_chunks = max(map(len, by_question), default=0)
        rows = np.full((len(by_question), num_chunks), NO_CHUNK)
        mask = np.zeros(rows.shape, bool)
        # 2) The chunks, each once, and their places.
        row_of: dict[tuple[str, str], int] = {}
        chunks: list[Chunk] = []
        for question, values in enumerate(by_question):
            mask[question, : len(values)] = True
            for place, value in enumerate(values):
                if value is None:
                    continue
                # Questions that share a chunk share its row, so that it is read once.
                chunk = as_chunk(value, len(chunks))
                row = row_of.setdefault((chunk.title, chunk.text), len(chunks))
                if row == len(chunks):
                    chunks.append(chunk)
                rows[question, place] = row
        return cls(ChunkList(tuple(chunks)), rows, mask)


def check_lengths(**lists: Sized) -> None:
    """Refuse lists of different lengths, and a text in the place of a list of texts."""
    for name, values in lists.items():
        if isinstance(values, str):
            raise ValueError(f"{name}: expected a list, got one text. Put it into a list.")
    # The error names every list, because any of them may be the wrong one.
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise ValueError(f"expected as many of each, got {shown}. Pass one for each question.")
