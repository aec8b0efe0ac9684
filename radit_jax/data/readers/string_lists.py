"""A list of strings in Python's or JSON's notation, as tables of questions have it."""

import re
import sys

from radit_jax.data.readers.lines import quoted

_WHITE_SPACE = re.compile(r"\s*")
# A string in Python's or JSON's notation, and what a backslash stands before in one.
_IN_SINGLE_QUOTES = r"'([^'\\]*+(?:\\.[^'\\]*+)*+)'"
_IN_DOUBLE_QUOTES = r'"([^"\\]*+(?:\\.[^"\\]*+)*+)"'
_STRING = re.compile(rf"\s*(?:{_IN_SINGLE_QUOTES}|{_IN_DOUBLE_QUOTES})\s*", re.DOTALL)
_HEX = "[0-9a-fA-F]"
_ESCAPE = re.compile(rf"""\\(?:x({_HEX}{{2}})|u({_HEX}{{4}})|U({_HEX}{{8}})|([\\'"/abfnrtv0\n]))""")
_ESCAPED = {
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "0": "\0", "\n": ""
}  # fmt: skip


def list_of_strings(text: str, where: str) -> list[str]:
    """The strings of a list as Python or JSON writes it; anything else is a ValueError.

    >>> list_of_strings("['Mara', 'Mara and son',]", "here")
    ['Mara', 'Mara and son']
    """
    stripped = text.strip()
    problem = ValueError(
        f"{where}: expected a list of strings, got {quoted(text)}. Write ['one', 'another'] there."
    )
    if not (stripped.startswith("[") and stripped.endswith("]")):
        raise problem
    strings: list[str] = []
    # Between the brackets: strings, with a comma after each but perhaps the last.
    start, end = 1, len(stripped) - 1
    while start < end and not _WHITE_SPACE.fullmatch(stripped, start, end):
        string = _STRING.match(stripped, start, end)
        if string is None:
            raise problem
        if string.end() < end and stripped[string.end()] != ",":
            raise problem
        single, double = string.groups()
        strings.append(_ESCAPE.sub(_unescaped, double if single is None else single))
        start = string.end() + 1
    try:
        # JSON spells a character beyond 16 bits as two halves.
        return [string.encode("utf-16", "surrogatepass").decode("utf-16") for string in strings]
    except UnicodeDecodeError:
        raise problem from None


def _unescaped(escape: re.Match[str]) -> str:
    """The character that an escape stands for; a number beyond Unicode's last stays as it is."""
    two_digits, four_digits, eight_digits, letter = escape.groups()
    digits = two_digits or four_digits or eight_digits
    if digits is None:
        return _ESCAPED.get(letter, letter)
    code = int(digits, 16)
    return chr(code) if code <= sys.maxunicode else escape[0]
