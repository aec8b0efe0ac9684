import re
import shutil

import numpy as np
import pytest

from radit_jax.data.batches.prefix_trees import (
    answer_token_count,
    example_span,
    fits,
    lm_sequence,
    prompt_tokens,
    shared_sequences,
)
from radit_jax.data.records import Example
from radit_jax.runtime.pretrained.tokenizer_files import load_tokenizer
from radit_jax.runtime.pretrained.tokenizer_training import train_bpe


class Words:
    """A tokeniser of words and line ends, which keeps what it saw so that a test can read tokens."""

    start_ids, end_ids, opening = (0,), (1,), ""

    def __init__(self):
        self.words = ["<bos>", "<eos>"]

    def encode(self, text):
        pieces = re.findall(r"\n| ?[^\s:]+| ?:", text)
        self.words += [piece for piece in pieces if piece not in self.words]
        return [self.words.index(piece) for piece in pieces]

    def encode_pair(self, prompt, answer):
        return self.encode(prompt + answer), len(self.encode(prompt))

    def decode(self, ids):
        return "".join(self.words[number] for number in ids)


PASSAGE = "Emma is a novel"  # as a prefix: <bos> Background : Emma is a novel \n \n, 9 tokens
EXAMPLE = Example("e1", "query", "Q: who?\nA:", " Jane Austen")  # Q : who? \n A : Jane Austen, 8 tokens


def text_of(tokenizer, sequence):
    return [tokenizer.decode(part.tokens.tolist()) for part in sequence.spans]


def test_a_sequence_is_a_background_and_a_prompt_with_a_weighted_answer():
    tokenizer = Words()
    sequence, truncated = lm_sequence(tokenizer, PASSAGE, EXAMPLE, max_length=18, terminator=True)
    assert text_of(tokenizer, sequence) == [
        "<bos>Background: Emma is a novel\n\n",
        "Q: who?\nA: Jane Austen<eos>",
    ]
    assert not truncated
    assert sequence.prefix.weights.tolist() == [0.0] * 9
    assert sequence.continuations[0].weights.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert sequence.prefix.tokens.dtype == np.int32


def test_without_the_terminator_only_the_answer_is_predicted():
    continuation = example_span(Words(), EXAMPLE, terminator=False)
    assert continuation.weights.tolist() == [0, 0, 0, 0, 0, 0, 1, 1]


def test_closed_book_has_no_background():
    tokenizer = Words()
    sequence, truncated = lm_sequence(tokenizer, None, EXAMPLE, max_length=9, terminator=False)
    assert text_of(tokenizer, sequence)[0] == "<bos>"
    assert not truncated


@pytest.mark.parametrize(
    ("max_length", "prefix"),
    [
        (17, "<bos>Background: Emma is a novel\n\n"),
        (16, "<bos>Background: Emma is a\n\n"),
        (14, "<bos>Background: Emma\n\n"),
        (13, "<bos>"),
        (10, "<bos>"),
        (9, "<bos>"),
    ],
)
def test_a_background_gives_way_from_its_end_and_keeps_its_blank_line(max_length, prefix):
    tokenizer = Words()
    sequence, truncated = lm_sequence(tokenizer, PASSAGE, EXAMPLE, max_length=max_length, terminator=False)
    assert text_of(tokenizer, sequence) == [prefix, "Q: who?\nA: Jane Austen"]
    assert truncated == (max_length < 17)
    assert sum(len(part.tokens) for part in sequence.spans) <= max_length


def test_a_question_that_does_not_fit_even_alone_is_an_error_that_names_it():
    assert fits(Words(), EXAMPLE, 10) and not fits(Words(), EXAMPLE, 9)
    with pytest.raises(
        ValueError, match="example e1: expected at most the 8 tokens that a row holds, got 9.*sequence_length"
    ):
        lm_sequence(Words(), PASSAGE, EXAMPLE, max_length=8, terminator=False)


def test_generation_starts_from_what_training_conditioned_on():
    tokenizer = Words()
    for length in (15, 13):
        tokens, truncated = prompt_tokens(tokenizer, PASSAGE, EXAMPLE.prompt, max_length=length)
        sequence, also = lm_sequence(tokenizer, PASSAGE, EXAMPLE, max_length=length + 2, terminator=False)
        assert tokens == [*sequence.prefix.tokens, *sequence.continuations[0].tokens[:-2]]
        assert truncated == also == (length == 13)


