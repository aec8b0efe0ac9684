"""Training: the state, and one jit-compiled step for each loss.

A step is `step(state, batch) -> (state, metrics)`; the old state is donated.
It runs where its arrays are; pass `state_shardings` (`runtime/distributed/mesh.py` makes them)
so that the new state has the shardings of the old one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from radit_jax.config import LoraConfig
from radit_jax.method import losses
from radit_jax.method.likelihood import LmBatch, batch_counts, token_log_probs
from radit_jax.models.bert import Bert, PackedTexts, encode, encode_packed
from radit_jax.models.llama import Llama
from radit_jax.models.lora import adapted

Metrics = dict[str, Array]
Differentiated = Callable[..., tuple[tuple[Array, Metrics], Any]]  # to loss, metrics and gradient


class TrainState(NamedTuple):
    """All that a step changes."""

    step: Array
    params: Any
    opt_state: Any


class RftBatch(NamedTuple):
    """B queries with their retrieved chunks, which enter R-ft as stored embeddings only."""

    queries: PackedTexts
    chunk_embeddings: Float[Array, "B K D"]
    target_log_probs: Float[Array, "B K"]  # log p_LSR, or the posterior
    chunk_mask: Bool[Array, "B K"]


class RftTextBatch(NamedTuple):
    """B queries with their retrieved chunks as texts, for chunk encoders that learn too."""

    queries: PackedTexts
    chunk_tokens: Int[Array, "B K U"]
    chunk_token_mask: Bool[Array, "B K U"]
    target_log_probs: Float[Array, "B K"]
    chunk_mask: Bool[Array, "B K"]


class ContrastiveBatch(NamedTuple):
    """Queries, each with the chunk it belongs to; the other queries' chunks are its negatives."""

    query_tokens: Int[Array, "B T"]
    query_mask: Bool[Array, "B T"]
    chunk_tokens: Int[Array, "B U"]
    chunk_token_mask: Bool[Array, "B U"]


