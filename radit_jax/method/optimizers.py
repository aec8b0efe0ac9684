"""Optimisers: clipping, then AdamW or Muon, with a schedule of the learning rate."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from radit_jax.config import OptimizerConfig

Schedule = Callable[[Any], Float[Array, "*S"]]  # from steps, counted from 0, to learning rates


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW, or Muon for the layers' matrices and Adam for all else."""
    schedule = learning_rate(config, config.peak_lr)
    make = _adamw if config.name == "adamw" else _muon
    clip = optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(clip, make(config, schedule))


def learning_rate(config: OptimizerConfig, peak: float) -> Schedule:
    """The schedule of `config`, scaled so that it peaks at `peak`: warm-up, then decay to the end.

    The first step already has a learning rate: warm-up reaches the peak in step `warmup_steps - 1`.
    """
    # The end is the same share of any peak.
    end = peak * config.end_lr / config.peak_lr if config.peak_lr else 0.0
    decay_start = max(config.warmup_steps, config.decay_from * config.steps)
    decay_steps = max(1, config.steps - decay_start)

    def schedule(step: Any) -> Float[Array, "*S"]:
        # Both shares go from 0 to 1: of the peak during warm-up, and of the way from the peak to the end.
        warm = jnp.minimum(1.0, (step + 1) / max(1, config.warmup_steps))
        decayed = jnp.clip((step - decay_start) / decay_steps, 0.0, 1.0)
        if config.decay == "cosine":
            decayed = (1 - jnp.cos(jnp.pi * decayed)) / 2
        return warm * (peak + (end - peak) * decayed)

    return schedule


def learning_rates(config: OptimizerConfig) -> list[float]:
    """The learning rate of each update."""
    schedule = learning_rate(config, config.peak_lr)
    # One program instead of one for each operation.
    return jax.jit(schedule)(jnp.arange(config.steps)).tolist()


def _adamw(config: OptimizerConfig, schedule: Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        weight_decay=config.weight_decay,
        mask=_is_matrix,
    )


def _muon(config: OptimizerConfig, schedule: Schedule) -> optax.GradientTransformation:
    """Muon with weight decay for the layers' matrices, and Adam without it for all other parameters.

    Adam's learning rate has the same schedule as Muon's, with the peak `adam_lr`.
    """
    if not config.adam_lr:
        raise ValueError(
            "optimizer: expected adam_lr > 0 with name='muon', got 0, which would leave embeddings, "
            "norms and heads as they are. Set adam_lr to their peak learning rate."
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
    """Which parameters Muon updates; None stands for those that Adam updates.

    A parameter of shape (layers, in, out) holds one matrix a layer.
    """
    # Kernels are (in, out).
    matrices = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    return jax.tree.map(lambda leaf: matrices if leaf.ndim == 3 else None, params)


def _is_matrix(params: Any) -> Any:
    """True for matrices, which weight decay shrinks; False for biases, norms and embeddings."""
    matrices = ("kernel", "lora_a", "lora_b")
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in matrices, params)
