r"""Answers that end within a piece, as `.\n` is one in byte-level vocabularies, by enumeration in float64.

The tokens read: a, <eos>, .\n, a, ., a\n. So `a .\n` and `a . <eos>` are one answer in two tokenisations, and
either `a` is another.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import assert_exact, assert_stored, drawn_in_float64
from scipy.special import logsumexp

from radit_jax.config import DecoderConfig
from radit_jax.lm.answer_rows import pack_answers
from radit_jax.lm.answering import first_line, merge_equal_texts
from radit_jax.lm.ensemble import DecodeOptions, answer_questions, answer_questions_by_token
from radit_jax.method.answer_scoring import answer_log_probs
from radit_jax.method.generation import Stops, prefill
from radit_jax.models.decoder import DecoderLm

TEXTS = ("a", "", ".\n", "a", ".", "a\n")
STOPS = Stops(alone=(1,), closing=(2, 5))
PLAIN = (0, 3, 4)
MOST = 3  # tokens of an answer
MODULE = DecoderLm(
    DecoderConfig(
        vocab_size=6, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_size=8, ffn_size=24
    ),
    dtype=jnp.float64,
)
pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(scope="module")
def params():
    params = drawn_in_float64(MODULE, jnp.zeros((1, 4), jnp.int32))
    with jax.enable_x64(True):
        return jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, params)


def read(tokens):
    return first_line("".join(TEXTS[token] for token in tokens))


_logits = jax.jit(lambda params, tokens: MODULE.apply({"params": params}, tokens))
_known: dict[tuple[int, ...], np.ndarray] = {}


def next_log_probs(params, tokens):
    """In float64, of one uncached pass."""
    key = (id(params), *tokens)
    if key not in _known:
        row = jnp.array([[*tokens, *[0] * (16 - len(tokens))]], jnp.int32)
        logits = np.asarray(_logits(params, row)[0, len(tokens) - 1])
        _known[key] = logits - logsumexp(logits)
    return _known[key]


def outcomes():
    """Every answer of at most three tokens: by a terminator, by its own last piece, or cut off."""
    answers = []
    for length in range(MOST + 1):
        for before in itertools.product(PLAIN, repeat=length):
            answers.append(before)
            if length < MOST:
                answers += [(*before, piece) for piece in STOPS.closing]
    return answers


def slow_log_prob(params, prompt, answer):
    total = sum(next_log_probs(params, [*prompt, *answer[:n]])[token] for n, token in enumerate(answer))
    if len(answer) < MOST and answer[-1:] not in [(piece,) for piece in STOPS.closing]:
        total += next_log_probs(params, [*prompt, *answer])[STOPS.alone[0]]
    return total


def slow_greedy(params, prompt, closing=STOPS.closing):
    answer = ()
    while len(answer) < MOST and (token := int(next_log_probs(params, [*prompt, *answer]).argmax())) != 1:
        answer += (token,)
        if token in closing:
            break
    return answer


@jax.jit
def scores(params, rows, lengths, packed):
    return answer_log_probs(MODULE, params, prefill(MODULE, params, rows, lengths), packed, stops=STOPS)


WEIGHTS = np.log([0.1, 0.2, 0.3, 0.4])
RNG = np.random.default_rng(0)
PROMPTS = [[RNG.integers(0, 6, 4).tolist() for _ in range(4)] for _ in range(32)]
OPTIONS = DecodeOptions(max_new_tokens=MOST, stops=STOPS, questions_per_batch=len(PROMPTS))


@pytest.fixture(scope="module")
def answers(params):
    """The candidates of all questions, each under four chunks."""
    with jax.enable_x64(True):
        return answer_questions(MODULE, params, PROMPTS, [WEIGHTS] * len(PROMPTS), OPTIONS)


def test_the_probabilities_of_all_answers_sum_to_one(params):
    every, prompts = outcomes(), PROMPTS[0]
    assert len(set(every)) == len(every) == 13 + 27 + 2 * 13
    expected = np.exp(
        np.array([[slow_log_prob(params, prompt, answer) for answer in every] for prompt in prompts])
    )
    np.testing.assert_allclose(expected.sum(axis=1), 1, atol=1e-9)
    packed = pack_answers([every] * len(prompts), STOPS, max_new_tokens=MOST, num_answers=len(every))
    scored = np.asarray(scores(params, jnp.array(prompts), jnp.full(4, 4), packed))
    assert_exact(np.exp(scored), expected)
    np.testing.assert_allclose(np.exp(scored).sum(axis=1), 1, atol=1e-9)


def test_texts_have_the_sum_of_their_tokenisations_in_the_mixture(params, answers):
    """Of all answers the probabilities sum to one text by text; of the candidates they are what is told."""
    every, several = outcomes(), 0
    for prompts, candidates in zip(PROMPTS, answers, strict=True):
        each = [[slow_log_prob(params, prompt, answer) for prompt in prompts] for answer in every]
        log_mixed = np.asarray(logsumexp(np.array(each) + WEIGHTS, axis=1))
        mixed = dict(zip(every, np.exp(log_mixed).tolist(), strict=True))
        assert sum(text_sums(mixed, every).values()) == pytest.approx(1, abs=1e-9)
        tokens = [candidate.tokens for candidate in candidates]
        assert set(tokens) == {slow_greedy(params, prompt) for prompt in prompts}
        told = merge_equal_texts(candidates, read)
        sums = text_sums(mixed, tokens)
        probabilities = {answer.text: answer.probability for answer in told}
        assert set(probabilities) == set(sums)
        assert_stored([np.log(probabilities[text]) for text in sums], np.log([*sums.values()]))
        assert told == sorted(told, key=lambda answer: -answer.probability)
        several += len(told) < len(candidates)
    assert several > 0


def text_sums(probabilities, answers):
    sums = {}
    for answer in answers:
        sums[read(answer)] = sums.get(read(answer), 0.0) + probabilities[answer]
    return sums


def test_a_candidate_knows_of_how_many_tokens_it_has_the_probability(answers):
    seen = set()
    for candidate in itertools.chain.from_iterable(answers):
        ended_by_itself = len(candidate.tokens) == MOST or candidate.tokens[-1:] in ((2,), (5,))
        assert candidate.num_tokens == len(candidate.tokens) + (not ended_by_itself)
        seen.add((len(candidate.tokens), candidate.num_tokens))
    assert {(0, 1), (1, 1), (2, 2), (2, 3), (3, 3)} <= seen


def test_token_by_token_an_answer_ends_with_its_closing_piece(params):
    """Each has Eq. 2's probability of what was generated, and some end so."""
    weights, closed = [WEIGHTS] * len(PROMPTS), 0
    answers = answer_questions_by_token(MODULE, params, PROMPTS, weights, OPTIONS)
    for by_chunk, [candidate] in zip(PROMPTS, answers, strict=True):
        each = [slow_log_prob(params, prompt, candidate.tokens) for prompt in by_chunk]
        assert_stored(candidate.log_prob, logsumexp(each + WEIGHTS))
        closed += candidate.tokens[-1:] in ((2,), (5,))
        assert not set(candidate.tokens[:-1]) & set(STOPS.closing)
    assert closed > 2


def test_what_a_model_would_say_after_the_newline_decides_nothing(params, answers):
    """Chunks that agree on an answer and not on what follows it win: otherwise another's would."""
    changed = 0
    for prompts, candidates in zip(PROMPTS, answers, strict=True):
        going_on = {slow_greedy(params, prompt, closing=()) for prompt in prompts}
        mixed = {
            answer: logsumexp([slow_log_prob(params, prompt, answer) for prompt in prompts] + WEIGHTS)
            for answer in going_on
        }
        changed += read(max(mixed, key=mixed.__getitem__)) != merge_equal_texts(candidates, read)[0].text
    assert changed > 0
