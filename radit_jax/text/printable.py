"""Text that others wrote, made safe to show in a terminal."""

import re

# Control characters except tab and newline, halves of surrogate pairs, and marks of a line's direction.
_ACTED_ON = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


NO_ANSWER = "(no answer)"  # what is shown of an empty one


def shown_answer(text: str) -> str:
    """An answer as people see it, in a table or a list: an empty one has words, too."""
    return text if text.strip() else NO_ANSWER


def printable(text: str) -> str:
    r"""`text` with an escape sequence in place of every character that a terminal would act upon.

    >>> printable("a \x1b[31mred\x1b[0m tower")
    'a \\x1b[31mred\\x1b[0m tower'
    """
    return _ACTED_ON.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
