"""Training: the state, and one jit-compiled step for each loss.

A step is `step(state, batch) -> (state, metrics)`; the old state is donated.
It runs where its arrays are. With `state_shardings` (`runtime/distributed/mesh.py` makes them) the new state
has the shardings of the old one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Num, Shaped

from radit_jax.config import LoraConfig
from radit_jax.method import losses
from radit_jax.method.likelihood import LmBatch, batch_counts, token_log_probs
from radit_jax.models.bert import PackedTexts, encode, encode_packed
from radit_jax.models.decoder import DecoderLm
from radit_jax.models.last_token import TextEncoder
from radit_jax.models.lora import adapted

Scalar = Float[Array, ""]
StepMetrics = dict[str, Num[Array, ""]]  # what a step reports, by name
LossAndGradient = tuple[tuple[Scalar, StepMetrics], Any]  # as `jax.value_and_grad` gives it with `has_aux`
Differentiate = Callable[..., LossAndGradient]  # from parameters, batch and what stays frozen


class TrainState(NamedTuple):
    """All that a step changes; `opt_state` is the optimiser's."""

    step: Int[Array, ""]  # updates so far
    params: Any
    opt_state: Any


StepResult = tuple[TrainState, StepMetrics]  # the new state, and what the step reports


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
    chunk_token_mask: Bool[Array, "B K U"]  # True at the real tokens
    target_log_probs: Float[Array, "B K"]  # as in `RftBatch`
    chunk_mask: Bool[Array, "B K"]


class ContrastiveBatch(NamedTuple):
    """Queries, each with the chunk it belongs to; the other queries' chunks are its negatives."""

    query_tokens: Int[Array, "B T"]
    query_mask: Bool[Array, "B T"]  # True at the real tokens
    chunk_tokens: Int[Array, "B U"]
    chunk_token_mask: Bool[Array, "B U"]


