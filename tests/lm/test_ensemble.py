import itertools

import numpy as np
import pytest
from exact import assert_stored
from scipy.special import logsumexp
from uncached import (
    ENDS,
    MODULE,
    MODULES,
    PROMPTS,
    STOPS,
    next_log_probs,
    sharp_params,
    slow_greedy,
    slow_log_prob,
)

from radit_jax.config import MeshConfig
from radit_jax.lm import answer_rows, ensemble, prefix_sharing
from radit_jax.lm.ensemble import DecodeOptions, answer_questions, answer_questions_by_token
from radit_jax.lm.prefix_sharing import (
    DevicePlacement,
    Prompt,
    split_shared_prefixes,
)
from radit_jax.method.answer_scoring import NOTHING, score_answers
from radit_jax.method.generation import (
    decode_steps,
    prefill_shared,
)
from radit_jax.runtime.distributed.mesh import (
    batch_placer,
    data_parallel_size,
    gather,
    make_mesh,
    put_params,
    row_layout,
)

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(scope="module")
def params():
    return sharp_params()


@pytest.fixture
def short_prefixes(monkeypatch):
    """Prompts as short as those of these tests share what they begin with."""
    monkeypatch.setattr(prefix_sharing, "MAX_WHOLE_PROMPT", 0)


def brute_force(params, prompts, weights, max_new_tokens):
    answers: dict[tuple[int, ...], float] = {}
    for answer in dict.fromkeys(slow_greedy(params, prompt, max_new_tokens) for prompt in prompts):
        log_probs = [slow_log_prob(params, prompt, answer, max_new_tokens) for prompt in prompts]
        answers[answer] = float(np.asarray(logsumexp(np.array(log_probs) + weights)))
    return sorted(answers.items(), key=lambda item: -item[1])


def test_answers_are_ranked_by_equation_2(params):
    """Three questions in batches of two, with 3, 1 and 2 chunks, against sums in float64."""
    prompts = [PROMPTS[:3], PROMPTS[3:], [PROMPTS[2], PROMPTS[0]]]
    weights = [np.log([0.2, 0.5, 0.3]), np.log([1.0]), np.log([0.6, 0.4])]
    options = DecodeOptions(max_new_tokens=5, stops=ENDS, questions_per_batch=2)
    answers = answer_questions(MODULE, params, prompts, weights, options)
    for got, chunks, weight in zip(answers, prompts, weights, strict=True):
        expected = brute_force(params, chunks, weight, 5)
        assert [candidate.tokens for candidate in got] == [answer for answer, _ in expected]
        assert_stored([c.log_prob for c in got], [value for _, value in expected])


def test_neither_the_order_of_chunks_nor_another_question_changes_an_answer(params):
    weights = np.log([0.1, 0.2, 0.3, 0.4])
    options = DecodeOptions(max_new_tokens=5, stops=ENDS, questions_per_batch=2)
    (there,) = answer_questions(MODULE, params, [PROMPTS], [weights], options)
    back, other = answer_questions(
        MODULE, params, [PROMPTS[::-1], PROMPTS[:1]], [weights[::-1], [0.0]], options
    )
    assert [candidate.tokens for candidate in there] == [candidate.tokens for candidate in back]
    assert_stored([c.log_prob for c in there], [c.log_prob for c in back])
    assert len(other) == 1


def test_no_questions_have_no_answers_and_a_question_needs_a_prompt(params):
    options = DecodeOptions(max_new_tokens=5, stops=ENDS)
    assert answer_questions(MODULE, params, [], [], options) == []
    with pytest.raises(
        ValueError,
        match="answer_questions: expected a prompt .* got question 0 with none or an empty one. Ask",
    ):
        answer_questions(MODULE, params, [[]], [[]], options)


# ---- what is scored ----


