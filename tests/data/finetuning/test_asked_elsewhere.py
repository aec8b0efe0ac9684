"""Which questions count as the same."""

import pytest

from radit_jax.data.finetuning.asked_elsewhere import AskedElsewhere, division_key, letters_key
from radit_jax.data.records import Item


def item(question, context="", turns=(), name="i"):
    return Item(name, question, ("x",), context=context, turns=turns)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("A train runs at 60 km / hr .", "a train runs at 60 km/hr", True),
        ("What's  it?", "what s it", True),
        ("Cafe\u0301?", "CAFÉ", True),  # both normal forms
        ("60 km", "61 km", False),
        ("कि", "की", False),  # they differ in a combining mark alone
        ("東京はどこ？", "東京は どこ", True),
    ],
)
def test_questions_are_compared_by_their_letters_digits_and_marks(one, other, same):
    assert (letters_key(one) == letters_key(other)) == same


def test_a_question_that_is_asked_elsewhere_is_known_whatever_its_form():
    asked = AskedElsewhere()
    asked.add(item("Where does snow stay longest?"))
    asked.add(item("Who won?", context="Dray won."))
    asked.add(item("And then?", turns=("How do I boil an egg?", "Boil it.")))
    asked.add(item("", context="An article."))
    assert item("where does snow stay longest") in asked
    assert item("Where does snow stay longest?", context="Snow.") in asked
    assert item("Who won ?", context="dray won") in asked
    assert item("Who won?") in asked  # without a passage it may be the same
    assert item("Who won?", context="Lune won.") not in asked
    assert item("Thanks?", turns=("how do I boil an egg", "Fry it.")) in asked  # of the same tree
    assert item("", context="an article") in asked and item("", context="Another.") not in asked


def test_replies_of_a_tree_and_questions_of_a_passage_stay_together():
    first, later = item("How?"), item("And then?", turns=("How?", "So."))
    assert division_key(first) == division_key(later) != division_key(item("And then?"))
    assert division_key(item("a?", context="P.")) == division_key(item("b?", context="P."))
