"""What would give an answer away: a question of a dev or test part among those to train on, and passages that
repeat what a corpus example is to continue with."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from radit_jax.data.artifacts.corpus import Chunks
from radit_jax.data.records import Example, Item
from radit_jax.runtime.distributed import processes
from radit_jax.text.words import words

SPARE_CANDIDATES = 8  # retrieved beyond k, to fill the places of those that are left out
SHARED_WORDS = 12  # that a passage may not have in common with an answer, one after the other
_AT_ONCE = 256  # examples whose candidates are in memory together
_NOT_ASCII_ALNUM = re.compile(r"[^a-z0-9]+")


# ---- questions ----


def letters_key(text: str) -> str:
    """`text` as datasets are compared: its letters, digits and combining marks in one case, nothing else.

    So two releases of one question are alike whatever their spaces and signs: where one has "3.5" another has
    "3 . 5". `text.metrics.question_key` keeps the signs, for "2 + 3" and "2 * 3" in one folder are different.

    >>> letters_key("A train runs at 60 km / hr .") == letters_key("a train runs at 60 km/hr")
    True
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    if folded.isascii():
        return _NOT_ASCII_ALNUM.sub("", folded)
    return "".join(letter for letter in folded if unicodedata.category(letter)[0] in "LNM")


def division_key(item: Item) -> str:
    """What decides on which side of a division an item falls: its passage, its dialogue's first turn, or its
    question. Items that share it stay together, such as all replies of one tree of messages."""
    return letters_key(item.context or (item.turns[0] if item.turns else item.question))


class AskedElsewhere:
    """The questions of dev and test parts, none of which may be trained on.

    Two items are the same where their questions are, unless each has a passage and these differ: "Who won?"
    asks something else of another passage. All replies of a dialogue count as its first turn.
    """

    def __init__(self) -> None:
        self._alone: set[int] = set()  # hashes: a million questions take 60 MB
        self._of_passages: set[int] = set()
        self._with_passages: set[tuple[int, int]] = set()

    def add(self, item: Item) -> None:
        question, passage = _hashes(item)
        if passage:
            self._of_passages.add(question)
            self._with_passages.add((question, passage))
        else:
            self._alone.add(question)

    def __contains__(self, item: Item) -> bool:
        question, passage = _hashes(item)
        if question in self._alone:
            return True
        return (question, passage) in self._with_passages if passage else question in self._of_passages


def _hashes(item: Item) -> tuple[int, int]:
    """Of question and passage; 0 is no passage. A summary, which has no question, is asked of its passage."""
    if item.context:
        return _hash(item.query), _hash(item.context) or 1
    return _hash(item.turns[0] if item.turns else item.question), 0


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(letters_key(text).encode(), digest_size=8).digest())


# ---- passages ----


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
    source's text, or `SHARED_WORDS` words in a row in common with the answer. Where fewer than k are left, −1
    stands in the last places.
    """
    kept_rows, kept_scores = np.full((len(examples), k), -1), np.zeros((len(examples), k), np.float32)
    num_copies = 0
    for start in range(0, len(examples), _AT_ONCE):
        processes.stop_if_asked("the passages that repeat an answer")
        block = range(start, min(start + _AT_ONCE, len(examples)))
        wanted = np.unique(np.concatenate([rows[block].ravel(), sources[block]]))
        wanted = wanted[wanted >= 0]
        text_of = {row: _joined(c.text) for row, c in zip(wanted.tolist(), chunks.take(wanted), strict=True)}
        for number in block:
            answer, source = _shared_runs(examples[number].answer), text_of[int(sources[number])]
            own = [text_of.get(row, "") for row in rows[number].tolist()]
            copies = np.array([text == source or any(run in text for run in answer) for text in own], bool)
            num_copies += int((copies & (rows[number] >= 0)).sum())
            kept = np.flatnonzero(~copies & (rows[number] >= 0))[:k]
            kept_rows[number, : len(kept)] = rows[number, kept]
            kept_scores[number, : len(kept)] = scores[number, kept]
    return kept_rows, kept_scores, num_copies


def _joined(text: str) -> str:
    """The words of a text between spaces; in scripts without spaces each character is one."""
    return f" {' '.join(words(unicodedata.normalize('NFC', text).casefold()))} "


def _shared_runs(answer: str) -> list[str]:
    """Every run of `SHARED_WORDS` words of the answer, as it stands in `_joined` texts."""
    own = _joined(answer).split()
    starts = range(len(own) - SHARED_WORDS + 1)
    return [f" {' '.join(own[start : start + SHARED_WORDS])} " for start in starts]
