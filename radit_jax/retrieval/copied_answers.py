"""Candidates that repeat what a corpus example is to continue with, and so give its answer away."""

import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.records import Example
from radit_jax.runtime.distributed import processes
from radit_jax.text.words import words

SPARE_CANDIDATES = 8  # retrieved beyond k, to fill the places of those that are left out
SHARED_WORDS = 12  # that a passage may not have in common with an answer, one after the other
_AT_ONCE = 256  # examples whose candidates are in memory together


def without_copies(
    examples: Sequence[Example],
    sources: Int[np.ndarray, " E"],
    rows: Int[np.ndarray, "E N"],
    scores: Float[np.ndarray, "E N"],
    chunks: Chunks,
    k: int,
) -> tuple[Int[np.ndarray, "E K"], Float[np.ndarray, "E K"], int]:
    """The first k candidates of each example that do not give its answer away, and how many do.

    `sources` are the rows of the chunks that the examples were cut from. A candidate is left out that has the
    source's text, or `SHARED_WORDS` words in a row in common with the answer. Where fewer than k remain, −1
    fills the last places.
    """
    shape = len(examples), k
    clean_rows = np.full(shape, -1)
    clean_scores = np.zeros(shape, np.float32)
    num_copies = 0
    for start in range(0, len(examples), _AT_ONCE):
        processes.stop_if_asked("the passages that repeat an answer")
        # 1) Read the texts that a block of examples is about, each once.
        block = range(start, min(start + _AT_ONCE, len(examples)))
        rows_of_block = [rows[block].ravel(), sources[block]]
        text_of = _texts(chunks, np.concatenate(rows_of_block))
        for i in block:
            # 2) Find the copies among one example's candidates; −1 is no candidate.
            is_candidate = rows[i] >= 0
            is_copy = _are_copies(
                examples[i].answer,
                text_of[int(sources[i])],
                rows[i],
                text_of,
            )
            num_copies += int((is_copy & is_candidate).sum())
            # 3) Take the best of the others.
            places = np.flatnonzero(~is_copy & is_candidate)[:k]
            clean_rows[i, : len(places)] = rows[i, places]
            clean_scores[i, : len(places)] = scores[i, places]
    return clean_rows, clean_scores, num_copies


def _texts(
    chunks: Chunks,
    rows: Int[np.ndarray, " N"],
) -> dict[int, str]:
    """The words of the chunks at `rows`, as `_joined` writes them; −1 is none."""
    distinct = np.unique(rows)
    distinct = distinct[distinct >= 0]
    texts = {}
    for row, chunk in zip(distinct.tolist(), chunks.take(distinct), strict=True):
        texts[row] = _joined(chunk.text)
    return texts


def _are_copies(
    answer: str,
    source: str,
    rows: Int[np.ndarray, " N"],
    text_of: dict[int, str],
) -> Bool[np.ndarray, " N"]:
    """Which candidates have the source's text, or a run of the answer's words."""
    runs = _shared_runs(answer)
    are_copies = []
    for row in rows.tolist():
        text = text_of.get(row, "")
        are_copies.append(text == source or _holds_any(text, runs))
    return np.array(are_copies, bool)


def _holds_any(text: str, runs: Sequence[str]) -> bool:
    """Whether one of the runs is part of the text."""
    return any(run in text for run in runs)


def _joined(text: str) -> str:
    """The words of a text between spaces; in scripts without spaces each character is one."""
    folded = unicodedata.normalize("NFC", text).casefold()
    return f" {' '.join(words(folded))} "


def _shared_runs(answer: str) -> list[str]:
    """Every run of `SHARED_WORDS` words of the answer, as it stands in `_joined` texts."""
    answer_words = _joined(answer).split()
    # The spaces keep a run from beginning or ending inside a word.
    runs = []
    for start in range(len(answer_words) - SHARED_WORDS + 1):
        run = answer_words[start : start + SHARED_WORDS]
        runs.append(f" {' '.join(run)} ")
    return runs
