"""Eq. 1-5 against numbers worked out by hand and against float64 loops, values and gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import EXACT, assert_exact

from radit_jax.method import losses

pytestmark = pytest.mark.usefixtures("float64")
FORMS = ("token_geomean", "prob", "mean_log_prob", "sum_log_prob")
DIRECTIONS = ("retrieval_to_lsr", "lsr_to_retrieval", "symmetric")
ALL = jnp.ones((1, 2), bool)


def log(*rows):
    return jnp.log(jnp.array(rows))


def softmax64(values):
    weights = np.exp(np.asarray(values, np.float64) - np.max(values))
    return weights / weights.sum()


# --- by hand --------------------------------------------------------------------------------------


def test_retrieval_score_is_the_dot_product_of_a_query_with_its_own_chunks():
    queries = jnp.array([[1.0, 2.0], [0.0, 3.0]])
    chunks = jnp.array([[[1.0, 1.0], [2.0, -1.0]], [[5.0, 1.0], [1.0, 0.5]]])
    np.testing.assert_array_equal(losses.retrieval_score(queries, chunks), [[3.0, 0.0], [3.0, 1.5]])


def test_scores_near_396_keep_their_differences_from_bfloat16_embeddings():
    query = jnp.full((1, 768), 0.71875, jnp.bfloat16)
    chunks = jnp.stack([query, query.at[0, 0].add(-0.0625)], axis=1)
    first, second = losses.retrieval_score(query, chunks)[0]
    # Every product and every sum of them is a number of float32; bfloat16 would make the difference 0 or 2.
    assert (first, first - second) == (396.75, 0.0625 * 0.71875)


def test_retrieval_log_prob_by_hand():
    # e^{0.1/0.05} = e^2 = 7.389056: p = 7.389056 / 8.389056, 1 / 8.389056
    log_probs = losses.retrieval_log_prob(jnp.array([[0.9, 0.8]]), ALL, 0.05)
    np.testing.assert_allclose(jnp.exp(log_probs), [[0.880797, 0.119203]], rtol=5e-6)


@pytest.mark.parametrize(
    ("form", "scores", "lsr"),
    [
        # An answer of two tokens with probability 0.64 under the first chunk and 0.16 under the second.
        ("token_geomean", [0.8, 0.4], [0.689974, 0.310026]),  # σ((0.8 - 0.4) / 0.5)
        ("prob", [0.64, 0.16], [0.723122, 0.276878]),  # σ(0.48 / 0.5)
        ("mean_log_prob", [-0.223144, -0.916291], [0.8, 0.2]),  # ratio 2^{1/0.5} = 4
        ("sum_log_prob", [-0.446287, -1.832581], [0.941176, 0.058824]),  # ratio 4^{1/0.5} = 16
    ],
)
def test_lsr_forms_by_hand(form, scores, lsr):
    answer, count = log([0.64, 0.16]), jnp.array([2])
    np.testing.assert_allclose(losses.lm_score(answer, count, form=form), [scores], rtol=1e-5)
    log_probs = losses.lsr_log_prob(answer, count, ALL, form=form, tau=0.5)
    np.testing.assert_allclose(jnp.exp(log_probs), [lsr], rtol=1e-5)


def test_posterior_by_hand():
    # 0.5·0.2 : 0.25·0.4 : 0.25·0.4 = 1 : 1 : 1
    posterior = losses.posterior_log_prob(
        log([0.5, 0.25, 0.25]), log([0.2, 0.4, 0.4]), jnp.ones((1, 3), bool)
    )
    np.testing.assert_allclose(jnp.exp(posterior), [[1 / 3] * 3], rtol=EXACT)


@pytest.mark.parametrize(
    ("direction", "expected"),
    [
        ("retrieval_to_lsr", 0.143841),  # ½ ln(½ / ¼) + ½ ln(½ / ¾)
        ("lsr_to_retrieval", 0.130812),  # ¼ ln(¼ / ½) + ¾ ln(¾ / ½)
        ("symmetric", 0.1373265),
    ],
)
def test_kl_directions_by_hand(direction, expected):
    loss = losses.r_ft_loss(log([0.5, 0.5]), log([0.25, 0.75]), ALL, direction=direction)
    np.testing.assert_allclose(loss, [expected], rtol=1e-5)


def test_the_papers_direction_is_the_default():
    p, q = log([0.5, 0.5]), log([0.25, 0.75])
    paper = losses.r_ft_loss(p, q, ALL, direction="retrieval_to_lsr")
    np.testing.assert_array_equal(losses.r_ft_loss(p, q, ALL), paper)


def test_lm_ft_loss_by_hand():
    sums, weights = losses.lm_ft_loss(log([0.5, 0.25, 0.125]), jnp.array([[1.0, 0.5, 0.0]]))
    np.testing.assert_allclose(sums, [np.log(2) + 0.5 * np.log(4)], rtol=EXACT)
    np.testing.assert_array_equal(weights, [1.5])


def test_ensemble_by_hand():
    # 0.2·0.75 + 0.6·0.25 = 0.3, which is not what mixing the logarithms gives (0.263).
    mixed = losses.ensemble_log_prob(log([0.2, 0.6]), log([0.75, 0.25]), ALL)
    np.testing.assert_allclose(jnp.exp(mixed), [0.3], rtol=EXACT)


def test_contrastive_loss_by_hand():
    # Unit vectors at right angles, temperature 1/ln 3: p(own) = 3 / (3 + 1)
    unit = jnp.eye(2)
    np.testing.assert_allclose(
        losses.contrastive_loss(unit, unit, 1 / np.log(3)), [-np.log(0.75)] * 2, rtol=EXACT
    )


def test_contrastive_loss_pulls_towards_the_own_chunk_not_the_neighbours():
    unit = jnp.eye(3)
    own, shifted = losses.contrastive_loss(unit, unit, 0.1), losses.contrastive_loss(unit, unit[::-1], 0.1)
    assert own[0] < 1e-3 < shifted[0]


# --- extremes -------------------------------------------------------------------------------------


def test_an_answer_mixture_far_below_float32_keeps_its_ratio():
    answers, weights = (jnp.float32([row]) for row in ([-800.0, -801.0], np.log([0.5, 0.5])))
    mixed = losses.ensemble_log_prob(answers, weights, ALL)
    assert mixed.dtype == jnp.float32
    # Near 800 the numbers of float32 lie 6e-5 apart.
    np.testing.assert_allclose(mixed, [-800 + np.log((1 + np.exp(-1)) / 2)], rtol=0, atol=6.2e-5)


def test_the_literal_probability_is_flat_for_long_answers_and_the_geometric_mean_is_not():
    answer, count = jnp.array([[-150.0, -250.0]]), jnp.array([50])  # nats per token: 3 and 5
    flat = losses.lsr_log_prob(answer, count, ALL, form="prob", tau=0.01)
    np.testing.assert_allclose(jnp.exp(flat), [[0.5, 0.5]])
    assert losses.lsr_log_prob(answer, count, ALL, form="token_geomean", tau=0.01)[0, 0] > np.log(0.98)


def test_unknown_choices_are_named():
    with pytest.raises(
        ValueError, match=r"lm_score: expected a form among token_geomean, prob.*, got 'mean'. Choose"
    ):
        losses.lm_score.__wrapped__(log([0.5, 0.5]), jnp.array([1]), form="mean")
    with pytest.raises(
        ValueError, match=r"r_ft_loss: expected a direction among retrieval_to_lsr.*, got 'reverse'. Choose"
    ):
        losses.r_ft_loss.__wrapped__(log([0.5, 0.5]), log([0.5, 0.5]), ALL, direction="reverse")


# --- brute force and properties -------------------------------------------------------------------

COUNTS = np.array([3, 1, 7])


def example(seed=0, rows=3, chunks=5):
    """Scores, target and answer log-probabilities of a few examples that are far from uniform."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(rows, chunks))
    answers = -4 * rng.random((rows, chunks)) * COUNTS[:, None]
    return scores, answers


