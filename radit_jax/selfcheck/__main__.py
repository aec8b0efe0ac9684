"""`python -m radit_jax.selfcheck` proves on random tiny models what implementations get wrong.

One line per property: what was measured, what it had to be, and what is proved. The equations are compared
with float64 loops over chunks and over tokens read one sequence at a time, their gradients with central
differences or closed forms. The device computes in float32, so a bound has room for several times what
rounding was seen to do; a mistake misses it a hundredfold. The exit status is 0 only if all properties hold.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, SupportsFloat

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from radit_jax.data.batches.packing import (
    continuation_places,
    pack_texts,
)
from radit_jax.errors import exit_command, run_command
from radit_jax.method import likelihood, losses, steps
from radit_jax.models.bert import encode
from radit_jax.selfcheck.reference import (
    Array64,
    all_real,
    central_differences,
    deviation,
    float64,
    gradient_distance,
    kl64,
    norm,
    path_name,
    softmax64,
)
from radit_jax.selfcheck.tiny_models import (
    NUM_ROWS,
    TARGETS,
    TAU,
    TEMPERATURE,
    TOKEN_COUNTS,
    TinyModels,
    random_scores,
)

Measure = Callable[["TinyModels"], SupportsFloat]


@dataclasses.dataclass(frozen=True)
class Property:
    """What is proved, how to measure it, and the bound that the measurement must keep to."""

    name: str
    measure: Measure
    bound: float
    at_least: bool

    def holds(self, measured: float) -> bool:
        """NaN never holds."""
        return bool(measured >= self.bound if self.at_least else measured <= self.bound)


PROPERTIES: list[Property] = []


def prove(name: str, bound: float, *, at_least: bool = False) -> Callable[..., Any]:
    """Add a measurement, by default of an error, to the properties."""

    def register(measure: Measure) -> Measure:
        PROPERTIES.append(Property(name, measure, bound, at_least))
        return measure

    return register


def main(properties: Iterable[Property] = PROPERTIES) -> NoReturn:
    """Check each property on fresh models, print a line for each, and exit: 0 if they all hold, else 1."""
    jax.devices()  # an error here, where it is one of JAX_PLATFORMS
    models, failures, start = TinyModels(), 0, time.monotonic()
    for prop in properties:
        with jax.default_matmul_precision("highest"):  # an accelerator's float32 may be less by default
            measured = float(prop.measure(models))
        held = prop.holds(measured)
        failures += not held
        relation = "≥" if prop.at_least else "≤"
        print(
            f"{'ok  ' if held else 'FAIL'} {measured:8.1e} {relation} {prop.bound:<7.0e} {prop.name}",
            flush=True,
        )
    print(f"{failures} failed; jax {jax.__version__}, {time.monotonic() - start:.0f} s")
    sys.exit(1 if failures else 0)


# --- Eq. 1, 2, 4 and 5 on numbers ---------------------------------------------------------------------


@prove("Eq. 1: dot products in float32 of bfloat16 embeddings", 1e-5)
def _(models: "TinyModels") -> SupportsFloat:
    rng = np.random.default_rng(0)
    query, chunks = (jnp.asarray(rng.normal(1, 1, shape), jnp.bfloat16) for shape in ((3, 768), (3, 5, 768)))
    reference = np.einsum("bd,bkd->bk", float64(query), float64(chunks))
    return np.abs(losses.retrieval_score(query, chunks) / reference - 1).max()


@prove("Eq. 2: mixture over chunks against float64, value and gradient", 1e-5)
def _(models: "TinyModels") -> SupportsFloat:
    def mixture(scores: Array, answers: Array) -> Array:
        log_probs = losses.retrieval_log_prob(scores, all_real(scores), TEMPERATURE)
        return losses.ensemble_log_prob(answers, log_probs, all_real(scores))

    def mixture64(scores: Array64, answers: Array64) -> Array64:
        return np.log([p @ np.exp(a) for p, a in zip(softmax64(scores / TEMPERATURE), answers, strict=True)])

    return deviation(mixture, mixture64, *random_scores())


@prove("Eq. 2: an answer at e^-800 keeps its probability", 1e-7)
def _(models: "TinyModels") -> SupportsFloat:
    mixed = losses.ensemble_log_prob(
        jnp.array([[-800.0, -801.0]]), jnp.log(jnp.array([[0.5, 0.5]])), jnp.ones((1, 2), bool)
    )
    return abs(float(mixed[0]) / (-800 + np.log((1 + np.exp(-1)) / 2)) - 1)


@prove("Eq. 4: p_LSR in its four forms against float64, value and gradient", 1e-5)
def _(models: "TinyModels") -> SupportsFloat:
    counts = TOKEN_COUNTS[:, None]
    forms = {
        "token_geomean": lambda a: np.exp(a / counts),
        "prob": np.exp,
        "mean_log_prob": lambda a: a / counts,
        "sum_log_prob": lambda a: a,
    }

    def first(answers: Array, form: Any) -> Array:
        counts = jnp.asarray(TOKEN_COUNTS)
        return losses.lsr_log_prob(answers, counts, all_real(answers), form=form, tau=TAU)[:, 0]

    def first64(answers: Array64, score: Callable[[Array64], Array64]) -> Array64:
        return np.log(softmax64(score(answers) / TAU)[:, 0])

    _, answers = random_scores()
    return max(
        deviation(functools.partial(first, form=form), functools.partial(first64, score=score), answers)
        for form, score in forms.items()
    )


@prove("Eq. 5: KL in its three directions against float64, value and gradient", 1e-5)
def _(models: "TinyModels") -> SupportsFloat:
    def loss(scores: Array, target: Array, direction: Any) -> Array:
        p, q = (losses.retrieval_log_prob(s, all_real(s), TEMPERATURE) for s in (scores, target))
        return losses.r_ft_loss(p, q, all_real(p), direction=direction)

    def loss64(scores: Array64, target: Array64, direction: Any) -> Array64:
        p, q = softmax64(scores / TEMPERATURE), softmax64(target / TEMPERATURE)
        forward, backward = kl64(p, q), kl64(q, p)
        return {
            "retrieval_to_lsr": forward,
            "lsr_to_retrieval": backward,
            "symmetric": (forward + backward) / 2,
        }[direction]

    return max(
        deviation(
            functools.partial(loss, direction=d), functools.partial(loss64, direction=d), *random_scores()
        )
        for d in ("retrieval_to_lsr", "lsr_to_retrieval", "symmetric")
    )


@prove("Eq. 5: both gradients against their closed forms, p(log p/q − KL) and p − q", 1e-5)
def _(models: "TinyModels") -> SupportsFloat:
    scores, target = (jnp.asarray(numbers, jnp.float32) for numbers in random_scores())
    p, q = softmax64(float64(scores)), softmax64(float64(target))
    closed = {
        "retrieval_to_lsr": p * (np.log(p / q) - kl64(p, q)[:, None]),
        "lsr_to_retrieval": p - q,
    }

    def gradient(direction: Any) -> Array:
        def loss(scores: Array) -> Array:
            mask = all_real(scores)
            p, q = (losses.retrieval_log_prob(s, mask) for s in (scores, target))
            return losses.r_ft_loss(p, q, mask, direction=direction).sum()

        return jax.grad(loss)(scores)

    return max(np.abs(gradient(direction) - form).max() for direction, form in closed.items())


@prove("the KL to the posterior has the gradient of the marginal likelihood", 1e-5)
def _(models: "TinyModels") -> SupportsFloat:
    scores, answers = (jnp.asarray(numbers, jnp.float32) for numbers in random_scores())
    mask = all_real(scores)
    counts = jnp.asarray(TOKEN_COUNTS)
    lsr = losses.lsr_log_prob(answers, counts, mask, form="sum_log_prob", tau=1.0)
    posterior = losses.posterior_log_prob(losses.retrieval_log_prob(scores, mask), lsr, mask)

    def kl(scores: Array) -> Array:
        p = losses.retrieval_log_prob(scores, mask)
        return losses.r_ft_loss(p, posterior, mask, direction="lsr_to_retrieval").sum()

    def marginal(scores: Array) -> Array:
        return -losses.ensemble_log_prob(answers, losses.retrieval_log_prob(scores, mask), mask).sum()

    return np.abs(jax.grad(kl)(scores) - jax.grad(marginal)(scores)).max()


# --- Eq. 3 on a tiny LLaMA ----------------------------------------------------------------------------


@prove("answer log-probabilities are those of each token given all before it", 1e-4)
def _(models: "TinyModels") -> SupportsFloat:
    return np.abs(models.packed_log_probs - models.log_probs_one_by_one(shift=0)).max()


@prove("a reference that is shifted by one token disagrees", 0.1, at_least=True)
def _(models: "TinyModels") -> SupportsFloat:
    shifted = (models.log_probs_one_by_one(shift=shift) for shift in (-1, 1))
    return min(np.abs(models.packed_log_probs - reference).max() for reference in shifted)


@prove("answers that share a prefix in a row score as they do alone", 1e-4)
def _(models: "TinyModels") -> SupportsFloat:
    places = continuation_places(models.sequences, models.rows)
    score = functools.partial(likelihood.continuation_log_probs, models.llama, num_continuations=NUM_ROWS)
    sums = jax.jit(score)(models.llama_params, batch=models.packed)
    reference = [continuation.sum() for continuation in models.continuations_one_by_one(shift=0)]
    return np.abs(np.asarray(sums)[places] - reference).max()


@prove("Eq. 3: LM-ft loss against float64, over the answer tokens of the whole batch", 1e-5)
def _(models: "TinyModels") -> SupportsFloat:
    reference = -models.log_probs_one_by_one(shift=0).mean()
    return abs(models.lm_step_on(models.packed)[1]["loss"] / reference - 1)


@prove("Eq. 3: its gradient for the head against float64, Σ (p − y) h per answer token", 1e-5)
def _(models: "TinyModels") -> SupportsFloat:
    gradient, _ = models.lm_step_on(models.packed)
    reference = models.head_gradient64()
    return np.abs(gradient["lm_head"]["kernel"] - reference).max() / np.linalg.norm(reference)


@prove("packed equals unpacked in loss", 1e-5)
def _(models: "TinyModels") -> SupportsFloat:
    packed, unpacked = (models.lm_step_on(batch)[1]["loss"] for batch in (models.packed, models.unpacked))
    return abs(packed / unpacked - 1)


@prove("packed equals unpacked in gradient", 1e-5)
def _(models: "TinyModels") -> SupportsFloat:
    packed, unpacked = (models.lm_step_on(batch)[0] for batch in (models.packed, models.unpacked))
    return gradient_distance(packed, unpacked)


@prove("the LM-ft gradient does not depend on prompt labels", 0.0)
def _(models: "TinyModels") -> SupportsFloat:
    def with_labels(label: int) -> Any:
        free = models.packed.target_weights == 0
        targets = np.where(free, label, models.packed.targets)
        slots = np.where(free, np.arange(TARGETS) % 4, models.packed.target_slots)
        return models.lm_step_on(models.packed._replace(targets=targets, target_slots=slots))[0]

    return gradient_distance(with_labels(3), with_labels(17))


@prove("what stands in a row's padding changes no gradient", 0.0)
def _(models: "TinyModels") -> SupportsFloat:
    tokens = np.where(models.packed.segment_ids == 0, 11, models.packed.tokens)
    batches = (models.packed, models.packed._replace(tokens=tokens))
    return gradient_distance(*(models.lm_step_on(batch)[0] for batch in batches))


# --- R-ft on a tiny BERT ------------------------------------------------------------------------------


@prove("every query-encoder parameter gets a gradient (key biases have none by nature)", 1e-5, at_least=True)
def _(models: "TinyModels") -> SupportsFloat:
    gradient, _ = models.r_ft_step_on(models.queries)
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    sizes = [np.abs(leaf).max() for path, leaf in leaves if "key/bias" not in path_name(path)]
    return min(sizes) / norm(gradient)


@prove("Eq. 1 and 5: R-ft gradient against float64 differences through the encoder", 1e-5)
def _(models: "TinyModels") -> SupportsFloat:
    batch, module, params = models.queries, models.bert, models.bert_params

    def queries(params: Any) -> Array:
        return encode(module, params, *models.padded_queries)  # a row each: packing must not matter

    by_query = central_differences(models.r_ft_loss64, float64(jax.jit(queries)(params)))
    [reference] = jax.jit(lambda p, out: jax.vjp(queries, p)[1](out))(params, np.float32(by_query))
    return gradient_distance(models.r_ft_step_on(batch)[0], reference)


@prove("R-ft leaves the LM, the chunk encoder and the stored embeddings bit for bit as they were", 0.0)
def _(models: "TinyModels") -> SupportsFloat:
    # The query encoder starts from the chunk encoder's very arrays, which a step may not take for itself.
    frozen = (models.llama_params, models.bert_params, models.queries.chunk_embeddings)
    before = [np.array(leaf) for leaf in jax.tree.leaves(frozen)]
    models.r_ft_step_on(models.queries)
    pairs = zip(before, jax.tree.leaves(frozen), strict=True)
    return float(sum(old.tobytes() != np.asarray(new).tobytes() for old, new in pairs))


@prove("the order of the chunks changes neither loss nor gradient", 1e-5)
def _(models: "TinyModels") -> SupportsFloat:
    batch, order = models.queries, np.array([3, 0, 4, 2, 1])
    moved = batch._replace(
        chunk_embeddings=batch.chunk_embeddings[:, order],
        target_log_probs=batch.target_log_probs[:, order],
        chunk_mask=batch.chunk_mask[:, order],
    )
    return models.r_ft_difference(batch, moved)


@prove("NaN in masked chunks and other tokens in pads change neither loss nor gradient", 0.0)
def _(models: "TinyModels") -> SupportsFloat:
    batch = models.queries
    garbage = batch._replace(
        queries=batch.queries._replace(tokens=np.where(batch.queries.texts < 0, 9, batch.queries.tokens)),
        chunk_embeddings=np.where(batch.chunk_mask[:, :, None], batch.chunk_embeddings, np.nan),
        target_log_probs=np.where(batch.chunk_mask, batch.target_log_probs, np.nan),
    )
    return models.r_ft_difference(batch, garbage)


@prove("masked chunks and pads are as good as cut off", 1e-5)
def _(models: "TinyModels") -> SupportsFloat:
    batch = models.queries
    small = steps.RftBatch(
        pack_texts(models.query_ids, row_length=6, num_rows=2),
        batch.chunk_embeddings[:, :4],
        batch.target_log_probs[:, :4],
        batch.chunk_mask[:, :4],
    )
    return models.r_ft_difference(batch, small)


if __name__ == "__main__":
    exit_command(lambda: run_command(main))
