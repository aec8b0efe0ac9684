"""What others wrote is shown, never acted upon."""

import pytest

from radit_jax.text.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Dray Tower\n\tin Łódź, 東京", "Dray Tower\n\tin Łódź, 東京"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\rb\x00\x7f\x9b1m", r"a\rb\x00\x7f\x9b1m"),
        ("user\u202etxt.exe", r"user\u202etxt.exe"),
        ("half \ud83d", r"half \ud83d"),
        ("👩\u200d🔬 क्\u200dष", "👩\u200d🔬 क्\u200dष"),
    ],
)
def test_what_a_terminal_acts_upon_is_spelt_out(text: str, shown: str) -> None:
    assert printable(text) == shown
