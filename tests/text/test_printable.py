"""What others wrote is shown, never acted upon."""

from pathlib import Path

import pytest

from radit_jax import serving
from radit_jax.text.printable import NO_ANSWER, printable, shown_answer


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


def test_an_empty_answer_has_words_wherever_answers_are_shown() -> None:
    assert [shown_answer(text) for text in ("Emma", "", " ")] == ["Emma", NO_ANSWER, NO_ANSWER]
    page = Path(serving.__file__).with_name("page.html").read_text(encoding="utf-8")
    assert f'answer.text || "{NO_ANSWER}"' in page