def test_an_answer_is_not_scored_again_after_the_prompts_that_led_to_it(params, monkeypatch):
    """Of 4 chunks with u answers, 4 (u − 1) pairs are left."""
    scored = []

    def spy(module, params, prefilled, prompts, answers, **named):
        scored.append(int((answers.first_targets != NOTHING).sum()))
        return score_answers(module, params, prefilled, prompts, answers, **named)

    monkeypatch.setattr(ensemble, "score_answers", spy)
    options = DecodeOptions(max_new_tokens=5, stops=ENDS)
    [candidates] = answer_questions(MODULE, params, [PROMPTS], [np.log(np.full(4, 0.25))], options)
    assert len(candidates) > 1
    assert sum(scored) == 4 * (len(candidates) - 1)
    for candidate in candidates:
        expected = [slow_log_prob(params, prompt, candidate.tokens, 5) for prompt in PROMPTS]
        assert_stored(candidate.log_probs, expected)


def test_chunks_that_agree_have_nothing_scored(params, monkeypatch):
    monkeypatch.setattr(ensemble, "score_answers", None)
    options = DecodeOptions(max_new_tokens=5, stops=ENDS)
    weights = np.log([0.2, 0.5, 0.3])
    [[candidate]] = answer_questions(MODULE, params, [[PROMPTS[0]] * 3], [weights], options)
    assert_stored(candidate.log_prob, slow_log_prob(params, PROMPTS[0], candidate.tokens, 5))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_answers_do_not_depend_on_the_rows_that_candidates_lie_in(monkeypatch, family):
    """One prompt's candidates in many rows, few rows at a time, also where a window is short."""
    module = MODULES[family]
    params = sharp_params(module)
    prompts = sharing_prompts(np.random.default_rng(3))
    weights = np.log(np.tile([0.5, 0.3, 0.2], (len(prompts), 1)))
    options = DecodeOptions(max_new_tokens=5, stops=ENDS, questions_per_batch=4)
    together = answer_questions(module, params, prompts, weights, options)
    assert max(map(len, together)) == 3
    monkeypatch.setattr(answer_rows, "SLOT_UNIT", 1)
    monkeypatch.setattr(answer_rows, "ROWS_PER_SCORING", 3)
    apart = answer_questions(module, params, prompts, weights, options)
    for one, other in zip(together, apart, strict=True):
        assert [candidate.tokens for candidate in one] == [candidate.tokens for candidate in other]
        assert_stored([c.log_probs for c in one], [c.log_probs for c in other])


@pytest.fixture(scope="module")
def outcomes():
    """Every generation of at most 3 of the 4 tokens that are no stop: 1 + 4 + 16 ended, 64 cut off."""
    return [answer for length in range(4) for answer in itertools.product((0, 3, 4, 5), repeat=length)]


# ---- both readings of Eq. 2, by enumeration ----


def enumerated(params, prompts, weights, outcomes):
    """The probability of every outcome: Σ_c p_R(c) Π_t p(y_t | c, y_<t), in float64."""
    each = [[slow_log_prob(params, prompt, outcome, 3) for prompt in prompts] for outcome in outcomes]
    return dict(
        zip(outcomes, np.exp(np.asarray(logsumexp(np.array(each) + weights, axis=1))).tolist(), strict=True)
    )


def slow_mixture(params, prompts, weights, max_new_tokens):
    """Token by token: the argmax of Σ_c w_c,t p(y_t | c, y_<t), and the product of those probabilities."""
    answer, posterior, total = (), np.array(weights, np.float64), 1.0
    while len(answer) < max_new_tokens:
        each = np.stack([next_log_probs(params, prompt + list(answer)) for prompt in prompts])
        mixed = np.exp(posterior) @ np.exp(each)
        token = int(mixed.argmax())
        if token in STOPS:
            return answer, total * mixed[list(STOPS)].sum()
        total *= mixed[token]
        posterior = posterior + each[:, token]
        posterior -= np.asarray(logsumexp(posterior))
        answer += (token,)
    return answer, total


MIXTURES = [
    (PROMPTS[:3], np.log([0.2, 0.5, 0.3])),
    (PROMPTS[3:], np.log([1.0])),
    ([PROMPTS[2], PROMPTS[0]], np.log([0.6, 0.4])),
    (PROMPTS, np.log([0.1, 0.2, 0.3, 0.4])),
]