def everything(scores, answers, mask, *, form="mean_log_prob", direction="retrieval_to_lsr", counts=COUNTS):
    """A scalar through every equation, to differentiate at once."""
    counts = jnp.asarray(counts)
    retrieval = losses.retrieval_log_prob(scores, mask, 0.5)
    lsr = losses.lsr_log_prob(answers, counts, mask, form=form, tau=0.3)
    posterior = losses.posterior_log_prob(retrieval, lsr, mask)
    mixed = losses.ensemble_log_prob(answers, retrieval, mask)
    return (
        losses.r_ft_loss(retrieval, lsr, mask, direction=direction)
        + losses.r_ft_loss(retrieval, posterior, mask, direction=direction)
        - jnp.where(mask.any(axis=-1), mixed, 0.0)
    )


def everything64(scores, answers, *, form, direction, counts=COUNTS):
    """The same in float64, chunk by chunk."""
    losses64 = []
    for s, a, count in zip(scores, answers, counts, strict=True):
        p = softmax64(np.array(s, np.float64) / 0.5)
        a = np.array(a, np.float64)
        score = {
            "token_geomean": np.exp(a / count),
            "prob": np.exp(a),
            "mean_log_prob": a / count,
            "sum_log_prob": a,
        }[form]
        lsr = softmax64(score / 0.3)
        posterior = p * lsr / (p * lsr).sum()
        total = -np.log(sum(p_c * np.exp(a_c) for p_c, a_c in zip(p, a, strict=True)))
        for q in (lsr, posterior):
            forward = sum(p_c * np.log(p_c / q_c) for p_c, q_c in zip(p, q, strict=True))
            backward = sum(q_c * np.log(q_c / p_c) for p_c, q_c in zip(p, q, strict=True))
            total += {
                "retrieval_to_lsr": forward,
                "lsr_to_retrieval": backward,
                "symmetric": (forward + backward) / 2,
            }[direction]
        losses64.append(total)
    return np.array(losses64)


