"""Answers belong to their questions, and their probabilities are those of Eq. 2."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import CHUNKS, LONG, QUESTIONS

from radit_jax.config import EvaluateConfig
from radit_jax.data.corpus import Chunks
from radit_jax.lm.answering import answer
from radit_jax.lm.scoring import NO_CHUNK
from radit_jax.text.prompts import background, question_prompt

TEXTS = [question.question for question in QUESTIONS["train"]] + ["Who?"]
ROWS = np.array([[0, LONG], [1, 2], [2, 1], [LONG, NO_CHUNK], [3, 0]])
WEIGHTS = np.log(np.tile(np.float32([0.75, 0.25]), (len(TEXTS), 1)))
SETTINGS = EvaluateConfig(max_new_tokens=2, sequence_length=64, prompts_per_batch=4)


@pytest.fixture(scope="module")
def chunks(inputs):
    return Chunks(inputs["corpus"])


@pytest.fixture(scope="module")
def answers(lm, chunks):
    return answer(lm, TEXTS, ROWS, WEIGHTS, chunks, SETTINGS, "test")


def next_log_probs(lm, tokens):
    """The log-probabilities of the token after `tokens`, by a plain forward pass."""
    padded = np.zeros((1, 64), np.int32)
    padded[0, : len(tokens)] = tokens
    logits = forward(lm.module, lm.params, jnp.asarray(padded))[0, len(tokens) - 1]
    return np.asarray(jax.nn.log_softmax(logits))


forward = jax.jit(lambda module, params, tokens: module.apply({"params": params}, tokens), static_argnums=0)


def greedy(lm, prompt):
    """The most probable tokens after `prompt`, up to a stop id."""
    found = []
    while len(found) < SETTINGS.max_new_tokens:
        token = int(next_log_probs(lm, prompt + found).argmax())
        if token in lm.tokenizer.stop_ids:
            break
        found.append(token)
    return found


def log_prob(lm, prompt, tokens):
    """Of the tokens and, where they are fewer than may be generated, of either stop id after them."""
    total = sum(next_log_probs(lm, prompt + tokens[:i])[token] for i, token in enumerate(tokens))
    if len(tokens) < SETTINGS.max_new_tokens:
        total += np.logaddexp.reduce(next_log_probs(lm, prompt + tokens)[list(lm.tokenizer.stop_ids)])
    return total


def prompt(lm, question, row):
    passage = "" if row == NO_CHUNK else background(CHUNKS[row].passage)
    encode = lm.tokenizer.encode
    return [lm.tokenizer.bos_id, *encode(passage), *encode(question_prompt(question))]


def test_probabilities_fall_and_sum_to_no_more_than_one(answers):
    assert len(answers) == len(TEXTS)
    for candidates in answers:
        probabilities = [candidate.probability for candidate in candidates]
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0 < sum(probabilities) <= 1 + 1e-5


def test_each_answer_has_its_probability_in_the_mixture_over_its_questions_chunks(lm, answers):
    for number in (1, 2, 4):  # those without the long chunk, which is cut
        prompts = [prompt(lm, TEXTS[number], row) for row in ROWS[number]]
        distinct = {tuple(greedy(lm, p)) for p in prompts}
        by_hand = {
            lm.tokenizer.decode(list(tokens)).strip(): sum(
                weight * np.exp(log_prob(lm, p, list(tokens)))
                for weight, p in zip((0.75, 0.25), prompts, strict=True)
            )
            for tokens in distinct
        }
        assert dict(answers[number]) == pytest.approx(by_hand, rel=1e-4)


def test_a_closed_book_prompt_has_no_background(lm, chunks):
    rows = np.full((len(TEXTS), 2), NO_CHUNK)
    closed = answer(lm, TEXTS, rows, WEIGHTS, chunks, SETTINGS, "test")
    for question, candidates in zip(TEXTS, closed, strict=True):
        alone = prompt(lm, question, NO_CHUNK)
        tokens = greedy(lm, alone)
        [candidate] = candidates  # both columns ask the same
        assert candidate.text == lm.tokenizer.decode(tokens).strip()
        assert candidate.probability == pytest.approx(np.exp(log_prob(lm, alone, tokens)), rel=1e-4)


def test_an_answer_depends_on_no_other_question(lm, chunks, answers):
    order = [4, 2, 0, 3, 1]
    texts = [TEXTS[number] for number in order]
    moved = answer(lm, texts, ROWS[order], WEIGHTS[order], chunks, SETTINGS, "test")
    for number, candidates in zip(order, moved, strict=True):
        for (text, probability), (text_before, before) in itertools.zip_longest(candidates, answers[number]):
            assert text == text_before
            assert probability == pytest.approx(before, rel=1e-4)