def examples_of(*answers):
    return [Example(f"e{n}", "query", "Q: who?\nA:", f" {answer}") for n, answer in enumerate(answers)]


def trees_of(tokenizer, examples, passage=PASSAGE, **limits):
    return shared_sequences(tokenizer, passage, examples, **limits)


def test_examples_on_one_passage_share_its_tokens():
    tokenizer = Words()
    (tree,) = trees_of(tokenizer, examples_of("Jane", "Jane Austen"), max_length=24)
    assert text_of(tokenizer, tree.sequence) == [
        "<bos>Background: Emma is a novel\n\n",
        "Q: who?\nA: Jane",
        "Q: who?\nA: Jane Austen",
    ]
    assert tree.examples == (0, 1)
    assert not tree.truncated


@pytest.mark.parametrize(
    ("limits", "groups"),
    [
        ({"max_length": 9 + 21}, [(0, 1, 2)]),
        ({"max_length": 9 + 20}, [(0, 1), (2,)]),
        ({"max_length": 99, "max_continuations": 2}, [(0, 1), (2,)]),
        ({"max_length": 99, "max_targets": 2}, [(0, 1), (2,)]),
        ({"max_length": 9 + 7}, [(0,), (1,), (2,)]),
    ],
)
def test_a_tree_is_split_where_a_row_would_overflow(limits, groups):
    trees = trees_of(Words(), examples_of("Jane", "Ann", "Mary"), **limits)
    assert [tree.examples for tree in trees] == groups


def test_sharing_changes_no_example():
    tokenizer = Words()
    examples = examples_of("a b c", "a", "a b c d e", "a b", "a b c d e f")
    trees = trees_of(tokenizer, examples, max_length=18, max_continuations=2)
    assert sorted(n for tree in trees for n in tree.examples) == [0, 1, 2, 3, 4]
    for tree in trees:
        for number, continuation in zip(tree.examples, tree.sequence.continuations, strict=True):
            example = examples[number]
            single, truncated = lm_sequence(tokenizer, PASSAGE, example, max_length=18, terminator=False)
            assert tree.truncated == truncated
            assert tree.sequence.prefix.tokens.tolist() == single.prefix.tokens.tolist()
            assert continuation.tokens.tolist() == single.continuations[0].tokens.tolist()
            assert continuation.weights.tolist() == single.continuations[0].weights.tolist()


def test_no_examples_make_no_trees():
    assert trees_of(Words(), [], max_length=20) == []


