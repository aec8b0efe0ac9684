"""python -m radit_jax.selfcheck: proves, on random tiny models, what implementations of RA-DIT get wrong.

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

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from radit_jax.config import BertConfig, LlamaConfig
from radit_jax.data.batches.packing import (
    PrefixTree,
    Span,
    continuation_places,
    pack,
    pack_texts,
    span,
    to_batch,
)
from radit_jax.method import likelihood, losses, steps
from radit_jax.models.bert import Bert, encode
from radit_jax.models.llama import Llama
from radit_jax.runtime.errors import exit_command, run_command

LLAMA = LlamaConfig(
    vocab_size=48, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_size=8, ffn_size=48
)
BERT = BertConfig(vocab_size=48, hidden_size=16, num_layers=2, num_heads=2, ffn_size=24, max_length=16)
NUM_ROWS, ROW_LENGTH, TARGETS = 14, 40, 16
TEMPERATURE, TAU = 2.0, 0.3
TOKEN_COUNTS = np.array([3, 1, 7])
READS_GRADIENT = optax.sgd(0.1, momentum=0.9)  # after one step its trace is the gradient

Array64 = np.ndarray
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
    reference = np.einsum("bd,bkd->bk", _float64(query), _float64(chunks))
    return np.abs(losses.retrieval_score(query, chunks) / reference - 1).max()


@prove("Eq. 2: mixture over chunks against float64, value and gradient", 1e-5)
def _(models: "TinyModels") -> SupportsFloat:
    def mixture(scores: Array, answers: Array) -> Array:
        log_probs = losses.retrieval_log_prob(scores, _whole(scores), TEMPERATURE)
        return losses.ensemble_log_prob(answers, log_probs, _whole(scores))

    def mixture64(scores: Array64, answers: Array64) -> Array64:
        return np.log([p @ np.exp(a) for p, a in zip(_softmax64(scores / TEMPERATURE), answers, strict=True)])

    return _deviation(mixture, mixture64, *_numbers())


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
        return losses.lsr_log_prob(answers, counts, _whole(answers), form=form, tau=TAU)[:, 0]

    def first64(answers: Array64, score: Callable[[Array64], Array64]) -> Array64:
        return np.log(_softmax64(score(answers) / TAU)[:, 0])

    _, answers = _numbers()
    return max(
        _deviation(functools.partial(first, form=form), functools.partial(first64, score=score), answers)
        for form, score in forms.items()
    )


@prove("Eq. 5: KL in its three directions against float64, value and gradient", 1e-5)
def _(models: "TinyModels") -> SupportsFloat:
    def loss(scores: Array, target: Array, direction: Any) -> Array:
        p, q = (losses.retrieval_log_prob(s, _whole(s), TEMPERATURE) for s in (scores, target))
        return losses.r_ft_loss(p, q, _whole(p), direction=direction)

    def loss64(scores: Array64, target: Array64, direction: Any) -> Array64:
        p, q = _softmax64(scores / TEMPERATURE), _softmax64(target / TEMPERATURE)
        forward, backward = _kl64(p, q), _kl64(q, p)
        return {
            "retrieval_to_lsr": forward,
            "lsr_to_retrieval": backward,
            "symmetric": (forward + backward) / 2,
        }[direction]

    return max(
        _deviation(functools.partial(loss, direction=d), functools.partial(loss64, direction=d), *_numbers())
        for d in ("retrieval_to_lsr", "lsr_to_retrieval", "symmetric")
    )


@prove("Eq. 5: both gradients against their closed forms, p(log p/q − KL) and p − q", 1e-5)
def _(models: "TinyModels") -> SupportsFloat:
    scores, target = (jnp.asarray(numbers, jnp.float32) for numbers in _numbers())
    p, q = _softmax64(_float64(scores)), _softmax64(_float64(target))
    closed = {
        "retrieval_to_lsr": p * (np.log(p / q) - _kl64(p, q)[:, None]),
        "lsr_to_retrieval": p - q,
    }

    def gradient(direction: Any) -> Array:
        def loss(scores: Array) -> Array:
            mask = _whole(scores)
            p, q = (losses.retrieval_log_prob(s, mask) for s in (scores, target))
            return losses.r_ft_loss(p, q, mask, direction=direction).sum()

        return jax.grad(loss)(scores)

    return max(np.abs(gradient(direction) - form).max() for direction, form in closed.items())


@prove("the KL to the posterior has the gradient of the marginal likelihood", 1e-5)
def _(models: "TinyModels") -> SupportsFloat:
    scores, answers = (jnp.asarray(numbers, jnp.float32) for numbers in _numbers())
    mask = _whole(scores)
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
    return _distance(packed, unpacked)


@prove("the LM-ft gradient does not depend on prompt labels", 0.0)
def _(models: "TinyModels") -> SupportsFloat:
    def with_labels(label: int) -> Any:
        free = models.packed.target_weights == 0
        targets = np.where(free, label, models.packed.targets)
        slots = np.where(free, np.arange(TARGETS) % 4, models.packed.target_slots)
        return models.lm_step_on(models.packed._replace(targets=targets, target_slots=slots))[0]

    return _distance(with_labels(3), with_labels(17))


@prove("what stands in a row's padding changes no gradient", 0.0)
def _(models: "TinyModels") -> SupportsFloat:
    tokens = np.where(models.packed.segment_ids == 0, 11, models.packed.tokens)
    batches = (models.packed, models.packed._replace(tokens=tokens))
    return _distance(*(models.lm_step_on(batch)[0] for batch in batches))


# --- R-ft on a tiny BERT ------------------------------------------------------------------------------


@prove("every query-encoder parameter gets a gradient (key biases have none by nature)", 1e-5, at_least=True)
def _(models: "TinyModels") -> SupportsFloat:
    gradient, _ = models.r_ft_step_on(models.queries)
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    sizes = [np.abs(leaf).max() for path, leaf in leaves if "key/bias" not in _name(path)]
    return min(sizes) / _norm(gradient)


@prove("Eq. 1 and 5: R-ft gradient against float64 differences through the encoder", 1e-5)
def _(models: "TinyModels") -> SupportsFloat:
    batch, module, params = models.queries, models.bert, models.bert_params

    def queries(params: Any) -> Array:
        return encode(module, params, *models.padded_queries)  # a row each: packing must not matter

    by_query = _central_differences(models.r_ft_loss64, _float64(jax.jit(queries)(params)))
    [reference] = jax.jit(lambda p, out: jax.vjp(queries, p)[1](out))(params, np.float32(by_query))
    return _distance(models.r_ft_step_on(batch)[0], reference)


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


# --- what they are measured on ------------------------------------------------------------------------


class TinyModels:
    """Random networks and batches, made and compiled once for all properties."""

    llama, bert = Llama(LLAMA), Bert(BERT)

    @functools.cached_property
    def llama_params(self) -> Any:
        """A language model."""
        return random_params(self.llama, jnp.zeros((1, 4), jnp.int32))

    @functools.cached_property
    def bert_params(self) -> Any:
        """The chunk encoder, from which the query encoder starts."""
        return random_params(self.bert, jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool))

    @functools.cached_property
    def sequences(self) -> list[PrefixTree]:
        """Prefixes that one to three answers share."""
        rng = np.random.default_rng(0)

        def continuation() -> Span:
            tokens = rng.integers(1, LLAMA.vocab_size, rng.integers(4, 8)).astype(np.int32)
            weights = np.zeros(len(tokens), np.float32)
            weights[-rng.integers(1, 4) :] = 1.0
            return Span(tokens, weights)

        return [
            PrefixTree(
                span(rng.integers(1, LLAMA.vocab_size, rng.integers(2, 9))),
                tuple(continuation() for _ in range(1 + i % 3)),
            )
            for i in range(7)
        ]

    @functools.cached_property
    def rows(self) -> list[tuple[int, ...]]:
        """The sequences packed."""
        return pack(self.sequences, row_length=ROW_LENGTH, targets_per_row=TARGETS)

    @functools.cached_property
    def packed(self) -> likelihood.LmBatch:
        """Several trees in a row."""
        return _lay_out(self.sequences, self.rows)

    @functools.cached_property
    def unpacked(self) -> likelihood.LmBatch:
        """One answer, after its own copy of the prefix, in a row."""
        alone = [
            PrefixTree(tree.prefix, (continuation,))
            for tree in self.sequences
            for continuation in tree.continuations
        ]
        return _lay_out(alone, [(i,) for i in range(len(alone))])

    @functools.cached_property
    def packed_log_probs(self) -> Array64:
        """Of the answer tokens, in the order of the sequences."""
        score = jax.jit(functools.partial(likelihood.token_log_probs, self.llama))
        found = np.asarray(score(self.llama_params, self.packed))
        places = zip(*continuation_places(self.sequences, self.rows), strict=True)
        batch = self.packed
        return np.concatenate(
            [
                found[row][(batch.target_items[row] == item) & (batch.target_weights[row] > 0)]
                for row, item in places
            ]
        )

    @functools.cached_property
    def forward(self) -> Callable[..., tuple[Array, Array]]:
        """Hidden states and logits of a plain sequence."""

        def forward(params: Any, tokens: Array) -> tuple[Array, Array]:
            hidden: Any = self.llama.apply({"params": params}, tokens, method="hidden")
            logits: Any = self.llama.apply({"params": params}, tokens)
            return hidden, logits

        return jax.jit(forward)

    def read_alone(self) -> Iterable[tuple[Array64, Array64, Array64, Array64]]:
        """Per answer: its tokens after the prefix, which of them count, and float64 hidden and log p."""
        for tree in self.sequences:
            for continuation in tree.continuations:
                tokens = np.concatenate([tree.prefix.tokens, continuation.tokens])
                # Attention is causal, so what is appended for the sake of one shape is not seen.
                padded = np.pad(tokens, (0, ROW_LENGTH - len(tokens)))[None]
                hidden, logits = (_float64(out[0]) for out in self.forward(self.llama_params, padded))
                where = len(tree.prefix.tokens) + np.flatnonzero(continuation.weights)
                yield tokens, where, hidden, np.log(_softmax64(logits))

    def continuations_one_by_one(self, shift: int) -> list[Array64]:
        """Each answer's token log-probabilities, token i read at position i − 1 (+ shift)."""
        return [log_p[where - 1 + shift, tokens[where]] for tokens, where, _, log_p in self.read_alone()]

    def log_probs_one_by_one(self, shift: int) -> Array64:
        """The same, end to end."""
        return np.concatenate(self.continuations_one_by_one(shift))

    def head_gradient64(self) -> Array64:
        """The gradient of the mean answer NLL with respect to the head."""
        total, count = np.zeros((LLAMA.hidden_size, LLAMA.vocab_size)), 0
        for tokens, where, hidden, log_p in self.read_alone():
            for i in where:
                error = np.exp(log_p[i - 1])
                error[tokens[i]] -= 1
                total += np.outer(hidden[i - 1], error)
                count += 1
        return total / count

    @functools.cached_property
    def lm_step(self) -> Callable[..., Any]:
        """LM-ft, compiled."""
        return steps.make_lm_step(self.llama, READS_GRADIENT)

    def lm_step_on(self, batch: likelihood.LmBatch) -> tuple[Any, dict[str, float]]:
        """The gradient and the metrics of one step."""
        return _read_step(self.lm_step, self.llama_params, batch)

    @functools.cached_property
    def query_ids(self) -> list[list[int]]:
        """Three queries, of which the first and the last share a row of 8."""
        rng = np.random.default_rng(1)
        return [rng.integers(1, BERT.vocab_size, length).tolist() for length in (6, 4, 2)]

    @property
    def padded_queries(self) -> tuple[Any, Any]:
        """The same queries a row each: tokens and their mask."""
        mask = np.arange(8) < np.array([[len(ids)] for ids in self.query_ids])
        return np.array([ids + [0] * (8 - len(ids)) for ids in self.query_ids]), mask

    @functools.cached_property
    def queries(self) -> steps.RftBatch:
        """Two queries with chunks, one without; a row and the last chunk are always masked."""
        rng = np.random.default_rng(0)
        chunk_mask = np.array([[1, 1, 1, 1, 0], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0]], bool)
        target = losses.retrieval_log_prob(
            jnp.asarray(rng.normal(size=(3, 5)), jnp.float32), jnp.asarray(chunk_mask)
        )
        batch = steps.RftBatch(
            queries=pack_texts(self.query_ids, row_length=8, num_rows=3),
            chunk_embeddings=jnp.asarray(rng.normal(size=(3, 5, BERT.hidden_size)), jnp.float32),
            target_log_probs=target,
            chunk_mask=jnp.asarray(chunk_mask),
        )
        return jax.device_get(batch)

    @functools.cached_property
    def r_ft_step(self) -> Callable[..., Any]:
        """R-ft in the paper's direction, compiled."""
        return steps.make_r_ft_step(self.bert, READS_GRADIENT, temperature=TEMPERATURE)

    def r_ft_step_on(self, batch: steps.RftBatch) -> tuple[Any, dict[str, float]]:
        """The gradient and the metrics of one step."""
        return _read_step(self.r_ft_step, self.bert_params, batch)

    def r_ft_difference(self, one: steps.RftBatch, other: steps.RftBatch) -> float:
        """By how much the steps on two batches differ, in loss or in gradient."""
        (gradient, metrics), (other_gradient, other_metrics) = (self.r_ft_step_on(b) for b in (one, other))
        return max(abs(metrics["loss"] / other_metrics["loss"] - 1), _distance(gradient, other_gradient))

    def r_ft_loss64(self, queries: Array64) -> Array64:
        """KL(p_R ‖ p_LSR) of `self.queries` by loops, given the query embeddings; the mean of two queries."""
        batch, each = self.queries, []
        for b in range(2):
            real = np.flatnonzero(batch.chunk_mask[b])
            scores = [sum(queries[b] * _float64(batch.chunk_embeddings[b, k])) for k in real]
            p = _softmax64(np.array([scores]) / TEMPERATURE)
            q = np.exp(_float64(batch.target_log_probs[b, real]))[None]
            each.append(_kl64(p, q)[0])
        return np.array(each) / 2


