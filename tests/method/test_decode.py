import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import EXACT, assert_exact, assert_stored, in_float64, torch_in_float64
from scipy.special import logsumexp

from radit_jax.config import LlamaConfig, MeshConfig
from radit_jax.method import decode
from radit_jax.method.decode import (
    answer_log_probs,
    answer_questions,
    answer_questions_by_token,
    greedy,
    pack_answers,
    prefill,
    split_shared_prefixes,
)
from radit_jax.models.llama import Llama
from radit_jax.runtime.distributed.mesh import (
    batch_placer,
    data_parallel_size,
    gather,
    make_mesh,
    put_params,
    row_layout,
)
from radit_jax.runtime.pretrained.hf_weights import load_llama

STOPS = (1, 2)
ENDS = decode.Stops(STOPS)
MODULE = Llama(
    LlamaConfig(
        vocab_size=6, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_size=8, ffn_size=24
    ),
    dtype=jnp.float64,
)
pytestmark = pytest.mark.usefixtures("float64")
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, 6, length).tolist() for length in (5, 3, 7, 4)]


@pytest.fixture(scope="module")
def params():
    with jax.enable_x64(False):
        params = jax.jit(Llama(MODULE.config).init)(jax.random.key(2), jnp.zeros((1, 4), jnp.int32))["params"]
    return in_float64(jax.tree.map(lambda x: 25 * x if x.ndim > 1 else x, params))


@pytest.fixture
def short_prefixs(monkeypatch):
    """Prompts as short as those of these tests share what they begin with."""
    monkeypatch.setattr(decode, "SHARED", 1)


_known: dict[tuple[int, ...], np.ndarray] = {}  # by parameters, which live as long as the tests, and tokens
_logits = jax.jit(lambda params, tokens: MODULE.apply({"params": params}, tokens))


def next_log_probs(params, tokens: list[int]) -> np.ndarray:
    """The log-probabilities of what follows `tokens`, by one uncached pass over a padded row."""
    if (key := (id(params), *tokens)) not in _known:
        row = jnp.array([tokens + [0] * (24 - len(tokens))], jnp.int32)
        logits = np.asarray(_logits(params, row)[0, len(tokens) - 1])
        _known[key] = logits - logsumexp(logits)
    return _known[key]


def slow_greedy(params, prompt: list[int], max_new_tokens: int) -> tuple[int, ...]:
    answer = ()
    while len(answer) < max_new_tokens:
        token = int(next_log_probs(params, prompt + list(answer)).argmax())
        if token in STOPS:
            break
        answer += (token,)
    return answer


def slow_log_prob(params, prompt: list[int], answer: tuple[int, ...], max_new_tokens: int) -> float:
    total = sum(next_log_probs(params, prompt + list(answer[:i]))[token] for i, token in enumerate(answer))
    if len(answer) < max_new_tokens:
        total += logsumexp(next_log_probs(params, prompt + list(answer))[list(STOPS)])
    return float(total)


def padded(prompts):
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    rows = np.zeros((len(prompts), lengths.max() + 2), np.int32)
    for row, prompt in zip(rows, prompts, strict=True):
        row[: len(prompt)] = prompt
    return jnp.asarray(rows), jnp.asarray(lengths)


@jax.jit
def scores(params, rows, lengths, packed):
    return answer_log_probs(MODULE, params, prefill(MODULE, params, rows, lengths), packed, stops=ENDS)


def fast_log_probs(params, prompts, answers, max_new_tokens) -> np.ndarray:
    packed = pack_answers(answers, ENDS, max_new_tokens=max_new_tokens, num_answers=max(map(len, answers)))
    return np.asarray(scores(params, *padded(prompts), packed))


def test_generation_is_the_argmax_of_uncached_passes_and_ends_at_a_stop(params):
    rows, lengths = padded(PROMPTS)
    generated = np.asarray(greedy(MODULE, params, rows, lengths, max_new_tokens=6, stop_ids=STOPS))
    answers = [slow_greedy(params, prompt, 6) for prompt in PROMPTS]
    assert len({len(answer) for answer in answers}) > 1  # the rows stop at different times
    for row, answer in zip(generated.tolist(), answers, strict=True):
        assert tuple(row[: len(answer)]) == answer
        assert set(row[len(answer) : len(answer) + 1]) <= set(STOPS)
        assert set(row[len(answer) + 1 :]) <= {STOPS[0]}