def test_the_parts_of_an_input_are_the_tokens_of_its_text():
    text = "Background: Emma is a novel\n\nQ: who?\nA: Jane Austen"
    tokenizer = train_bpe([text] * 4, vocab_size=320)
    sequence, _ = lm_sequence(tokenizer, PASSAGE, EXAMPLE, max_length=99, terminator=True)
    ids = np.concatenate([part.tokens for part in sequence.spans]).tolist()
    assert ids == [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
    answer = sequence.continuations[0].tokens[sequence.continuations[0].weights > 0].tolist()
    assert answer == [*tokenizer.encode(" Jane Austen"), tokenizer.eos_id]


class Opened(Words):
    """Whose model read a space before a text, as LLaMA 1's and 2's did."""

    opening = " "


def test_the_opening_stands_behind_bos_and_nowhere_else():
    tokenizer = Opened()
    sequence, _ = lm_sequence(tokenizer, PASSAGE, EXAMPLE, max_length=99, terminator=False)
    assert text_of(tokenizer, sequence) == [
        "<bos> Background: Emma is a novel\n\n",
        "Q: who?\nA: Jane Austen",
    ]
    cut, _ = lm_sequence(tokenizer, PASSAGE, EXAMPLE, max_length=14, terminator=False)
    assert text_of(tokenizer, cut)[0] == "<bos> Background: Emma\n\n"
    closed, _ = lm_sequence(tokenizer, None, EXAMPLE, max_length=99, terminator=False)
    assert text_of(tokenizer, closed) == ["<bos>", " Q: who?\nA: Jane Austen"]
    prompt, _ = prompt_tokens(tokenizer, None, EXAMPLE.prompt, max_length=99)
    assert tokenizer.decode(prompt) == "<bos> Q: who?\nA:"
    (tree,) = trees_of(tokenizer, [EXAMPLE], max_length=99)
    assert text_of(tokenizer, tree.sequence)[1] == "Q: who?\nA: Jane Austen"


def test_a_piece_on_the_boundary_of_prompt_and_answer_is_predicted():
    class Merging(Words):
        def encode_pair(self, prompt, answer):
            ids = self.encode(prompt + answer)
            return ids, len(self.encode(prompt)) - 1

    example = Example("e2", "query", "Q: who?\nA:", "\nJane")
    continuation = example_span(Merging(), example, terminator=False)
    assert continuation.weights.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert answer_token_count(Merging(), example) == 3


def test_an_input_is_what_llamas_own_tokeniser_makes_of_its_text(shared_data, tmp_path):
    shutil.copy(shared_data / "tokenizers" / "llama_tokenizer.model", tmp_path / "tokenizer.model")
    tokenizer = load_tokenizer(tmp_path)
    for answer in (" Jane Austen", " 1815", "\nJane", " Édouard", "Jane"):
        example = Example("e", "query", "Q: who?\nA:", answer)
        sequence, _ = lm_sequence(tokenizer, PASSAGE, example, max_length=99, terminator=True)
        ids = np.concatenate([part.tokens for part in sequence.spans]).tolist()
        text = f"Background: {PASSAGE}\n\nQ: who?\nA:{answer}"
        theirs = tokenizer.hf(text, add_special_tokens=False)["input_ids"]
        assert ids == [tokenizer.bos_id, *theirs, tokenizer.eos_id]
        predicted = sequence.continuations[0].tokens[sequence.continuations[0].weights > 0]
        assert tokenizer.decode(predicted) == answer


class Startless(Words):
    """Whose model reads nothing before a text, as Qwen's."""

    start_ids = ()


def test_without_a_bos_the_first_token_is_that_of_the_text():
    tokenizer = Startless()
    tree, truncated = lm_sequence(tokenizer, PASSAGE, EXAMPLE, max_length=16, terminator=False)
    assert text_of(tokenizer, tree) == ["Background: Emma is a novel\n\n", "Q: who?\nA: Jane Austen"]
    assert not truncated
    closed, _ = lm_sequence(tokenizer, None, EXAMPLE, max_length=8, terminator=False)
    assert text_of(tokenizer, closed) == ["", "Q: who?\nA: Jane Austen"]
    assert closed.continuations[0].weights.tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert fits(tokenizer, EXAMPLE, 9) and not fits(tokenizer, EXAMPLE, 8)
    assert (
        prompt_tokens(tokenizer, None, EXAMPLE.prompt, max_length=6)[0]
        == closed.continuations[0].tokens[:6].tolist()
    )


def test_a_token_that_nothing_is_before_is_no_target():
    example = Example("e", "query", "", "Jane Austen wrote")
    for tokenizer, weights in ((Words(), [1, 1, 1, 1]), (Startless(), [0, 1, 1, 1])):
        tree, _ = lm_sequence(tokenizer, None, example, max_length=9, terminator=True)
        assert tree.continuations[0].weights.tolist() == weights
        (shared,) = trees_of(tokenizer, [example, example], passage=None, max_length=9)
        assert [part.weights.tolist() for part in shared.sequence.continuations] == [weights[:-1]] * 2
        tree, _ = lm_sequence(tokenizer, PASSAGE, example, max_length=99, terminator=True)
        assert tree.continuations[0].weights.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("kind", [Words, Opened, Startless])
def test_an_example_whose_background_is_left_out_whole_is_closed_book(kind):
    tokenizer = kind()
    closed, _ = lm_sequence(tokenizer, None, EXAMPLE, max_length=11, terminator=True)
    tree, truncated = lm_sequence(tokenizer, PASSAGE, EXAMPLE, max_length=11, terminator=True)
    assert truncated and text_of(tokenizer, tree) == text_of(tokenizer, closed)
    prompt, also = prompt_tokens(tokenizer, PASSAGE, EXAMPLE.prompt, max_length=9)
    assert also and prompt == prompt_tokens(tokenizer, None, EXAMPLE.prompt, max_length=9)[0]