def init_state(params: Any, tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step, on copies of `params`.

    A step destroys its input state, and the query tower starts from the same arrays as the chunk tower.
    """
    params = jax.tree.map(jnp.copy, params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
    )


def make_lm_step(
    module: DecoderLm,
    tx: optax.GradientTransformation,
    *,
    lora: LoraConfig | None = None,
    accumulate_steps: int = 1,
    state_shardings: Any = None,
) -> Callable[..., StepResult]:
    """A step on Eq. 3: the answers' weighted negative log-likelihood per unit of weight in the whole batch.

    LM-ft and the pre-training of a base model differ only in their batches. With `lora` the parameters in
    the state are adapters, and the step takes those of the network, which do not change, as a third argument.
    `accumulate_steps` divides the rows of the batch into parts that are computed one after the other, so that
    the activations of one part exist at a time; their gradients add up to the gradient of the whole batch.
    """

    def loss(trained: Any, batch: LmBatch, weight: Scalar, *base: Any) -> Scalar:
        params = trained
        if lora is not None:
            params = adapted(base[0], trained, lora)
        log_probs = token_log_probs(module, params, batch)
        sums, _ = losses.lm_ft_loss(log_probs, batch.target_weights)
        return _divide(sums.sum(), weight)

    def differentiate(trained: Any, batch: LmBatch, *base: Any) -> LossAndGradient:
        # Every part is divided by the weight of the whole batch, so that the parts add up.
        weight = batch.target_weights.sum()
        value_and_grad = jax.value_and_grad(loss)

        def add_part(total: Any, part: LmBatch) -> tuple[Any, None]:
            value_and_gradient = value_and_grad(trained, part, weight, *base)
            return jax.tree.map(jnp.add, total, value_and_gradient), None

        # One part needs neither a loop nor sums.
        if accumulate_steps == 1:
            value, grads = value_and_grad(trained, batch, weight, *base)
        else:
            no_loss = jnp.zeros(())
            no_grads = jax.tree.map(jnp.zeros_like, trained)
            parts = _parts(batch, accumulate_steps)
            total, _ = jax.lax.scan(add_part, (no_loss, no_grads), parts)
            value, grads = total
        return (value, batch_counts(batch, module.config)), grads

    return _make_step(differentiate, tx, state_shardings)


def _parts(batch: Any, num_parts: int) -> Any:
    """[B, ...] to [num_parts, B / num_parts, ...]: a part is every `num_parts`-th row.

    So the rows of every part are spread over the devices as those of the batch are, and stay where they are.
    """

    def cut(array: Shaped[Array, "B *rest"]) -> Shaped[Array, "parts b *rest"]:
        _, *rest = array.shape
        by_row = array.reshape(-1, num_parts, *rest)
        return by_row.swapaxes(0, 1)

    return jax.tree.map(cut, batch)


def make_r_ft_step(
    module: TextEncoder,
    tx: optax.GradientTransformation,
    *,
    temperature: float,
    direction: losses.Direction = "retrieval_to_lsr",
    state_shardings: Any = None,
) -> Callable[[TrainState, RftBatch], StepResult]:
    """A step on Eq. 5 that trains the query tower, whose parameters are all that the state holds.

    The loss is the mean over the queries that have a chunk. `saturated_queries` is the share of them with
    max p_R > losses.SATURATED: there the paper's direction of the KL has almost no gradient.
    """

    def loss(params: Any, batch: RftBatch) -> tuple[Scalar, StepMetrics]:
        return _r_ft_mean(query_log_prob(module, params, batch, temperature), batch, direction)

    differentiate = jax.value_and_grad(loss, has_aux=True)
    return _make_step(differentiate, tx, state_shardings)


def make_r_ft_text_step(
    module: TextEncoder,
    tx: optax.GradientTransformation,
    *,
    chunk_module: TextEncoder,
    temperature: float,
    direction: losses.Direction = "retrieval_to_lsr",
    state_shardings: Any = None,
) -> Callable[[TrainState, RftTextBatch], StepResult]:
    """The step on Eq. 5 that trains both towers, an ablation of the paper: the chunks are encoded in it.

    The state's parameters are {"query": ..., "chunk": ...}; loss and metrics are those of `make_r_ft_step`.
    `chunk_module` is the chunk tower, which may make vectors in another way than `module`, the query tower.
    """

    def loss(params: Any, batch: RftTextBatch) -> tuple[Scalar, StepMetrics]:
        # Encode all chunks as one batch of texts.
        num_queries, num_chunks, length = batch.chunk_tokens.shape
        tokens = batch.chunk_tokens.reshape(-1, length)
        token_mask = batch.chunk_token_mask.reshape(-1, length)
        vectors = encode(chunk_module, params["chunk"], tokens, token_mask)
        chunks = vectors.reshape(num_queries, num_chunks, -1)

        # From here on it is the step on stored embeddings.
        embedded = RftBatch(
            queries=batch.queries,
            chunk_embeddings=chunks,
            target_log_probs=batch.target_log_probs,
            chunk_mask=batch.chunk_mask,
        )
        log_probs = query_log_prob(module, params["query"], embedded, temperature)
        return _r_ft_mean(log_probs, embedded, direction)

    differentiate = jax.value_and_grad(loss, has_aux=True)
    return _make_step(differentiate, tx, state_shardings)


def _r_ft_mean(
    log_probs: Float[Array, "B K"],
    batch: RftBatch,
    direction: losses.Direction,
) -> tuple[Scalar, StepMetrics]:
    """The mean of Eq. 5 over the queries that have a chunk, and the share of them that are saturated."""
    target_log_probs, chunk_mask = batch.target_log_probs, batch.chunk_mask
    # A query without chunks has loss 0 and p_R 0 everywhere: it adds to neither sum.
    per_query = losses.r_ft_loss(log_probs, target_log_probs, chunk_mask, direction=direction)
    num_queries = chunk_mask.any(axis=-1).sum()
    highest = jnp.exp(log_probs).max(axis=-1)
    is_saturated = highest > losses.SATURATED
    num_saturated = is_saturated.sum()
    loss = _divide(per_query.sum(), num_queries)
    return loss, {"saturated_queries": _divide(num_saturated, num_queries)}


def query_log_prob(
    module: TextEncoder,
    query_params: Any,
    batch: RftBatch,
    temperature: float,
) -> Float[Array, "B K"]:
    """Log p_R(c | x) of the batch's chunks under a query tower: Eq. 1, then its softmax."""
    queries = encode_packed(module, query_params, batch.queries, len(batch.chunk_mask))
    # The gradient of a query multiplies by all K embeddings: NaN in a masked one would reach it.
    is_real = batch.chunk_mask[:, :, None]
    chunks = jnp.where(is_real, batch.chunk_embeddings, 0.0)
    scores = losses.retrieval_score(queries, chunks)
    return losses.retrieval_log_prob(scores, batch.chunk_mask, temperature)


def make_contrastive_step(
    module: TextEncoder,
    tx: optax.GradientTransformation,
    *,
    temperature: float,
    state_shardings: Any = None,
) -> Callable[[TrainState, ContrastiveBatch], StepResult]:
    """A step on InfoNCE with in-batch negatives; the state's parameters are {"query": ..., "chunk": ...}."""

    def loss(params: Any, batch: ContrastiveBatch) -> tuple[Scalar, StepMetrics]:
        queries = encode(
            module,
            params["query"],
            batch.query_tokens,
            batch.query_mask,
        )
        chunks = encode(
            module,
            params["chunk"],
            batch.chunk_tokens,
            batch.chunk_token_mask,
        )
        per_query = losses.contrastive_loss(queries, chunks, temperature)
        return per_query.mean(), {}

    differentiate = jax.value_and_grad(loss, has_aux=True)
    return _make_step(differentiate, tx, state_shardings)


def _make_step(
    differentiate: Differentiate,
    tx: optax.GradientTransformation,
    state_shardings: Any,
) -> Callable[..., Any]:
    """One update by the gradient that `differentiate` gives, compiled; the old state is donated."""

    def step(state: TrainState, batch: Any, *frozen: Any) -> StepResult:
        # What is frozen, such as the network under LoRA, passes through.
        loss_and_metrics, grads = differentiate(state.params, batch, *frozen)
        loss, metrics = loss_and_metrics
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        grad_norm = optax.tree.norm(grads)
        # A loss may report metrics of its own.
        metrics = {"loss": loss, "grad_norm": grad_norm, **metrics}
        return TrainState(state.step + 1, params, opt_state), metrics

    # The metrics are replicated over the devices, as the step's number is.
    out_shardings = None
    if state_shardings is not None:
        out_shardings = state_shardings, state_shardings.step
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)


def _divide(total: Num[Array, ""], count: Num[Array, ""]) -> Scalar:
    """Total / count, and 0 for a batch of padding only."""
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0.0)