@pytest.mark.parametrize(("form", "direction"), list(itertools.product(FORMS, DIRECTIONS)))
def test_values_and_gradients_agree_with_float64_brute_force(form, direction):
    scores, answers = example()
    mask = jnp.ones(scores.shape, bool)
    value = everything(jnp.asarray(scores), jnp.asarray(answers), mask, form=form, direction=direction)
    reference = everything64(scores, answers, form=form, direction=direction)
    np.testing.assert_allclose(value, reference, rtol=EXACT)
    grads = jax.grad(
        lambda s, a: everything(s, a, mask, form=form, direction=direction).sum(), argnums=(0, 1)
    )(jnp.asarray(scores), jnp.asarray(answers))
    for position, grad in enumerate(grads):
        numeric = np.zeros(scores.shape)
        for index in np.ndindex(*scores.shape):
            ends = []
            for nudge in (1e-5, -1e-5):
                inputs = [scores.copy(), answers.copy()]
                inputs[position][index] += nudge
                ends.append(everything64(*inputs, form=form, direction=direction).sum())
            numeric[index] = (ends[0] - ends[1]) / 2e-5
        # A difference quotient is off by its nudge squared, and by the rounding of values over its nudge.
        np.testing.assert_allclose(grad, numeric, rtol=0, atol=1e-8)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("garbage", [0.0, 1e30, np.nan, -np.inf])
def test_masking_equals_slicing(direction, garbage):
    scores, answers = example()
    mask = np.ones(scores.shape, bool)
    mask[:, [1, 4]] = False
    keep = [0, 2, 3]

    def value_and_grads(scores, answers, mask):
        arrays = jnp.asarray(scores), jnp.asarray(answers), jnp.asarray(mask)

        def loss(s, a):
            return everything(s, a, arrays[2], direction=direction).sum()

        return jax.value_and_grad(loss, argnums=(0, 1))(*arrays[:2])

    masked, masked_grads = value_and_grads(
        np.where(mask, scores, garbage),
        np.where(mask, answers, garbage),
        mask,
    )
    sliced, sliced_grads = value_and_grads(scores[:, keep], answers[:, keep], mask[:, keep])
    assert_exact(masked, sliced)
    for whole, part in zip(masked_grads, sliced_grads, strict=True):
        assert_exact(whole[:, keep], part)
        np.testing.assert_array_equal(whole[:, [1, 4]], 0)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("garbage", [-np.inf, np.nan])
