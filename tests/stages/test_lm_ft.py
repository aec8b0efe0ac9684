"""Every (example, chunk) is an instance of its own."""

from dataclasses import replace

import numpy as np
from small import CHUNKS, LONG, QUESTIONS

from radit_jax.data.corpus import Chunks
from radit_jax.data.examples import question_example
from radit_jax.data.retrieved import Retrieved
from radit_jax.stages.lm_ft import instances
from radit_jax.text.prompts import background


def test_an_example_is_an_instance_under_each_of_its_chunks_and_its_answer_ends_with_eos(inputs, lm):
    examples = [question_example(question, question.answers[0]) for question in QUESTIONS["dev"]]
    rows = np.array([[4, LONG], [7, -1]])  # −1 is no chunk
    retrieved = Retrieved(examples, rows, np.zeros(rows.shape, np.float32), np.zeros(rows.shape, bool))
    trees, truncated = instances(retrieved, Chunks(inputs["corpus"]), lm.tokenizer, max_length=64)
    assert truncated == 1
    wanted = [(0, background(CHUNKS[4].passage)), (0, None), (1, background(CHUNKS[7].passage))]
    assert len(trees) == len(wanted)
    for tree, (number, passage) in zip(trees, wanted, strict=True):
        [branch] = tree.branches
        answer = branch.tokens[branch.weights > 0].tolist()
        assert answer == [*lm.tokenizer.encode(examples[number].answer), lm.tokenizer.eos_id]
        assert lm.tokenizer.decode(branch.tokens).startswith(examples[number].prompt)
        assert passage is None or lm.tokenizer.decode(tree.trunk.tokens) == passage
        assert not tree.trunk.weights.any()
        assert len(tree.trunk.tokens) + len(branch.tokens) <= 64


def test_an_example_with_a_background_of_its_own_is_one_instance_under_that_or_under_none(inputs, lm):
    asked = question_example(QUESTIONS["dev"][0], "Hill")
    examples = [replace(asked, background="Its own context."), replace(asked, background="")]
    rows = np.full((2, 3), -1)
    retrieved = Retrieved(examples, rows, np.zeros(rows.shape, np.float32), np.zeros(rows.shape, bool))
    trees, truncated = instances(retrieved, Chunks(inputs["corpus"]), lm.tokenizer, max_length=200)
    assert (len(trees), truncated) == (2, 0)
    own, none = (lm.tokenizer.decode(tree.trunk.tokens) for tree in trees)
    assert own == background("Its own context.")
    assert none == ""
