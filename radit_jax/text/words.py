"""Words in any language, also where no spaces part them, and whichever normal form the text came in.

Scripts without spaces are Chinese, Japanese, Thai, Lao, Khmer and Burmese: there a character takes the place
of a word. A combining mark belongs to the letter before it. Text is composed first (NFC), so that "é" as one
character and as two are the same.
"""

import re
import unicodedata

import regex

# A long vowel mark and two signs of Chinese and Japanese belong to no script, or to several.
_UNSPACED = (
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u3006\u30fc\uff70]"
)
_HAS_UNSPACED = regex.compile(_UNSPACED)
# Blocks that hold these scripts and others; `re` is ten times as fast, and most text has nothing of them.
_MAY_BE_UNSPACED = re.compile(
    "[\u02ea\u02eb\u0e00-\u109f\u1780-\u19ff\u2e80-\uabff\uf900-\ufaff\uff00-\U0010ffff]"
)
_ASCII_WORD = re.compile(r"[^\W_]+")
_OF_SPACED_WORD = rf"(?!{_UNSPACED})[\p{{L}}\p{{N}}]"
_WORD = regex.compile(
    rf"(?=[\p{{L}}\p{{N}}]){_UNSPACED}\p{{M}}*"  # a character of a script without spaces, with its marks
    rf"|{_OF_SPACED_WORD}(?:{_OF_SPACED_WORD}|(?!{_UNSPACED})\p{{M}})*"
)
_CHARACTER_OR_RUN = regex.compile(rf"{_UNSPACED}|(?:(?!{_UNSPACED})\S)+")
_PIECE = regex.compile(rf" ?(?:{_UNSPACED}[\p{{M}}\p{{P}}]*|(?:(?!{_UNSPACED})\S)+)")


def folded(text: str) -> str:
    """`text` composed and in lower case, as all comparisons here see it."""
    return unicodedata.normalize("NFC", text).lower()


def is_spaced(text: str) -> bool:
    """Whether no character of `text` belongs to a script that is written without spaces."""
    return text.isascii() or not (_MAY_BE_UNSPACED.search(text) and _HAS_UNSPACED.search(text))


def words(text: str) -> list[str]:
    """The runs of letters and digits with their marks; of a script without spaces, the characters.

    >>> words("born in 1970, in 北京"), words("दिल")
    (['born', 'in', '1970', 'in', '北', '京'], ['दिल'])
    """
    return _ASCII_WORD.findall(text) if text.isascii() else _WORD.findall(text)


def characters_apart(text: str) -> str:
    """`text` with single spaces between its words, and around each character of a script without spaces.

    These are MLQA's tokens of Chinese, for the other scripts too.

    >>> characters_apart("iPhone手机  in 2007")
    'iPhone 手 机 in 2007'
    """
    return " ".join(text.split() if is_spaced(text) else _CHARACTER_OR_RUN.findall(text))


def pieces(text: str) -> tuple[list[str], str]:
    """What a passage may be cut between, and what joins it again: its words, by single spaces.

    Where a script has no spaces a piece is a character, with its marks and the punctuation after it, or a
    word of others, and what joins them is nothing: a space is the beginning of the piece behind it.

    >>> pieces("ab  cd"), pieces("长江。 Yangtze")
    ((['ab', 'cd'], ' '), (['长', '江。', ' Yangtze'], ''))
    """
    words = text.split()
    return (words, " ") if is_spaced(text) else (_PIECE.findall(" ".join(words)), "")