def test_the_kl_alone_has_a_finite_gradient_for_what_is_not_masked(direction, garbage):
    mask = jnp.array([[True, True, False], [False] * 3])
    p, q = (jnp.where(mask, log([half, 1 - half, 1.0]), garbage) for half in (0.5, 0.25))
    grads = jax.grad(lambda p, q: losses.r_ft_loss(p, q, mask, direction=direction).sum(), argnums=(0, 1))(
        p, q
    )
    for grad in grads:
        assert np.isfinite(grad).all() and (grad[0, :2] != 0).all() and (grad[~mask] == 0).all()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_an_example_without_chunks_has_no_loss_and_no_gradient(direction):
    scores, answers = example()
    mask = jnp.ones(scores.shape, bool).at[1].set(False)

    def loss(s, a):
        return everything(s, a, mask, direction=direction).sum()

    value = everything(jnp.asarray(scores), jnp.asarray(answers), mask, direction=direction)
    assert value[1] == 0 and np.isfinite(value).all()
    for grad in jax.grad(loss, argnums=(0, 1))(jnp.asarray(scores), jnp.asarray(answers)):
        assert np.isfinite(grad).all() and (grad[1] == 0).all() and (grad[0] != 0).all()


def test_distributions_are_minus_infinity_where_masked_and_sum_to_one_elsewhere():
    scores, answers = example()
    mask = jnp.ones(scores.shape, bool).at[:, 2].set(False)
    retrieval = losses.retrieval_log_prob(jnp.asarray(scores), mask, 0.1)
    lsr = losses.lsr_log_prob(jnp.asarray(answers), jnp.asarray(COUNTS), mask, form="token_geomean", tau=0.01)
    for distribution in (retrieval, lsr, losses.posterior_log_prob(retrieval, lsr, mask)):
        assert (distribution[:, 2] == -np.inf).all()
        np.testing.assert_allclose(jnp.exp(distribution).sum(axis=1), 1, rtol=EXACT)


def test_permuting_the_chunks_changes_nothing():
    scores, answers = example()
    mask = np.ones(scores.shape, bool)
    mask[0, 3] = mask[2, 1] = False
    order = np.array([3, 0, 4, 2, 1])

    def at(order):
        return jax.value_and_grad(lambda s: everything(s, answers[:, order], mask[:, order]).sum())(
            jnp.asarray(scores[:, order])
        )

    answers, mask = jnp.asarray(answers), jnp.asarray(mask)
    (value, grad), (moved, moved_grad) = at(np.arange(5)), at(order)
    assert_exact((moved, moved_grad), (value, grad[:, order]))


def test_the_kl_to_the_posterior_has_the_gradient_of_the_marginal_likelihood():
    scores, answers = example()
    mask = jnp.ones(scores.shape, bool)
    answers, counts = jnp.asarray(answers), jnp.asarray(COUNTS)
    lsr = losses.lsr_log_prob(answers, counts, mask, form="sum_log_prob", tau=1.0)
    now = losses.retrieval_log_prob(jnp.asarray(scores), mask)
    posterior = losses.posterior_log_prob(now, lsr, mask)

    def kl(scores):
        p = losses.retrieval_log_prob(scores, mask)
        return losses.r_ft_loss(p, posterior, mask, direction="lsr_to_retrieval").sum()

    def marginal(scores):
        return -losses.ensemble_log_prob(answers, losses.retrieval_log_prob(scores, mask), mask).sum()

    scores = jnp.asarray(scores)
    assert_exact(jax.grad(kl)(scores), jax.grad(marginal)(scores))


def test_a_saturated_retriever_gets_no_gradient_from_the_papers_direction_but_does_from_the_other():
    target = log([0.2, 0.8])

    def norm(direction):
        def loss(scores):
            p = losses.retrieval_log_prob(scores, ALL)
            return losses.r_ft_loss(p, target, ALL, direction=direction).sum()

        return float(jnp.linalg.norm(jax.grad(loss)(jnp.array([[30.0, 0.0]]))))

    assert norm("retrieval_to_lsr") < 1e-6 < 1 < norm("lsr_to_retrieval")


def test_everything_stays_float32_from_bfloat16_inputs():
    low = jnp.ones((2, 3), jnp.bfloat16)
    mask, counts = jnp.ones((2, 3), bool), jnp.array([1, 2])
    scores = losses.retrieval_score(jnp.ones((2, 4), jnp.bfloat16), jnp.ones((2, 3, 4), jnp.bfloat16))
    lsr = losses.lsr_log_prob(low, counts, mask, form="prob", tau=0.1)
    assert scores.dtype == lsr.dtype == jnp.float32
