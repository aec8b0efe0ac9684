import numpy as np
import pytest

from radit_jax.text.metrics import (
    contains_answer,
    exact_match,
    f1,
    is_yes_no,
    normalize,
    recall_at_k,
    reciprocal_ranks,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Eiffel\tTower.", "eiffel tower"),
        ("U.S.A.", "usa"),
        ("An apple a day", "apple day"),
        ("theatre", "theatre"),
        ("", ""),
        ("  ", ""),
        ("A", "a"),
        ("?!", "?!"),
    ],
)
def test_normalisation_is_squads(text, expected):
    assert normalize(text) == expected


def test_exact_match_takes_the_best_gold_answer():
    assert exact_match("the Seine.", ["River Seine", "Seine"]) == 1.0
    assert exact_match("Seine river", ["River Seine", "Seine"]) == 0.0


def test_an_empty_prediction_scores_zero_even_against_an_empty_answer():
    for prediction in ("", " \n"):
        assert exact_match(prediction, ["", "Paris"]) == 0.0
        assert f1(prediction, ["", "Paris"]) == 0.0


def test_punctuation_and_articles_alone_do_not_match_each_other():
    assert exact_match(".", ["The"]) == 0.0
    assert exact_match("A", ["a"]) == 1.0
    assert exact_match("an", ["A"]) == 0.0


def test_f1_counts_repeated_words_once_per_occurrence():
    # prediction {new: 2, york: 1}, answer {new: 1, york: 1, city: 1}: 2 common, precision 2/3, recall 2/3.
    assert f1("new new york", ["New York City"]) == pytest.approx(2 / 3)
    # Best of: 1 common of 2 and 1 (F1 2/3); 2 common of 2 and 3 (F1 4/5).
    assert f1("New York", ["York", "New York City"]) == pytest.approx(4 / 5)
    assert f1("London", ["Paris"]) == 0.0


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("It began in 1970.", "1970", True),
        ("In the 1970s it began.", "1970", False),
        ("the catalogue", "cat", False),
        ("signed in Paris[3] by both", "Paris", True),
        ("the 1973–74 crisis", "1973", True),  # an en dash, which SQuAD's normalisation keeps
        ("born in New, York", "new york", True),
        ("new old york", "New York", False),
        ("president of United States", "President of the United States", True),
        ("Café Müller", "CAFÉ", True),
        ("blood of type A", "A", False),
        ("anything", "", False),
    ],
)
def test_an_answer_is_contained_as_whole_words(text, answer, expected):
    assert contains_answer(text, [answer]) is expected


def test_one_contained_answer_is_enough():
    assert contains_answer("the River Seine", ["Loire", "Seine"])
    assert not contains_answer("the River Seine", [])


def test_yes_no_questions_have_no_other_answer():
    assert is_yes_no(["Yes"])
    assert is_yes_no(["no.", "No"])
    assert not is_yes_no(["no", "never"])
    assert not is_yes_no(["Norway"])


HITS = np.array([[False, True, False, True], [True, False, False, False], [False, False, False, False]])


def test_recall_counts_questions_with_a_hit_among_the_first_k():
    assert recall_at_k(HITS, 1).tolist() == [0.0, 1.0, 0.0]
    assert recall_at_k(HITS, 4).tolist() == [1.0, 1.0, 0.0]


def test_recall_deeper_than_the_ranking_is_an_error():
    with pytest.raises(ValueError, match="recall@5: 4 chunks were ranked"):
        recall_at_k(HITS, 5)


def test_a_reciprocal_rank_is_of_the_first_hit():
    assert reciprocal_ranks(HITS).tolist() == [0.5, 1.0, 0.0]