def test_generation_is_transformers_own_on_the_same_checkpoint(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig as HfConfig
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    hf = LlamaForCausalLM(
        HfConfig(vocab_size=50, intermediate_size=48, initializer_range=0.3, **shape)
    ).eval()
    hf.save_pretrained(tmp_path)
    config, loaded = load_llama(tmp_path)
    prompts = [RNG.integers(3, 50, length).tolist() for length in (9, 4, 6)]
    module = Llama(config, dtype=jnp.float64)
    found = greedy(module, in_float64(loaded), *padded(prompts), max_new_tokens=12, stop_ids=())
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for prompt, row in zip(prompts, found.tolist(), strict=True):
        ids = torch.tensor([prompt])
        with torch_in_float64():
            wanted = hf.double().generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert row == wanted[0, len(prompt) :].tolist()


def test_generation_of_one_token_reads_only_the_prompt(params):
    rows, lengths = padded(PROMPTS)
    generated = greedy(MODULE, params, rows, lengths, max_new_tokens=1, stop_ids=STOPS)
    expected = [[next_log_probs(params, prompt).argmax()] for prompt in PROMPTS]
    np.testing.assert_array_equal(generated, expected)


def test_without_stop_ids_a_generation_has_its_full_length(params):
    rows, lengths = padded(PROMPTS[:2])
    generated = np.asarray(greedy(MODULE, params, rows, lengths, max_new_tokens=4, stop_ids=()))
    for prompt, row in zip(PROMPTS, generated.tolist(), strict=False):
        for step, token in enumerate(row):
            assert token == next_log_probs(params, prompt + row[:step]).argmax()


def test_answers_as_continuations_of_a_cache_score_as_separate_sequences(params):
    answers = [[(3, 4), (), (5, 5, 3, 0)], [(0,)], [(3,), (4, 3, 5)], [(4,)]]
    got = fast_log_probs(params, PROMPTS, answers, max_new_tokens=4)
    for row, (prompt, group) in enumerate(zip(PROMPTS, answers, strict=True)):
        expected = [slow_log_prob(params, prompt, answer, 4) for answer in group]
        assert_exact(got[row, : len(group)], np.array(expected))
        assert (got[row, len(group) :] == 0).all()


@pytest.fixture(scope="module")
def outcomes():
    """Every generation of at most 3 of the 4 tokens that are no stop: 1 + 4 + 16 ended, 64 cut off."""
    return [answer for length in range(4) for answer in itertools.product((0, 3, 4, 5), repeat=length)]


def test_the_probabilities_of_all_answers_sum_to_one(params, outcomes):
    log_probs = fast_log_probs(params, PROMPTS[:2], [outcomes] * 2, max_new_tokens=3)
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1.0, rtol=EXACT)


def test_a_longer_answer_can_beat_its_own_beginning(params, outcomes):
    """Without the terminator `New` would always beat `New York`."""
    log_probs = fast_log_probs(params, PROMPTS[:1], [outcomes], max_new_tokens=3)[0]
    score = dict(zip(outcomes, log_probs.tolist(), strict=True))
    assert any(score[answer] > score[answer[:-1]] for answer in outcomes if answer)
    assert any(score[answer] < score[answer[:-1]] for answer in outcomes if answer)


def brute_force(params, prompts, weights, max_new_tokens):
    answers = dict.fromkeys(slow_greedy(params, prompt, max_new_tokens) for prompt in prompts)
    for answer in answers:
        log_probs = [slow_log_prob(params, prompt, answer, max_new_tokens) for prompt in prompts]
        answers[answer] = logsumexp(np.array(log_probs) + weights)
    return sorted(answers.items(), key=lambda item: -item[1])


