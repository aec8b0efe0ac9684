"""Answers belong to their questions, and their probabilities are those of Eq. 2."""

import itertools
from dataclasses import replace

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import assert_stored
from small import CHUNKS, LONG, QUESTIONS

from radit_jax.config import EvaluateConfig
from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.batches.few_shot import Shot
from radit_jax.lm.answering import (
    Retrieval,
    answer,
    first_line,
    make_prompts,
    merge_equal_texts,
)
from radit_jax.lm.ensemble import AnswerCandidate
from radit_jax.lm.scoring import NO_CHUNK
from radit_jax.text.prompts import background, question_prompt

pytestmark = pytest.mark.usefixtures("float64")
TEXTS = [question.question for question in QUESTIONS["train"]] + ["Who?"]
ROWS = np.array([[0, LONG], [1, 2], [2, 1], [LONG, NO_CHUNK], [3, 0]])
WEIGHTS = np.log(np.tile(np.array([0.75, 0.25], np.float32), (len(TEXTS), 1)))
SETTINGS = EvaluateConfig(max_new_tokens=2, sequence_length=64, prompts_per_batch=4)


@pytest.fixture(scope="module")
def chunks(inputs):
    return Chunks(inputs["corpus"])


@pytest.fixture(scope="module")
def answers(lm64, chunks):
    with jax.enable_x64(True):
        return answer(lm64, TEXTS, Retrieval(chunks, ROWS, WEIGHTS), SETTINGS, "test")


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
        assert 0 < sum(probabilities) <= 1 + 1e-6


def test_each_answer_has_its_probability_in_the_mixture_over_its_questions_chunks(lm64, answers):
    for number in (1, 2, 4):  # those without the long chunk, which is cut
        prompts = [prompt(lm64, TEXTS[number], row) for row in ROWS[number]]
        distinct = {tuple(greedy(lm64, p)) for p in prompts}
        by_hand = {
            lm64.tokenizer.decode(list(tokens)).strip(): sum(
                weight * np.exp(log_prob(lm64, p, list(tokens)))
                for weight, p in zip((0.75, 0.25), prompts, strict=True)
            )
            for tokens in distinct
        }
        assert {candidate.text for candidate in answers[number]} == set(by_hand)
        for text, probability, *_ in answers[number]:
            assert_stored(np.log(probability), np.log(by_hand[text]))


def test_an_answers_probability_under_each_chunk_makes_its_probability_in_the_mixture(lm64, answers):
    for number in (1, 2, 4):
        prompts = [prompt(lm64, TEXTS[number], row) for row in ROWS[number]]
        for candidate in answers[number]:
            [tokens] = {
                tuple(tokens)
                for tokens in (greedy(lm64, p) for p in prompts)
                if lm64.tokenizer.decode(tokens).strip() == candidate.text
            }
            assert candidate.is_cut == (len(tokens) == SETTINGS.max_new_tokens)
            assert_stored(candidate.log_probs, [log_prob(lm64, p, list(tokens)) for p in prompts])
            mixed = np.exp(WEIGHTS[number] + candidate.log_probs).sum()
            assert_stored(np.log(candidate.probability), np.log(mixed))


def test_in_a_chat_answers_follow_what_transformers_makes_of_the_question(lm64, chunks):
    tokenizer = families.in_chat(lm64.tokenizer)
    chat = lm64._replace(tokenizer=tokenizer)
    retrieval = Retrieval(chunks, ROWS[1:3], WEIGHTS[1:3])
    answers = answer(chat, TEXTS[1:3], retrieval, SETTINGS, "test")
    for question, rows, candidates in zip(TEXTS[1:3], ROWS[1:3], answers, strict=True):
        prompts = []
        for row in rows:
            user = background(CHUNKS[row].passage) + question_prompt(question)
            asked = [{"role": "user", "content": user}]
            prompts.append(
                tokenizer.hf.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
            )
        told = {
            first_line(tokenizer.decode(greedy(chat, prompt))): greedy(chat, prompt) for prompt in prompts
        }
        for text, probability, *_ in candidates:
            each = [log_prob(chat, prompt, told[text]) for prompt in prompts]
            assert_stored(np.log(probability), np.logaddexp.reduce(np.log([0.75, 0.25]) + each))


def test_a_closed_book_prompt_has_no_background(lm64, chunks):
    rows = np.full((len(TEXTS), 2), NO_CHUNK)
    closed = answer(lm64, TEXTS, Retrieval(chunks, rows, WEIGHTS), SETTINGS, "test")
    for question, candidates in zip(TEXTS, closed, strict=True):
        alone = prompt(lm64, question, NO_CHUNK)
        tokens = greedy(lm64, alone)
        [candidate] = candidates  # both columns ask the same
        assert candidate.text == lm64.tokenizer.decode(tokens).strip()
        assert_stored(np.log(candidate.probability), log_prob(lm64, alone, tokens))


def test_an_answer_depends_on_no_other_question(lm64, chunks, answers):
    order = [4, 2, 0, 3, 1]
    texts = [TEXTS[number] for number in order]
    moved = answer(lm64, texts, Retrieval(chunks, ROWS, WEIGHTS).part(order), SETTINGS, "test")
    for number, candidates in zip(order, moved, strict=True):
        for after, before in itertools.zip_longest(candidates, answers[number]):
            assert after.text == before.text
            assert_stored(np.log(after.probability), np.log(before.probability))