def init_state(params: Any, tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step, on copies of `params`.

    A step destroys its input state, and the query tower starts from the same arrays as the chunk tower.
    """
    params = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def make_lm_step(
    module: Llama,
    tx: optax.GradientTransformation,
    *,
    lora: LoraConfig | None = None,
    accumulate_steps: int = 1,
    state_shardings: Any = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """A step on Eq. 3: the answers' weighted negative log-likelihood per unit of weight in the whole batch.

    LM-ft and the pre-training of a base model differ in their batches only. With `lora` the parameters in
    the state are adapters, and the step takes those of the network, which do not change, as a third argument.
    `accumulate_steps` divides the rows of the batch into parts that are computed one after the other, so that
    the activations of one part exist at a time; their gradients add up to the gradient of the whole batch.
    """

    def loss(trained: Any, batch: LmBatch, weight: Array, *base: Any) -> Array:
        params = trained if lora is None else adapted(base[0], trained, lora)
        sums, _ = losses.lm_ft_loss(token_log_probs(module, params, batch), batch.target_weights)
        return _divide(sums.sum(), weight)

    def differentiate(trained: Any, batch: LmBatch, *base: Any) -> tuple[tuple[Array, Metrics], Any]:
        weight = batch.target_weights.sum()
        value_and_grad = jax.value_and_grad(loss)

        def add(total: Any, part: LmBatch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, value_and_grad(trained, part, weight, *base)), None

        if accumulate_steps == 1:
            value, grads = value_and_grad(trained, batch, weight, *base)
        else:
            nothing = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trained))
            (value, grads), _ = jax.lax.scan(add, nothing, _parts(batch, accumulate_steps))
        return (value, batch_counts(batch)), grads

    return _make_step(differentiate, tx, state_shardings)


def _parts(batch: Any, count: int) -> Any:
    """[B, ...] to [count, B / count, ...]; a part is every count-th row: rows stay on their devices."""

    def cut(array: Array) -> Array:
        return array.reshape(-1, count, *array.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(cut, batch)


def make_r_ft_step(
    module: Bert,
    tx: optax.GradientTransformation,
    *,
    temperature: float,
    direction: losses.Direction = "retrieval_to_lsr",
    state_shardings: Any = None,
) -> Callable[[TrainState, RftBatch], tuple[TrainState, Metrics]]:
    """A step on Eq. 5 that trains the query tower, whose parameters are all that the state holds.

    The loss is the mean over the queries that have a chunk. `saturated_queries` is the share of them with
    max p_R > losses.SATURATED: there the paper's direction of the KL has almost no gradient.
    """

    def loss(params: Any, batch: RftBatch) -> tuple[Array, Metrics]:
        log_probs = query_log_prob(module, params, batch, temperature)
        return _r_ft_mean(log_probs, batch.target_log_probs, batch.chunk_mask, direction)

    return _make_step(jax.value_and_grad(loss, has_aux=True), tx, state_shardings)


def make_r_ft_text_step(
    module: Bert,
    tx: optax.GradientTransformation,
    *,
    temperature: float,
    direction: losses.Direction = "retrieval_to_lsr",
    state_shardings: Any = None,
) -> Callable[[TrainState, RftTextBatch], tuple[TrainState, Metrics]]:
    """The step on Eq. 5 that trains both towers, an ablation of the paper: the chunks are encoded in it.

    The state's parameters are {"query": ..., "chunk": ...}; loss and metrics are those of `make_r_ft_step`.
    """

    def loss(params: Any, batch: RftTextBatch) -> tuple[Array, Metrics]:
        shape = batch.chunk_mask.shape
        tokens, mask = (
            array.reshape(-1, array.shape[-1]) for array in (batch.chunk_tokens, batch.chunk_token_mask)
        )
        chunks = encode(module, params["chunk"], tokens, mask).reshape(*shape, -1)
        embedded = RftBatch(batch.queries, chunks, batch.target_log_probs, batch.chunk_mask)
        log_probs = query_log_prob(module, params["query"], embedded, temperature)
        return _r_ft_mean(log_probs, batch.target_log_probs, batch.chunk_mask, direction)

    return _make_step(jax.value_and_grad(loss, has_aux=True), tx, state_shardings)


def _r_ft_mean(
    log_probs: Float[Array, "B K"],
    target_log_probs: Float[Array, "B K"],
    chunk_mask: Bool[Array, "B K"],
    direction: losses.Direction,
) -> tuple[Array, Metrics]:
    each = losses.r_ft_loss(log_probs, target_log_probs, chunk_mask, direction=direction)
    count = chunk_mask.any(axis=-1).sum()
    saturated = (jnp.exp(log_probs).max(axis=-1) > losses.SATURATED).sum()
    return _divide(each.sum(), count), {"saturated_queries": _divide(saturated, count)}


def query_log_prob(
    module: Bert, query_params: Any, batch: RftBatch, temperature: float
) -> Float[Array, "B K"]:
    """Log p_R(c | x) of the batch's chunks under a query tower: Eq. 1, then its softmax."""
    queries = encode_packed(module, query_params, batch.queries, len(batch.chunk_mask))
    # A query's gradient multiplies by all K embeddings, so that NaN in a masked one would reach it.
    chunks = jnp.where(batch.chunk_mask[:, :, None], batch.chunk_embeddings, 0.0)
    scores = losses.retrieval_score(queries, chunks)
    return losses.retrieval_log_prob(scores, batch.chunk_mask, temperature)


def make_contrastive_step(
    module: Bert, tx: optax.GradientTransformation, *, temperature: float, state_shardings: Any = None
) -> Callable[[TrainState, ContrastiveBatch], tuple[TrainState, Metrics]]:
    """A step on InfoNCE with in-batch negatives; the state's parameters are {"query": ..., "chunk": ...}."""

    def loss(params: Any, batch: ContrastiveBatch) -> tuple[Array, Metrics]:
        queries = encode(module, params["query"], batch.query_tokens, batch.query_mask)
        chunks = encode(module, params["chunk"], batch.chunk_tokens, batch.chunk_token_mask)
        return losses.contrastive_loss(queries, chunks, temperature).mean(), {}

    return _make_step(jax.value_and_grad(loss, has_aux=True), tx, state_shardings)


def _make_step(
    differentiate: Differentiated, tx: optax.GradientTransformation, state_shardings: Any
) -> Callable[..., Any]:
    def step(state: TrainState, batch: Any, *frozen: Any) -> tuple[TrainState, Metrics]:
        (value, metrics), grads = differentiate(state.params, batch, *frozen)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads), **metrics}
        return TrainState(state.step + 1, params, opt_state), metrics

    # The metrics are replicated over the devices, as the step's number is.
    out = None if state_shardings is None else (state_shardings, state_shardings.step)
    return jax.jit(step, donate_argnums=0, out_shardings=out)


def _divide(total: Array, count: Array) -> Array:
    """Total / count, and 0 for a batch of padding only."""
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0.0)