def test_answers_are_ranked_by_equation_2(params):
    """Three questions in batches of two, with 3, 1 and 2 chunks, against sums in float64."""
    prompts = [PROMPTS[:3], PROMPTS[3:], [PROMPTS[2], PROMPTS[0]]]
    weights = [np.log([0.2, 0.5, 0.3]), np.log([1.0]), np.log([0.6, 0.4])]
    answers = answer_questions(
        MODULE, params, prompts, weights, max_new_tokens=5, stops=ENDS, questions_per_batch=2
    )
    for got, chunks, weight in zip(answers, prompts, weights, strict=True):
        expected = brute_force(params, chunks, weight, 5)
        assert [candidate.tokens for candidate in got] == [answer for answer, _ in expected]
        assert_stored([c.log_prob for c in got], [value for _, value in expected])


def test_neither_the_order_of_chunks_nor_another_question_changes_an_answer(params):
    weights = np.log([0.1, 0.2, 0.3, 0.4])
    options = {"max_new_tokens": 5, "stops": ENDS}
    (there,) = answer_questions(MODULE, params, [PROMPTS], [weights], **options, questions_per_batch=2)
    back, other = answer_questions(
        MODULE, params, [PROMPTS[::-1], PROMPTS[:1]], [weights[::-1], [0.0]], **options, questions_per_batch=2
    )
    assert [candidate.tokens for candidate in there] == [candidate.tokens for candidate in back]
    assert_stored([c.log_prob for c in there], [c.log_prob for c in back])
    assert len(other) == 1


def test_no_questions_have_no_answers_and_a_question_needs_a_prompt(params):
    options = {"max_new_tokens": 5, "stops": ENDS}
    assert answer_questions(MODULE, params, [], [], **options) == []
    with pytest.raises(ValueError, match="answer_questions: question 0 has no prompt or an empty one; ask"):
        answer_questions(MODULE, params, [[]], [[]], **options)


# ---- both readings of Eq. 2, by enumeration ----


def enumerated(params, prompts, weights, outcomes):
    """The probability of every outcome: Σ_c p_R(c) Π_t p(y_t | c, y_<t), in float64."""
    each = [[slow_log_prob(params, prompt, outcome, 3) for prompt in prompts] for outcome in outcomes]
    return dict(zip(outcomes, np.exp(logsumexp(np.array(each) + weights, axis=1)).tolist(), strict=True))


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
        posterior -= logsumexp(posterior)
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
    options = {"max_new_tokens": 3, "stops": ENDS, "questions_per_batch": 3}
    by_answer = answer_questions(MODULE, params, prompts, weights, **options)
    by_token = answer_questions_by_token(MODULE, params, prompts, weights, **options)
    for number, (own, weight) in enumerate(MIXTURES):
        probability = enumerated(params, own, weight, outcomes)
        assert sum(probability.values()) == pytest.approx(1, abs=1e-9)
        for candidate in (*by_answer[number], *by_token[number]):
            assert_stored(candidate.log_prob, np.log(probability[candidate.tokens]))
        wanted, product = slow_mixture(params, own, weight, 3)
        [found] = by_token[number]
        assert found.tokens == wanted
        assert_stored(found.log_prob, np.log(product))


def test_an_answer_of_the_mixture_can_be_one_that_no_chunk_alone_leads_to(params):
    """Of 60 random mixtures of two prompts some agree on what is nobody's first choice."""
    rng, new = np.random.default_rng(1), 0
    prompts = [[rng.integers(0, 6, 4).tolist() for _ in range(2)] for _ in range(60)]
    weights = np.log(np.full((60, 2), 0.5))
    options = {"max_new_tokens": 3, "stops": ENDS}
    for own, [found] in zip(
        prompts, answer_questions_by_token(MODULE, params, prompts, weights, **options), strict=True
    ):
        alone = {slow_greedy(params, prompt, 3) for prompt in own}
        assert found.tokens == slow_mixture(params, own, np.log([0.5, 0.5]), 3)[0]
        new += found.tokens not in alone
    assert new > 0