def _lay_out(sequences: list[PrefixTree], rows: list[tuple[int, ...]]) -> likelihood.LmBatch:
    return to_batch(sequences, rows, row_length=ROW_LENGTH, targets_per_row=TARGETS, num_rows=NUM_ROWS)


def random_params(module: nn.Module, *inputs: Array) -> Any:
    """Parameters without a 0 or a 1, with attention and predictions far from uniform."""
    rng = np.random.default_rng(0)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> Array:
        mean = float(path[-1].key in ("weight", "scale"))  # of a norm
        return jnp.asarray(rng.normal(mean, 0.2, leaf.shape), jnp.float32)

    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return jax.tree_util.tree_map_with_path(draw, shapes)


def _read_step(step: Callable[..., Any], params: Any, batch: Any) -> tuple[Any, dict[str, float]]:
    state, metrics = step(steps.init_state(params, READS_GRADIENT), batch)
    gradient = jax.tree.map(np.asarray, optax.tree.get(state.opt_state, "trace"))
    return gradient, {name: float(value) for name, value in metrics.items()}


def _numbers() -> tuple[Float[np.ndarray, "B K"], Float[np.ndarray, "B K"]]:
    """Scores and summed answer log-probabilities of three examples with five chunks."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 5)), -2 * rng.random((3, 5)) * TOKEN_COUNTS[:, None]


def _whole(array: Array) -> Array:
    return jnp.ones(array.shape, bool)


def _float64(array: Any) -> Array64:
    return np.asarray(array, np.float64)


def _softmax64(logits: Array64) -> Array64:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _kl64(p: Array64, q: Array64) -> Array64:
    return np.array(
        [sum(a * np.log(a / b) for a, b in zip(*pair, strict=True)) for pair in zip(p, q, strict=True)]
    )


def _deviation(function: Callable[..., Array], reference: Callable[..., Array64], *numbers: Array64) -> float:
    """The largest difference between a float32 function and its float64 reference, in value or gradient."""
    numbers = tuple(_float64(np.float32(array)) for array in numbers)
    inputs = tuple(jnp.asarray(array, jnp.float32) for array in numbers)
    worst = np.abs(function(*inputs) - reference(*numbers)).max()
    gradients = jax.grad(lambda *x: function(*x).sum(), argnums=tuple(range(len(inputs))))(*inputs)
    for i, gradient in enumerate(gradients):
        exact = _central_differences(lambda x, i=i: reference(*numbers[:i], x, *numbers[i + 1 :]), numbers[i])
        worst = max(worst, np.abs(gradient - exact).max())
    return float(worst)


def _central_differences(function: Callable[[Array64], Array64], at: Array64, nudge: float = 1e-5) -> Array64:
    """The gradient of a float64 function's sum."""
    gradient = np.zeros_like(at)
    for index in np.ndindex(*at.shape):
        step = np.zeros_like(at)
        step[index] = nudge
        gradient[index] = (function(at + step) - function(at - step)).sum() / (2 * nudge)
    return gradient


def _distance(one: Any, other: Any) -> float:
    """The largest difference between two gradients, relative to the norm of the second as a whole."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs) / _norm(other)


def _norm(gradient: Any) -> float:
    return max(float(optax.tree.norm(gradient)), 1e-30)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


if __name__ == "__main__":
    exit_command(lambda: run_command(main))
