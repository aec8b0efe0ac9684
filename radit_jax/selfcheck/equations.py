"""Proofs of Eq. 1, 2, 4 and 5 on numbers, without a network."""

import functools
from collections.abc import Callable
from typing import Any, SupportsFloat

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from radit_jax.method import losses
from radit_jax.selfcheck.properties import prove
from radit_jax.selfcheck.reference import Array64, all_real, deviation, float64, kl64, softmax64
from radit_jax.selfcheck.tiny_models import TAU, TEMPERATURE, TOKEN_COUNTS, TinyModels, random_scores

DIRECTIONS = ("retrieval_to_lsr", "lsr_to_retrieval", "symmetric")


@prove("Eq. 1: dot products in float32 of bfloat16 embeddings", 1e-5)
def _(models: TinyModels) -> SupportsFloat:
    # Products around 768, where a sum in bfloat16 would be off by several units.
    rng = np.random.default_rng(0)
    query = jnp.asarray(rng.normal(1, 1, (3, 768)), jnp.bfloat16)
    chunks = jnp.asarray(rng.normal(1, 1, (3, 5, 768)), jnp.bfloat16)
    # The reference takes the rounded numbers, so only the sum is compared.
    scores = losses.retrieval_score(query, chunks)
    reference = np.einsum("bd,bkd->bk", float64(query), float64(chunks))
    return np.abs(scores / reference - 1).max()


@prove("Eq. 2: mixture over chunks against float64, value and gradient", 1e-5)
def _(models: TinyModels) -> SupportsFloat:
    # log Σ_c p_R(c|x) p_LM(y|c∘x)
    def mixture(scores: Array, answers: Array) -> Array:
        log_probs = losses.retrieval_log_prob(scores, all_real(scores), TEMPERATURE)
        return losses.ensemble_log_prob(answers, log_probs, all_real(scores))

    def mixture64(scores: Array64, answers: Array64) -> Array64:
        retrieval = softmax64(scores / TEMPERATURE)
        mixed = [p @ np.exp(a) for p, a in zip(retrieval, answers, strict=True)]
        return np.log(mixed)

    return deviation(mixture, mixture64, *random_scores())


@prove("Eq. 2: an answer at e^-800 keeps its probability", 1e-7)
def _(models: TinyModels) -> SupportsFloat:
    # exp(-800) is 0, even in float64.
    answers = jnp.array([[-800.0, -801.0]])
    retrieval = jnp.log(jnp.array([[0.5, 0.5]]))
    mixed = losses.ensemble_log_prob(answers, retrieval, all_real(answers))
    mean_weight = (1 + np.exp(-1)) / 2  # after e^-800 is taken out
    reference = -800 + np.log(mean_weight)
    return abs(float(mixed[0]) / reference - 1)


@prove("Eq. 4: p_LSR in its four forms against float64, value and gradient", 1e-5)
def _(models: TinyModels) -> SupportsFloat:
    # The LM score of each form, by its definition.
    counts = TOKEN_COUNTS[:, None]
    forms = {
        "token_geomean": lambda a: np.exp(a / counts),
        "prob": np.exp,
        "mean_log_prob": lambda a: a / counts,
        "sum_log_prob": lambda a: a,
    }

    # log p_LSR of each example's first chunk: its gradient reaches all chunks, through the softmax.
    def first(answers: Array, form: Any) -> Array:
        log_probs = losses.lsr_log_prob(
            answers,
            jnp.asarray(TOKEN_COUNTS),
            all_real(answers),
            form=form,
            tau=TAU,
        )
        return log_probs[:, 0]

    def first64(answers: Array64, score: Callable[[Array64], Array64]) -> Array64:
        probs = softmax64(score(answers) / TAU)
        return np.log(probs[:, 0])

    _, answers = random_scores()
    deviations = []
    for form, score in forms.items():
        function = functools.partial(first, form=form)
        reference = functools.partial(first64, score=score)
        deviations.append(deviation(function, reference, answers))
    return max(deviations)


@prove("Eq. 5: KL in its three directions against float64, value and gradient", 1e-5)
def _(models: TinyModels) -> SupportsFloat:
    # The target is a distribution from other scores, so that its gradient is tested too.
    def loss(scores: Array, target: Array, direction: Any) -> Array:
        mask = all_real(scores)
        p = losses.retrieval_log_prob(scores, mask, TEMPERATURE)
        q = losses.retrieval_log_prob(target, mask, TEMPERATURE)
        return losses.r_ft_loss(p, q, mask, direction=direction)

    def loss64(scores: Array64, target: Array64, direction: Any) -> Array64:
        p = softmax64(scores / TEMPERATURE)
        q = softmax64(target / TEMPERATURE)
        forward = kl64(p, q)
        backward = kl64(q, p)
        by_direction = {
            "retrieval_to_lsr": forward,
            "lsr_to_retrieval": backward,
            "symmetric": (forward + backward) / 2,
        }
        return by_direction[direction]

    deviations = []
    for direction in DIRECTIONS:
        function = functools.partial(loss, direction=direction)
        reference = functools.partial(loss64, direction=direction)
        deviations.append(deviation(function, reference, *random_scores()))
    return max(deviations)


@prove("Eq. 5: both gradients against their closed forms, p(log p/q − KL) and p − q", 1e-5)
def _(models: TinyModels) -> SupportsFloat:
    scores, target = (jnp.asarray(numbers, jnp.float32) for numbers in random_scores())
    # d KL(p ‖ q) / ds and d KL(q ‖ p) / ds where p = softmax(s)
    p = softmax64(float64(scores))
    q = softmax64(float64(target))
    closed_forms = {
        "retrieval_to_lsr": p * (np.log(p / q) - kl64(p, q)[:, None]),
        "lsr_to_retrieval": p - q,
    }

    def gradient(direction: Any) -> Array:
        def loss(scores: Array) -> Array:
            mask = all_real(scores)
            p = losses.retrieval_log_prob(scores, mask)
            q = losses.retrieval_log_prob(target, mask)
            return losses.r_ft_loss(p, q, mask, direction=direction).sum()

        return jax.grad(loss)(scores)

    errors = []
    for direction, closed_form in closed_forms.items():
        errors.append(np.abs(gradient(direction) - closed_form).max())
    return max(errors)


@prove("the KL to the posterior has the gradient of the marginal likelihood", 1e-5)
def _(models: TinyModels) -> SupportsFloat:
    scores, answers = (jnp.asarray(numbers, jnp.float32) for numbers in random_scores())
    mask = all_real(scores)

    # The posterior ∝ p_R · p_LM is the target; no gradient passes through it.
    lsr = losses.lsr_log_prob(
        answers,
        jnp.asarray(TOKEN_COUNTS),
        mask,
        form="sum_log_prob",
        tau=1.0,
    )
    retrieval = losses.retrieval_log_prob(scores, mask)
    posterior = losses.posterior_log_prob(retrieval, lsr, mask)

    def kl(scores: Array) -> Array:
        p = losses.retrieval_log_prob(scores, mask)
        return losses.r_ft_loss(p, posterior, mask, direction="lsr_to_retrieval").sum()

    def negative_marginal(scores: Array) -> Array:
        p = losses.retrieval_log_prob(scores, mask)
        return -losses.ensemble_log_prob(answers, p, mask).sum()

    gradient = jax.grad(kl)(scores)
    reference = jax.grad(negative_marginal)(scores)
    return np.abs(gradient - reference).max()