def test_dropping_what_has_stopped_changes_no_answer_and_shrinks_the_batch(params, monkeypatch):
    rng = np.random.default_rng(3)
    prompts = [[rng.integers(0, 6, length).tolist() for length in (5, 6)] for _ in range(16)]
    weights = np.log(np.tile([0.7, 0.3], (16, 1)))
    options = {"max_new_tokens": 12, "stops": ENDS}

    def answers():
        return [
            *answer_questions(MODULE, params, prompts, weights, **options),
            *answer_questions_by_token(MODULE, params, prompts, weights, **options),
        ]

    monkeypatch.setattr(decode, "STEPS", 12)
    whole = answers()
    sizes = []

    def advance(module, params, state, *rest, **named):
        sizes.append(len(state.done))
        return original(module, params, state, *rest, **named)

    original = decode.decode_steps
    monkeypatch.setattr(decode, "decode_steps", advance)
    monkeypatch.setattr(decode, "STEPS", 2)
    for before, after in zip(whole, answers(), strict=True):
        assert [candidate.tokens for candidate in before] == [candidate.tokens for candidate in after]
        assert_stored([c.log_prob for c in before], [c.log_prob for c in after])
    assert min(sizes) < max(sizes)
    assert any(len(candidate.tokens) == 12 for own in whole for candidate in own)


# ---- what prompts begin with alike ----


def sharing_prompts(rng, num_questions=6):
    """Questions behind three chunks of five each, some of which are another's beginning."""
    chunks = [rng.integers(0, 6, length).tolist() for length in (7, 9, 12)]
    chunks += [chunks[2][:8], chunks[1]]
    questions = [rng.integers(0, 6, length).tolist() for length in rng.integers(1, 5, num_questions)]
    own = [rng.choice(5, 3, replace=False) for _ in questions]
    return [[chunks[c] + question for c in rows] for rows, question in zip(own, questions, strict=True)]


@pytest.mark.parametrize("seed", range(4))
def test_sharing_what_prompts_begin_with_changes_no_number(params, short_prefixs, monkeypatch, seed):
    prompts = sharing_prompts(np.random.default_rng(seed))
    weights = np.log(np.tile([0.5, 0.3, 0.2], (len(prompts), 1)))
    options = {"max_new_tokens": 4, "stops": ENDS, "questions_per_batch": 3}

    def answers():
        by_answer = answer_questions(MODULE, params, prompts, weights, **options)
        return [*by_answer, *answer_questions_by_token(MODULE, params, prompts, weights, **options)]

    together = answers()
    cut = split_shared_prefixes([prompt for own in prompts[:3] for prompt in own])
    assert len({prompt.prefix for prompt in cut}) < len(cut)
    monkeypatch.setattr(
        decode, "split_shared_prefixes", lambda texts: [decode.Prompt((), tuple(t)) for t in texts]
    )
    for shared, apart in zip(together, answers(), strict=True):
        assert [candidate.tokens for candidate in shared] == [candidate.tokens for candidate in apart]
        assert_stored([c.log_prob for c in shared], [c.log_prob for c in apart])


def test_a_chunk_that_three_questions_share_is_read_once(params, short_prefixs, monkeypatch):
    long = [[3] * 9 + [4], [5] * 9 + [0]]
    prompts = [[chunk + question for chunk in long] for question in ([3, 4], [5], [0, 0, 3])]
    seen = []

    def read(module, params, prefixes, prefix_of, tails):
        seen.append((prefixes.lengths.tolist(), prefix_of.tolist(), tails.lengths.tolist()))
        return original(module, params, prefixes, prefix_of, tails)

    original = decode.prefill_shared
    monkeypatch.setattr(decode, "prefill_shared", read)
    weights = np.log(np.full((3, 2), 0.5))
    answer_questions(MODULE, params, prompts, weights, max_new_tokens=2, stops=ENDS, questions_per_batch=3)
    [(lengths, prefix_of, tails)] = seen
    assert lengths == [10, 10]
    assert prefix_of == [[0, 0, 0, 1, 1, 1]]
    assert sorted(tails) == [1, 1, 2, 2, 3, 3]


def on_eight_devices(params):
    """The network with its rows pinned, parameters and transfer, on a mesh of eight."""
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    laid = put_params(params, mesh)
    return (
        MODULE.clone(layout=row_layout(mesh)),
        laid,
        decode.DevicePlacement(batch_placer(laid), gather, data_parallel_size(mesh)),
    )


