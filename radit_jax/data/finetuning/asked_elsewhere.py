"""Which questions count as the same, so that none of a dev or test part is trained on.

Datasets copy each other's questions: ECQA divides CommonsenseQA again, MathQA annotates AQuA-RAT. So a
question is compared with those of every dataset, by its letters and digits.
"""

import hashlib
import re
import unicodedata

from radit_jax.data.records import Item

_NOT_ASCII_ALNUM = re.compile(r"[^a-z0-9]+")
_NO_PASSAGE = 0  # in the place of a passage's hash


def letters_key(text: str) -> str:
    """`text` as datasets are compared: its letters, digits and combining marks in one case, nothing else.

    So two releases of one question are alike whatever their spaces and signs: where one has "3.5" another has
    "3 . 5". `text.metrics.question_key` keeps the signs, for "2 + 3" and "2 * 3" in one folder are different.

    >>> letters_key("A train runs at 60 km / hr .") == letters_key("a train runs at 60 km/hr")
    True
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    if folded.isascii():  # most text, and many times as fast
        return _NOT_ASCII_ALNUM.sub("", folded)
    return "".join(letter for letter in folded if unicodedata.category(letter)[0] in "LNM")


def division_key(item: Item) -> str:
    """What decides on which side of a division an item falls: its passage, its dialogue's first turn, or its
    question. Items that share it stay together, such as all replies of one tree of messages."""
    return letters_key(item.context or _first_turn(item))


class AskedElsewhere:
    """The questions of dev and test parts, none of which may be trained on.

    Two items are the same where their questions are, unless each has a passage and these differ: "Who won?"
    asks something else of another passage. All replies of a dialogue count as its first turn.
    """

    def __init__(self) -> None:
        # Hashes: a million questions take 60 MB.
        self._without_passage: set[int] = set()
        self._with_a_passage: set[int] = set()
        self._on_passage: set[tuple[int, int]] = set()  # (question, its passage)

    def add(self, item: Item) -> None:
        """Count the item's question as asked."""
        question, passage = _hashes(item)
        if passage == _NO_PASSAGE:
            self._without_passage.add(question)
        else:
            self._with_a_passage.add(question)
            self._on_passage.add((question, passage))

    def __contains__(self, item: Item) -> bool:
        question, passage = _hashes(item)
        if question in self._without_passage:
            return True
        if passage == _NO_PASSAGE:
            return question in self._with_a_passage
        return (question, passage) in self._on_passage


def _hashes(item: Item) -> tuple[int, int]:
    """Of question and passage. A summary, which has no question, is asked of its passage."""
    if item.context:
        return _hash(item.query), _hash(item.context) or 1  # a passage is never `_NO_PASSAGE`
    return _hash(_first_turn(item)), _NO_PASSAGE


def _first_turn(item: Item) -> str:
    return item.turns[0] if item.turns else item.question


def _hash(text: str) -> int:
    digest = hashlib.blake2b(letters_key(text).encode(), digest_size=8).digest()
    return int.from_bytes(digest)