def test_at_token_level_a_question_has_one_answer_with_its_probability_in_the_mixture(lm64, chunks):
    settings = replace(SETTINGS, ensemble="token")
    answers = answer(lm64, TEXTS, Retrieval(chunks, ROWS, WEIGHTS), settings, "test")
    for number, [candidate] in enumerate(answers):
        if LONG in ROWS[number]:
            continue
        prompts = [prompt(lm64, TEXTS[number], row) for row in ROWS[number]]
        tokens, posterior = [], np.array([0.75, 0.25])
        while len(tokens) < settings.max_new_tokens:
            each = np.exp([next_log_probs(lm64, p + tokens) for p in prompts])
            token = int((posterior @ each).argmax())
            if token in lm64.tokenizer.stop_ids:
                break
            posterior = posterior * each[:, token] / (posterior @ each[:, token])
            tokens.append(token)
        expected = sum(
            w * np.exp(log_prob(lm64, p, tokens)) for w, p in zip((0.75, 0.25), prompts, strict=True)
        )
        assert candidate.text == lm64.tokenizer.decode(tokens).strip()
        assert_stored(np.log(candidate.probability), np.log(expected))


def test_concatenated_chunks_stand_in_one_background_the_best_first(lm64, chunks):
    settings = replace(SETTINGS, ensemble="concatenate", sequence_length=128)
    rows = np.array([[1, 2, NO_CHUNK], [NO_CHUNK] * 3])
    retrieval = Retrieval(chunks, rows, np.zeros((2, 3), np.float32))
    made = make_prompts(lm64, [question_prompt(text) for text in TEXTS[:2]], retrieval, settings)
    joined = background(f"{CHUNKS[1].passage}\n{CHUNKS[2].passage}") + question_prompt(TEXTS[0])
    both, closed = ([lm64.tokenizer.decode(p.tokens) for p in own] for own in made.questions)
    assert (both, closed) == ([joined], [question_prompt(TEXTS[1])])
    answers = answer(lm64, TEXTS[:2], retrieval, settings, "test")
    tokens = greedy(lm64, made.questions[0][0].tokens)
    assert [a.text for a in answers[0]] == [lm64.tokenizer.decode(tokens).strip()]


def test_shots_stand_before_the_background_and_what_does_not_fit_is_counted(lm64, chunks):
    shots = [
        [Shot(None, question_prompt("Who?"), " Ann")],
        [Shot("Ann " * 60, question_prompt("Who?"), " Ann")],
    ]
    settings = replace(SETTINGS, sequence_length=128)
    prompts = [question_prompt(text) for text in TEXTS[:2]]
    retrieval = Retrieval(chunks, np.array([[1, 2], [LONG, 1]]), np.zeros((2, 2), np.float32))
    made = make_prompts(lm64, prompts, retrieval, settings, shots)
    assert (made.shots_dropped, made.truncated) == (2, 0)
    text = lm64.tokenizer.decode(made.questions[0][1].tokens)
    assert text == "Q: Who?\nA: Ann\n\n" + background(CHUNKS[2].passage) + prompts[0]
    tight = make_prompts(lm64, prompts[1:], retrieval.part(slice(1, 2)), SETTINGS)
    assert tight.truncated == 1


def test_an_answer_is_read_up_to_its_first_newline():
    assert first_line(" Hob Crane .\n\n") == "Hob Crane ."
    assert first_line("\n Hob Crane ") == ""
    assert first_line(" Hob Crane ") == "Hob Crane"


def by_words(*texts):
    """Candidates whose ids are places in `texts`, and what reads them."""
    return lambda tokens: first_line("".join(texts[token] for token in tokens))


def test_answers_that_read_alike_are_one_whose_probabilities_add_up():
    read = by_words(" Lyon", " Paris", ".", ".\n")
    # The second of two chunks, which weigh the same, leads to Paris alone.
    by_chunk = [np.log(values) for values in ((0.7, 0.1), (0.1, 0.4), (0.2, 0.4))]
    lyon = AnswerCandidate((0, 2), np.log(0.4), 3, False, tuple(by_chunk[0]))
    split = AnswerCandidate((1, 2), np.log(0.25), 3, True, tuple(by_chunk[1]))
    joined = AnswerCandidate((1, 3), np.log(0.3), 2, False, tuple(by_chunk[2]))
    [first, second] = merge_equal_texts([lyon, joined, split], read)
    assert np.exp(first.log_probs) == pytest.approx((0.3, 0.8)) and not first.is_cut
    assert np.exp(second.log_probs) == pytest.approx((0.7, 0.1))
    assert (first.text, second.text) == ("Paris.", "Lyon.")
    assert (first.probability, second.probability) == pytest.approx((0.55, 0.4))


def test_per_token_the_shortest_answer_does_not_win():
    """METHOD's figures: log p −4.16 of one token beats −6.55 of sixty by the sum alone."""
    read = by_words(" yes", " it is so because")
    short, long = AnswerCandidate((0,), -4.16, 2), AnswerCandidate((1,) * 60, -6.55, 60)
    assert merge_equal_texts([short, long], read)[0].text == "yes"
    assert merge_equal_texts([short, long], read, per_token=True)[0].text.startswith("it is so")
    alike = [AnswerCandidate((0, 0), -3.0, 3), AnswerCandidate((0, 0), -9.0, 30)]
    assert (
        merge_equal_texts([*alike, AnswerCandidate((1,), -1.5, 2)], read, per_token=True)[0].text
        == "it is so because"
    )