@pytest.mark.parametrize("seed", range(2))
def test_eight_devices_answer_as_one_does(params, short_prefixs, monkeypatch, seed):
    """Also where answers leave the batch, of which each device drops its own."""
    prompts = sharing_prompts(np.random.default_rng(seed), num_questions=11)
    weights = np.log(np.tile([0.5, 0.3, 0.2], (len(prompts), 1)))
    options = {"max_new_tokens": 6, "stops": ENDS, "questions_per_batch": 10}
    module, laid, transfer = on_eight_devices(params)
    monkeypatch.setattr(decode, "STEPS", 2)
    for answer in (answer_questions, answer_questions_by_token):
        alone = answer(MODULE, params, prompts, weights, **options)
        spread = answer(module, laid, prompts, weights, **options, transfer=transfer)
        for one, eight in zip(alone, spread, strict=True):
            assert [candidate.tokens for candidate in one] == [candidate.tokens for candidate in eight]
            assert_stored([c.log_prob for c in one], [c.log_prob for c in eight])


def test_what_is_read_stays_with_its_rows_when_prefixs_are_shared_and_answers_dropped(params):
    """A gather of any row from anywhere would bring every prompt's keys and values to every device."""
    module, laid, transfer = on_eight_devices(params)
    prompts = [[n // 4] * 40 + [3, n % 4] for n in range(16)]  # four share a prefix, and a device
    reading = decode.build_prefill_batch(split_shared_prefixes(prompts), transfer)
    assert len(reading.prefixes.lengths) == 4
    np.testing.assert_array_equal(reading.prefix_of, np.zeros((4, 4)))
    prefilled = decode.prefill_shared(module, laid, *reading)
    own = {shard.data.shape[1] for shard in prefilled.cache.keys.addressable_shards}
    assert own == {4}
    state = decode.init_decode(prefilled, np.zeros((16, 1)), max_new_tokens=4, stops=ENDS)
    kept = decode._gather_answers(state, np.zeros((4, 1), np.int32))
    np.testing.assert_array_equal(kept.tokens, state.tokens[::4])
    read = decode.prefill_shared.lower(module, laid, *reading).compile().as_text()
    keep = decode._gather_answers.lower(state, np.zeros((4, 1), np.int32)).compile().as_text()
    assert "f64[2,4,96,1," in read  # two layers, four prompts, 64 slots and 32
    assert not re.search(r"\[(2,)?16,\d+,1,\d+\]", read) and "all-gather" not in keep


def test_a_beginning_of_few_tokens_is_read_with_each_prompt():
    questions = [[1] * (decode.SHARED - 1) + [n] for n in range(8)]
    assert all(prompt.prefix == () for prompt in split_shared_prefixes(questions))
    longer = [[1] * decode.SHARED + [n] for n in range(8)]
    assert {prompt.prefix for prompt in split_shared_prefixes(longer)} == {(1,) * decode.SHARED}


def test_equal_prompts_keep_a_token_each(short_prefixs):
    assert split_shared_prefixes([[3, 4, 5]] * 2) == [((3, 4), (5,))] * 2


@pytest.mark.parametrize("seed", range(20))
def test_cut_prompts_are_whole_and_a_shared_prefix_is_at_least_half_of_each(seed, short_prefixs):
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, 2, rng.integers(1, 60)).tolist() for _ in range(12)]
    texts += [texts[0] + [1], texts[1] + [0, 1], texts[1]]
    cut = split_shared_prefixes(texts)
    prefixes = [prompt.prefix for prompt in cut]
    for text, prompt in zip(texts, cut, strict=True):
        assert list(prompt.prefix + prompt.tail) == text
        assert prompt.tail
        alone = prefixes.count(prompt.prefix) == 1
        assert 2 * len(prompt.prefix) >= len(text) or len(prompt.tail) <= decode.TAIL
        assert not alone or len(prompt.tail) == min(len(text), decode.TAIL)


def test_prefixs_come_in_few_numbers_and_a_batch_without_any_reads_tails_only():
    shapes = set()
    for distinct in range(33):
        prefixes = [(1 + number % distinct,) * 40 if distinct else () for number in range(32)]
        reading = decode.build_prefill_batch(
            [decode.Prompt(prefix, (5,)) for prefix in prefixes], decode.ONE_DEVICE
        )
        shapes.add(reading.prefixes.tokens.shape)
    assert shapes == {(4, 0), (4, 64), (8, 64), (16, 64), (32, 64)}