def test_both_readings_give_an_answer_its_enumerated_probability(params, outcomes):
    prompts, weights = zip(*MIXTURES, strict=True)
    options = DecodeOptions(max_new_tokens=3, stops=ENDS, questions_per_batch=3)
    by_answer = answer_questions(MODULE, params, prompts, weights, options)
    by_token = answer_questions_by_token(MODULE, params, prompts, weights, options)
    for number, (by_chunk, weight) in enumerate(MIXTURES):
        probability = enumerated(params, by_chunk, weight, outcomes)
        assert sum(probability.values()) == pytest.approx(1, abs=1e-9)
        for candidate in (*by_answer[number], *by_token[number]):
            assert_stored(candidate.log_prob, np.log(probability[candidate.tokens]))
            alone = [slow_log_prob(params, prompt, candidate.tokens, 3) for prompt in by_chunk]
            assert_stored(candidate.log_probs, alone)
        tokens, product = slow_mixture(params, by_chunk, weight, 3)
        [candidate] = by_token[number]
        assert candidate.tokens == tokens
        assert_stored(candidate.log_prob, np.log(product))


def test_an_answer_of_the_mixture_can_be_one_that_no_chunk_alone_leads_to(params):
    """Of 60 random mixtures of two prompts some agree on what is nobody's first choice."""
    rng, new = np.random.default_rng(1), 0
    prompts = [[rng.integers(0, 6, 4).tolist() for _ in range(2)] for _ in range(60)]
    weights = np.log(np.full((60, 2), 0.5))
    options = DecodeOptions(max_new_tokens=3, stops=ENDS)
    for by_chunk, [candidate] in zip(
        prompts, answer_questions_by_token(MODULE, params, prompts, weights, options), strict=True
    ):
        alone = {slow_greedy(params, prompt, 3) for prompt in by_chunk}
        assert candidate.tokens == slow_mixture(params, by_chunk, np.log([0.5, 0.5]), 3)[0]
        new += candidate.tokens not in alone
    assert new > 0


def test_dropping_what_has_stopped_changes_no_answer_and_shrinks_the_batch(params, monkeypatch):
    rng = np.random.default_rng(3)
    prompts = [[rng.integers(0, 6, length).tolist() for length in (5, 6)] for _ in range(16)]
    weights = np.log(np.tile([0.7, 0.3], (16, 1)))
    options = DecodeOptions(max_new_tokens=12, stops=ENDS)

    def answers():
        return [
            *answer_questions(MODULE, params, prompts, weights, options),
            *answer_questions_by_token(MODULE, params, prompts, weights, options),
        ]

    monkeypatch.setattr(ensemble, "STEPS_PER_CALL", 12)
    whole = answers()
    sizes = []

    def advance(module, params, state, *rest, **named):
        sizes.append(len(state.done))
        return original(module, params, state, *rest, **named)

    original = decode_steps
    monkeypatch.setattr(ensemble, "decode_steps", advance)
    monkeypatch.setattr(ensemble, "STEPS_PER_CALL", 2)
    for before, after in zip(whole, answers(), strict=True):
        assert [candidate.tokens for candidate in before] == [candidate.tokens for candidate in after]
        assert_stored([c.log_prob for c in before], [c.log_prob for c in after])
    assert min(sizes) < max(sizes)
    assert any(len(candidate.tokens) == 12 for candidates in whole for candidate in candidates)


# ---- what prompts begin with alike ----


def sharing_prompts(rng, num_questions=6):
    """Questions after three of five chunks each; some chunks are the beginning of another one."""
    chunks = [rng.integers(0, 6, length).tolist() for length in (7, 9, 12)]
    chunks += [chunks[2][:8], chunks[1]]
    questions = [rng.integers(0, 6, length).tolist() for length in rng.integers(1, 5, num_questions)]
    retrieved = [rng.choice(5, 3, replace=False) for _ in questions]
    return [[chunks[c] + question for c in rows] for rows, question in zip(retrieved, questions, strict=True)]


