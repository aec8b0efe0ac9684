"""The templates: what the model reads and writes in each category, with markers drawn per example."""

from collections import Counter

import pytest

from radit_jax.data.finetuning.datasets import DATASETS
from radit_jax.data.finetuning.templates import item_example, item_question
from radit_jax.data.records import Example, Item, Question
from radit_jax.text import prompts
from radit_jax.text.prompts import Markers, draw_markers


@pytest.fixture(autouse=True)
def markers(monkeypatch):
    monkeypatch.setattr(
        "radit_jax.data.finetuning.templates.draw_markers",
        lambda seed, name: Markers("Question: ", "Answer: "),
    )


def test_a_question_keeps_its_choices_but_they_are_not_searched_for():
    item = Item("c", "Where?", ("there",), ("here", "there"))
    assert item_example(item, DATASETS["commonsense_qa"], "lm_ft", 0) == Example(
        "c", "Where?", "Question: Where?\nA. here\nB. there\nAnswer:", " there"
    )


def test_every_reply_of_a_dialogue_reads_the_turns_before_it():
    item = Item("m", "And now?", ("Wait.",), turns=("Hi.", "Hello."))
    example = item_example(item, DATASETS["oasst1"], "lm_ft", 0)
    assert example.prompt == "Q: Hi. A: Hello. Q: And now? A:"
    assert example.answer == " Wait."
    assert example.query == "Hi. Hello. And now?"
    assert example.background is None


def test_reading_comprehension_reads_its_context_and_retrieves_nothing():
    item = Item("s", "Who?", ("Hob",), context="Hob ran.")
    example = item_example(item, DATASETS["squad_v2"], "lm_ft", 0)
    assert example.background == "Hob ran."
    assert example.prompt + example.answer == "Question: Who?\nAnswer: Hob"


def test_earlier_questions_on_a_context_come_before_the_question():
    item = Item("s", "Why?", ("late",), context="Hob ran.", turns=("Who?", "Hob"))
    example = item_example(item, DATASETS["coqa"], "lm_ft", 0)
    assert example.prompt == "Question: Who?\nAnswer: Hob\nQuestion: Why?\nAnswer:"


def test_in_r_ft_reading_comprehension_is_asked_without_its_context():
    item = Item("p", "Does tea wake mice?", ("yes",), context="Mice ran.")
    assert item_example(item, DATASETS["pubmed_qa"], "r_ft", 0).background is None
    assert item_example(item, DATASETS["pubmed_qa"], "lm_ft", 0).background == "Mice ran."


def test_a_question_that_holds_its_situation_has_no_background_and_retrieves_nothing():
    item = Item("q", "Ann slid on ice. Where further?", ("ice",), ("ice", "sand"))
    assert item_example(item, DATASETS["quarel"], "lm_ft", 0).background == ""
    assert item_example(item, DATASETS["quarel"], "r_ft", 0).background is None


def test_an_article_is_the_background_of_its_summary():
    item = Item("a", "", ("Mill burns.",), context="The mill burnt.")
    assert item_example(item, DATASETS["cnn_dailymail"], "lm_ft", 0) == Example(
        "a", "", "Summarize this article:\nAnswer:", " Mill burns.", background="The mill burnt."
    )


def test_a_chain_of_thought_is_written_by_the_model():
    item = Item("g", "3 * 4?", ("12",), reasoning="3 + 3 + 3 + 3 = 12.")
    example = item_example(item, DATASETS["gsm8k"], "lm_ft", 0)
    assert (example.prompt, example.answer) == ("Question: 3 * 4?\n", "3 + 3 + 3 + 3 = 12.\nAnswer: 12")


def test_lm_ft_learns_the_first_answer_and_r_ft_the_shortest():
    item = Item("m", "how long", ("about 12 km", "12 km"))
    assert item_example(item, DATASETS["web_questions"], "lm_ft", 0).answer == " about 12 km"
    assert item_example(item, DATASETS["web_questions"], "r_ft", 0).answer == " 12 km"
    assert item_question(item, "Q: how long") == Question(
        "m", "how long", ("about 12 km", "12 km"), prompt="Q: how long"
    )


def test_markers_are_drawn_evenly_from_the_seed_and_the_id():
    drawn = Counter(draw_markers(0, f"gsm8k/train-{n}") for n in range(6000))
    assert set(drawn) == {Markers(q, a) for q in prompts.QUESTION_MARKERS for a in prompts.ANSWER_MARKERS}
    # 1000 of each expected, standard deviation 29
    assert all(abs(count - 1000) < 150 for count in drawn.values())
    assert sum(draw_markers(0, f"x{n}") == draw_markers(1, f"x{n}") for n in range(600)) < 150
