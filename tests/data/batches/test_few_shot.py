"""Shots stand before the question, nearest last, and give way whole where room is short."""

import pytest

from radit_jax.data.batches.few_shot import Shot, few_shot_prompt


class Letters:
    """A token per character, so that a prompt can be read."""

    start_ids, end_ids, opening = (0,), (1,), ""

    def encode(self, text):
        return [ord(letter) for letter in text]

    def encode_pair(self, prompt, answer):
        return self.encode(prompt + answer), len(self.encode(prompt))

    def decode(self, ids):
        return "".join(map(chr, ids))


LETTERS = Letters()
FAR, MIDDLE, NEAR = (
    Shot(None, "Q: 1\nA:", " one"),
    Shot("P", "Q: 2\nA:", " two"),
    Shot(None, "Q: 3\nA:", " x"),
)
TEXTS = ["Q: 1\nA: one\n\n", "Background: P\n\nQ: 2\nA: two\n\n", "Q: 3\nA: x\n\n"]
OWN = "Background: Here\n\nQ: 4\nA:"


def prompt(max_length):
    made = few_shot_prompt(LETTERS, (FAR, MIDDLE, NEAR), "Here", "Q: 4\nA:", max_length=max_length)
    assert made.tokens[:1] == list(LETTERS.start_ids)
    assert len(made.tokens) <= max_length
    return LETTERS.decode(made.tokens[1:]), made.shots_dropped, made.truncated


WHOLE = 1 + len("".join(TEXTS)) + len(OWN)


@pytest.mark.parametrize(
    ("max_length", "kept"),
    [
        (WHOLE, TEXTS),
        (WHOLE - 1, TEXTS[1:]),
        (WHOLE - len(TEXTS[0]), TEXTS[1:]),
        (WHOLE - len(TEXTS[0]) - 1, TEXTS[2:]),  # the farthest would fit, but it goes first
        (1 + len(OWN), []),
    ],
)
def test_shots_that_do_not_fit_are_dropped_whole_the_farthest_first(max_length, kept):
    assert prompt(max_length) == ("".join(kept) + OWN, 3 - len(kept), False)


def test_without_room_for_any_shot_the_background_is_cut_and_never_the_question():
    text, dropped, truncated = prompt(len(OWN) - 1)
    assert text.startswith("Background: He") and text.endswith("\n\nQ: 4\nA:")
    assert (dropped, truncated) == (3, True)
    with pytest.raises(ValueError, match="prompt .*: expected at most the 4 tokens that a row holds, got 8"):
        prompt(4)


def test_without_shots_it_is_the_plain_prompt():
    made = few_shot_prompt(LETTERS, (), None, "Q: 4\nA:", max_length=50)
    assert made == ([0, *LETTERS.encode("Q: 4\nA:")], 0, False)


class Startless(Letters):
    """Whose model reads nothing before a text, as Qwen's."""

    start_ids = ()


def test_without_a_bos_the_farthest_shot_is_the_first_text():
    made = few_shot_prompt(Startless(), (FAR, MIDDLE, NEAR), "Here", "Q: 4\nA:", max_length=WHOLE - 1)
    assert LETTERS.decode(made.tokens) == "".join(TEXTS) + OWN and not made.shots_dropped
    made = few_shot_prompt(Startless(), (FAR, MIDDLE, NEAR), "Here", "Q: 4\nA:", max_length=WHOLE - 2)
    assert LETTERS.decode(made.tokens) == "".join(TEXTS[1:]) + OWN and made.shots_dropped == 1


class Opened(Letters):
    """Whose model read a space before a text, as LLaMA 1's and 2's did."""

    opening = " "


def test_the_opening_stands_before_the_first_shot_that_was_kept():
    def text(max_length):
        made = few_shot_prompt(Opened(), (FAR, MIDDLE, NEAR), "Here", "Q: 4\nA:", max_length=max_length)
        return LETTERS.decode(made.tokens[1:])

    whole = 2 + len("".join(TEXTS) + OWN)
    assert text(whole) == " " + "".join(TEXTS) + OWN
    assert text(whole - 1) == " " + "".join(TEXTS[1:]) + OWN
    assert text(2 + len(OWN)) == " " + OWN
