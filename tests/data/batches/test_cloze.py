"""Cloze trees: exercises that can be solved by looking them up in their own passage."""

import re

import numpy as np
import pytest

from radit_jax.data.batches.cloze import MAX_WORDS, OTHER_WEIGHT, Cloze, cloze, cloze_sequence
from radit_jax.data.records import Chunk
from radit_jax.runtime.pretrained.tokenizer_training import train_bpe

PASSAGES = [
    Chunk(
        "0",
        "Danube",
        "The Danube rises in the Black Forest of Germany. It flows past Vienna, Budapest and Belgrade. "
        "It is 2,850 km long, and about 80 million people live in its basin.",
    ),
    Chunk("1", "Marie Curie", "Marie Curie was born in Warsaw. " + "She studied physics in Paris. " * 30),
    Chunk("2", "", "Nothing. No."),
]
LIMITS = {"max_tokens": 200, "max_targets": 120}


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe((p.passage for p in PASSAGES), 400)


@pytest.fixture(scope="module")
def trees(tokenizer):
    return [cloze_sequence(PASSAGES, tokenizer, 0, number, **LIMITS) for number in range(40)]


def test_every_answer_stands_in_its_own_background(trees, tokenizer):
    for tree in trees:
        background = tokenizer.decode(tree.prefix.tokens)
        for continuation in tree.continuations:
            question, answer = tokenizer.decode(continuation.tokens).split("\nA: ")
            assert question.startswith("Q: ") and question.endswith("?")
            assert answer and answer in background


def test_the_background_is_a_run_of_a_passage_with_its_title(trees, tokenizer):
    texts = set()
    for tree in trees:
        text = tokenizer.decode(tree.prefix.tokens)
        match = re.fullmatch(r"Background: (Danube|Marie Curie) (.*)\n\n", text)
        assert match is not None
        assert any(p.title == match[1] and match[2] in p.text for p in PASSAGES)
        assert len(text.split()) <= MAX_WORDS + 1
        texts.add(text)
    assert len(texts) > 4


def test_answers_weigh_one_and_a_share_of_the_rest_half(trees, tokenizer):
    others = []
    for tree in trees:
        assert tree.prefix.tokens[0] == tokenizer.bos_id and tree.prefix.weights[0] == 0
        for continuation in tree.continuations:
            answer = tokenizer.decode(continuation.tokens).split("\nA:")[1]
            size = len(tokenizer.encode(answer)) + 1
            assert continuation.tokens[-1] == tokenizer.eos_id
            assert (continuation.weights[-size:] == 1).all() and (continuation.weights[:-size] != 1).all()
            others.append(continuation.weights[:-size])
        others.append(tree.prefix.weights[1:])
    others = np.concatenate(others)
    assert set(np.unique(others)) == {0, OTHER_WEIGHT}
    assert 0.25 < (others > 0).mean() < 0.35


def test_trees_fill_a_row_and_never_more(trees):
    tokens = np.array([sum(len(span.tokens) for span in tree.spans) for tree in trees])
    targets = [sum(int((span.weights > 0).sum()) for span in tree.spans) for tree in trees]
    assert tokens.max() <= LIMITS["max_tokens"] and max(targets) <= LIMITS["max_targets"]
    assert np.median(tokens) > 0.8 * LIMITS["max_tokens"]


def test_a_tree_depends_on_seed_and_number_only(trees, tokenizer):
    def key(tree):
        return [(span.tokens.tolist(), span.weights.tolist()) for span in tree.spans]

    again = cloze_sequence(PASSAGES, tokenizer, 0, 7, **LIMITS)
    assert key(again) == key(trees[7])
    assert key(cloze_sequence(PASSAGES, tokenizer, 1, 7, **LIMITS)) != key(trees[7])
    assert key(trees[6]) != key(trees[7])


def test_a_question_does_not_say_its_answer():
    words = tuple(re.findall(r"\w+", "The Danube rises in the Black Forest of southern Germany"))
    rng = np.random.default_rng(0)
    drawn = [cloze(words, "", rng) for _ in range(200)]
    made = [c for c in drawn if c is not None]
    assert len(made) == 200
    assert {"Black Forest", "Germany", "Danube", "rises"} <= {c.answer for c in made}
    assert not any(c.answer in c.question for c in made)


@pytest.mark.parametrize("words", ["", "Too short", "it was in the his of"])
def test_a_sentence_without_a_span_gives_no_question(words):
    assert cloze(tuple(words.split()), "Title", np.random.default_rng(0)) is None


def test_numbers_are_asked_for_with_words_for_numbers():
    rng = np.random.default_rng(0)
    drawn = [cloze(("they", "were", "with", "1867", "of", "the"), "", rng) for _ in range(20)]
    for c in drawn:
        assert isinstance(c, Cloze) and c.answer == "1867"
        assert re.search(r"when|how many|what year|how much", c.question.lower())


def test_a_corpus_without_sentences_is_an_error(tokenizer):
    with pytest.raises(
        ValueError, match="cloze: expected a question .*, got none from 100 passages drawn from 1"
    ):
        cloze_sequence(PASSAGES[2:], tokenizer, 0, 0, **LIMITS)
