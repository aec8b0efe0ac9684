import re

import pytest

from radit_jax.data.batches.examples import lm_text_example, question_example, r_text_example
from radit_jax.data.records import Chunk, Example, Question


class Words:
    """A tokeniser whose tokens are words with the space before them, so that decoding gives the text back."""

    def __init__(self):
        self.words = []

    def encode(self, text):
        pieces = re.findall(r"\s*\S+|\s+", text)
        self.words += [piece for piece in pieces if piece not in self.words]
        return [self.words.index(piece) for piece in pieces]

    def decode(self, ids):
        return "".join(self.words[number] for number in ids)


class Bytes:
    """A tokeniser whose tokens are UTF-8 bytes, so that a cut can split a character."""

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


class LowerCase(Words):
    """A tokeniser that does not give the text back."""

    def encode(self, text):
        return super().encode(text.lower())


def test_a_question_becomes_a_prompt_and_an_answer_with_its_space():
    question = Question("q1", "Who wrote Emma?", ("Jane Austen", "Austen"))
    assert question_example(question, "Austen") == Example(
        id="q1", query="Who wrote Emma?", prompt="Q: Who wrote Emma?\nA:", answer=" Austen"
    )


def test_text_for_lm_ft_is_a_chunk_cut_in_half():
    example = lm_text_example(Chunk("c7", "Title", "one two three four five"), Words())
    assert (example.prompt, example.answer) == ("one two", " three four five")
    assert example.query == "one two"
    assert example.source_chunk == "c7"


def test_text_for_r_ft_is_a_chunks_first_and_last_tokens():
    example = r_text_example(Chunk("c7", "Title", "one two three four five"), Words(), num_tokens=2)
    assert (example.query, example.prompt, example.answer) == ("one two", "one two", " four five")
    assert example.source_chunk == "c7"


@pytest.mark.parametrize(("num_words", "made"), [(99, False), (100, True)])
def test_a_chunk_of_fewer_than_a_hundred_tokens_is_skipped(num_words, made):
    text = " ".join(f"w{n}" for n in range(num_words))
    example = r_text_example(Chunk("c", "", text), Words())
    assert (example is not None) == made
    if made:
        assert len(example.prompt.split()) == 50
        assert example.answer.split()[0] == "w50"


def test_a_chunk_of_one_token_has_no_halves():
    assert lm_text_example(Chunk("c", "", "one"), Words()) is None


def test_lm_ft_and_r_ft_examples_of_one_chunk_have_different_ids():
    chunk = Chunk("c", "", "one two")
    assert lm_text_example(chunk, Words()).id != r_text_example(chunk, Words(), 1).id


def test_a_cut_inside_a_character_loses_nothing():
    # "é" is bytes 2 and 3 of six; half is byte 3.
    example = lm_text_example(Chunk("c", "", "abéde"), Bytes())
    assert example.prompt + example.answer == "abéde"
    assert example.prompt == "ab"


def test_a_tokeniser_that_changes_the_text_still_cuts_it():
    example = lm_text_example(Chunk("c", "", "One TWO three Four"), LowerCase())
    assert (example.prompt, example.answer) == ("one two", " three four")