@pytest.mark.parametrize(
    ("family", "seed"), [("llama", 0), ("llama", 1), ("llama", 2), ("gemma3", 0), ("gemma3", 1)]
)
def test_sharing_what_prompts_begin_with_changes_no_number(short_prefixes, monkeypatch, family, seed):
    """Also where a window is shorter than what is shared."""
    module = MODULES[family]
    params = sharp_params(module)
    prompts = sharing_prompts(np.random.default_rng(seed))
    weights = np.log(np.tile([0.5, 0.3, 0.2], (len(prompts), 1)))
    options = DecodeOptions(max_new_tokens=4, stops=ENDS, questions_per_batch=3)

    def answers():
        by_answer = answer_questions(module, params, prompts, weights, options)
        return [*by_answer, *answer_questions_by_token(module, params, prompts, weights, options)]

    together = answers()
    cut = split_shared_prefixes([prompt for by_chunk in prompts[:3] for prompt in by_chunk])
    assert len({prompt.prefix for prompt in cut}) < len(cut)
    monkeypatch.setattr(
        ensemble, "split_shared_prefixes", lambda texts: [Prompt((), tuple(t)) for t in texts]
    )
    for shared, apart in zip(together, answers(), strict=True):
        assert [candidate.tokens for candidate in shared] == [candidate.tokens for candidate in apart]
        assert_stored([c.log_prob for c in shared], [c.log_prob for c in apart])


def test_a_chunk_that_three_questions_share_is_read_once(params, short_prefixes, monkeypatch):
    long = [[3] * 9 + [4], [5] * 9 + [0]]
    prompts = [[chunk + question for chunk in long] for question in ([3, 4], [5], [0, 0, 3])]
    seen = []

    def read(module, params, prefixes, prefix_of, suffixes):
        seen.append((prefixes.lengths.tolist(), prefix_of.tolist(), suffixes.lengths.tolist()))
        return original(module, params, prefixes, prefix_of, suffixes)

    original = prefill_shared
    monkeypatch.setattr(ensemble, "prefill_shared", read)
    weights = np.log(np.full((3, 2), 0.5))
    options = DecodeOptions(max_new_tokens=2, stops=ENDS, questions_per_batch=3)
    answer_questions(MODULE, params, prompts, weights, options)
    [(lengths, prefix_of, suffixes)] = seen
    assert lengths == [10, 10]
    assert prefix_of == [[0, 0, 0, 1, 1, 1]]
    assert sorted(suffixes) == [1, 1, 2, 2, 3, 3]


def on_eight_devices(network, params, **sizes):
    """The network with its rows pinned, parameters and placement, on a mesh of eight."""
    mesh = make_mesh(MeshConfig(tensor=2, **sizes))
    laid = put_params(params, mesh)
    return (
        network.clone(layout=row_layout(mesh)),
        laid,
        DevicePlacement(batch_placer(laid), gather, data_parallel_size(mesh)),
    )


WHOLE, CUT = {"replica": 4, "fsdp": 1}, {"fsdp": 4}  # layouts: copies, and that of training
NETWORKS = (("llama", 0), ("gemma3", 1))
ON_EIGHT = list(itertools.product(NETWORKS, (WHOLE, CUT), (answer_questions, answer_questions_by_token)))
QUICK = ((NETWORKS[0], WHOLE, answer_questions), (NETWORKS[1], CUT, answer_questions_by_token))


@pytest.mark.parametrize(
    ("network", "sizes", "answer"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in ON_EIGHT],
)
def test_eight_devices_answer_as_one_does(short_prefixes, monkeypatch, network, sizes, answer):
    """In whole copies and in the layout of training, also where answers leave the batch.

    Each device drops those that it has.
    """
    family, seed = network
    network = MODULES[family]
    params = sharp_params(network)
    prompts = sharing_prompts(np.random.default_rng(seed), num_questions=11)
    weights = np.log(np.tile([0.5, 0.3, 0.2], (len(prompts), 1)))
    options = DecodeOptions(max_new_tokens=6, stops=ENDS, questions_per_batch=10)
    module, laid, placement = on_eight_devices(network, params, **sizes)
    monkeypatch.setattr(ensemble, "STEPS_PER_CALL", 2)
    alone = answer(network, params, prompts, weights, options)
    spread = answer(module, laid, prompts, weights, options._replace(placement=placement))
    for one, eight in zip(alone, spread, strict=True):
        assert [candidate.tokens for candidate in one] == [candidate.tokens for candidate in eight]
        assert_stored([c.log_prob for c in one], [c.log_prob for c in eight])
