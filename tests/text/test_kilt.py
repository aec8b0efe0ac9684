"""KILT's scores, by its definitions."""

import numpy as np
import pytest

from radit_jax.text.kilt import fever_label, prediction, r_precision


@pytest.mark.parametrize(
    ("pages", "gold", "expected"),
    [
        (["1", "2"], [["1"]], 1.0),
        (["2", "1"], [["1"]], 0.0),  # R = 1: only the first page counts
        (["2", "1"], [["1", "2"]], 1.0),
        (["2", "2", "1"], [["1", "2"]], 1.0),  # a page counts once
        (["2", "3", "1"], [["1", "2"]], 0.5),
        (["3", "1"], [["1", "2"], ["3"]], 1.0),  # one set suffices
        (["3"], [["1", "3"]], 0.5),
        ([], [["1"]], 0.0),
        (["1"], [], 0.0),
        ([" 1 "], [["1"]], 1.0),
    ],
)
def test_r_precision_is_the_best_over_gold_sets_of_the_share_among_the_first_r(pages, gold, expected):
    assert r_precision(pages, gold) == expected


def by_definition(pages, gold):
    """R-precision, written from its definition with loops."""
    ranked = []
    for page in pages:
        if page not in ranked:
            ranked.append(page)
    best = 0.0
    for one in gold:
        hits = 0
        for page in ranked[: len(one)]:
            if page in one:
                hits += 1
        best = max(best, hits / len(one))
    return best


def test_r_precision_of_drawn_pages_is_its_definitions():
    rng, perfect = np.random.default_rng(0), 0
    for _ in range(1000):
        pages = [str(page) for page in rng.integers(0, 4, size=rng.integers(0, 6))]
        gold = [
            [str(page) for page in rng.permutation(4)[: rng.integers(1, 4)]]
            for _ in range(rng.integers(1, 3))
        ]
        assert r_precision(pages, gold) == by_definition(pages, gold)
        perfect += r_precision(pages, gold) == 1
    assert perfect > 100


def test_a_prediction_lists_each_page_once_in_the_order_of_the_chunks():
    assert prediction("q1", "Emma", ["7", "3", "7"]) == {
        "id": "q1",
        "output": [{"answer": "Emma", "provenance": [{"wikipedia_id": "7"}, {"wikipedia_id": "3"}]}],
    }


@pytest.mark.parametrize(
    ("generated", "label"),
    [("true", "SUPPORTS"), (" False.", "REFUTES"), ("TRUE", "SUPPORTS"), ("not true", "not true"), ("", "")],
)
def test_a_generated_true_or_false_is_a_fever_label(generated, label):
    assert fever_label(generated) == label
