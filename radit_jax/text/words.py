"""Words in any language, also where no spaces separate them, and in any Unicode normal form.

Scripts without spaces are Chinese, Japanese, Thai, Lao, Khmer and Burmese: there a character takes the place
of a word. A combining mark belongs to the letter before it. Text is composed first (NFC), so that "é" as one
character equals "é" as two.
"""

import re
import unicodedata

import regex

# A long vowel mark and two signs of Chinese and Japanese belong to no script, or to several.
_UNSPACED = (
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u3006\u30fc\uff70]"
)
_HAS_UNSPACED = regex.compile(_UNSPACED)
# Blocks that hold these scripts and others. `re` is ten times as fast as `regex`, and most text has no
# character of these blocks.
_MAY_BE_UNSPACED = re.compile(
    "[\u02ea\u02eb\u0e00-\u109f\u1780-\u19ff\u2e80-\uabff\uf900-\ufaff\uff00-\U0010ffff]"
)
_ASCII_WORD = re.compile(r"[^\W_]+")
_OF_SPACED_WORD = rf"(?!{_UNSPACED})[\p{{L}}\p{{N}}]"
_WORD = regex.compile(
    rf"(?=[\p{{L}}\p{{N}}]){_UNSPACED}\p{{M}}*"  # a character of a script without spaces, with its marks
    rf"|{_OF_SPACED_WORD}(?:{_OF_SPACED_WORD}|(?!{_UNSPACED})\p{{M}})*"
)
# A character of a script without spaces, or a run of others up to white space.
_CHARACTER_OR_RUN = regex.compile(rf"{_UNSPACED}|(?:(?!{_UNSPACED})\S)+")
# The same with the space before it, and with the marks and punctuation after a character.
_PIECE = regex.compile(rf" ?(?:{_UNSPACED}[\p{{M}}\p{{P}}]*|(?:(?!{_UNSPACED})\S)+)")


def folded(text: str) -> str:
    """`text` composed (NFC) and in lower case, the form that all comparisons use."""
    return unicodedata.normalize("NFC", text).lower()


def is_spaced(text: str) -> bool:
    """Whether no character of `text` belongs to a script that is written without spaces."""
    if text.isascii() or not _MAY_BE_UNSPACED.search(text):
        return True
    return not _HAS_UNSPACED.search(text)


def words(text: str) -> list[str]:
    """The runs of letters and digits with their marks; in a script without spaces, the characters.

    >>> words("born in 1970, in 北京"), words("दिल")
    (['born', 'in', '1970', 'in', '北', '京'], ['दिल'])
    """
    pattern = _ASCII_WORD if text.isascii() else _WORD
    return pattern.findall(text)


def word_spans(text: str) -> list[tuple[str, int, int]]:
    """`words` of any text, each folded, with the places in `text` where it starts and ends.

    >>> word_spans("In 北京!")
    [('in', 0, 2), ('北', 3, 4), ('京', 4, 5)]
    """
    pattern = _ASCII_WORD if text.isascii() else _WORD
    spans = []
    for match in pattern.finditer(text):
        spans.append((folded(match.group()), match.start(), match.end()))
    return spans


def characters_apart(text: str) -> str:
    """`text` with single spaces between its words, and around each character of a script without spaces.

    For Chinese these are MLQA's tokens; the other scripts without spaces are treated the same.

    >>> characters_apart("iPhone手机  in 2007")
    'iPhone 手 机 in 2007'
    """
    tokens = text.split() if is_spaced(text) else _CHARACTER_OR_RUN.findall(text)
    return " ".join(tokens)


def pieces(text: str) -> tuple[list[str], str]:
    """The pieces between which a passage may be cut, and the text that joins them: its words, and a space.

    In a script without spaces a piece is a character with its marks and the punctuation after it, or a word
    of another script. The empty text joins them: a space is the first character of the piece after it.

    >>> pieces("ab  cd"), pieces("长江。 Yangtze")
    ((['ab', 'cd'], ' '), (['长', '江。', ' Yangtze'], ''))
    """
    spaced_words = text.split()
    if is_spaced(text):
        return spaced_words, " "
    single_spaced = " ".join(spaced_words)
    return _PIECE.findall(single_spaced), ""
