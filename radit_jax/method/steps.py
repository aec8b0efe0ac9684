"""Training: the state, the optimiser, and one jit-compiled step for each loss.

A step is `step(state, batch) -> (state, metrics)`; it gives up the old state's memory to the new one.
Where the arrays lie decides where it runs; pass `state_shardings` (`runtime/distributed/mesh.py` makes them)
so that the state comes back where it was.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from radit_jax.config import LoraConfig, OptimizerConfig
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


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW, or Muon on the layers' matrices and Adam on all else."""
    schedule = learning_rate(config, config.peak_lr)
    if config.name == "adamw":
        optimizer = optax.adamw(
            schedule, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=_kernels
        )
    else:
        optimizer = _muon(config, schedule)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)


def learning_rate(config: OptimizerConfig, peak: float) -> Callable[[Any], Array]:
    """The schedule of `config`, scaled so that it peaks at `peak`: step, counted from 0, to learning rate.

    The first step already moves: warm-up reaches the peak in step `warmup_steps - 1`.
    """
    end = peak * config.end_lr / config.peak_lr if config.peak_lr else 0.0
    decay_start = max(config.warmup_steps, config.decay_from * config.steps)

    def schedule(step: Any) -> Array:
        warm = jnp.minimum(1.0, (step + 1) / max(1, config.warmup_steps))
        done = jnp.clip((step - decay_start) / max(1, config.steps - decay_start), 0.0, 1.0)
        if config.decay == "cosine":
            done = (1 - jnp.cos(jnp.pi * done)) / 2
        return warm * (peak + (end - peak) * done)

    return schedule


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
    the state are adapters, and the step takes those of the network, which stay, as a third argument. With
    `accumulate_steps` the batch is taken in so many parts of its rows, one after the other, of which the
    activations exist one at a time; the sum of their gradients is the gradient of the whole.
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
    """[B, ...] to [count, B / count, ...], every count-th row, so that rows stay on their devices."""

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
    """A step on Eq. 5 that trains the query tower, the only parameters there are in the state.

    The loss is the mean over the queries that have a chunk. `saturated_queries` is the share of them with
    max p_R > losses.SATURATED: there the paper's direction of the KL has next to no gradient.
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
    # The gradient for a query multiplies by its chunks' embeddings, also by those that are not there.
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

    # The step's number is on every device, and so are the metrics.
    out = None if state_shardings is None else (state_shardings, state_shardings.step)
    return jax.jit(step, donate_argnums=0, out_shardings=out)


def _divide(total: Array, count: Array) -> Array:
    """Total / count, and 0 for a batch of padding only."""
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0.0)


def _muon(config: OptimizerConfig, schedule: Callable[[Any], Array]) -> optax.GradientTransformation:
    if not config.adam_lr:
        raise ValueError(
            "optimizer: name is 'muon', but adam_lr is 0, which would leave embeddings, norms and heads as "
            "they are; set adam_lr to their peak learning rate"
        )
    return optax.contrib.muon(
        schedule,
        weight_decay=config.weight_decay,
        adam_b1=config.b1,
        adam_b2=config.b2,
        adam_learning_rate=learning_rate(config, config.adam_lr),
        muon_weight_dimension_numbers=_layer_matrices,
    )


def _layer_matrices(params: Any) -> Any:
    """Muon's part of the parameters: (layer, in, out) are stacked (in, out) matrices; None is Adam's."""
    matrices = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    return jax.tree.map(lambda leaf: matrices if leaf.ndim == 3 else None, params)


def _kernels(params: Any) -> Any:
    """True for the matrices, which weight decay shrinks; biases, norms and embeddings it leaves alone."""
    matrices = ("kernel", "lora_a", "lora_b")
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in matrices, params)
