"""Packed rows of a LLaMA: their batch as shapes, their arithmetic, and about what they take of a chip."""

import math
from typing import Any

import jax.numpy as jnp

from radit_jax.config import LoraConfig
from radit_jax.method.likelihood import TARGETS_PER_PART, LmBatch
from radit_jax.models.flops import projection_shapes, training_flops
from radit_jax.planning.deployment import EXAMPLE_TOKENS, Counts, rows_of
from radit_jax.planning.resources import num_parameters
from radit_jax.runtime.distributed.mesh import data_parallel_size


def batch_of(mesh: Any, rows: int, length: int, targets: int, *, continuations: bool = False) -> LmBatch:
    """Rows with so many slots for targets, with or without sequences of several continuations."""
    tokens, slots = (rows_of(mesh, (rows, width), jnp.int32) for width in (length, targets))
    weights = rows_of(mesh, (rows, targets), jnp.float32)
    shapes: Any = (tokens, tokens, tokens, tokens if continuations else None, slots, slots, weights, slots)
    return LmBatch(*shapes)


def flops_of(module: Any, counts: Counts, rows: int, length: int, lora: LoraConfig | None = None) -> float:
    """Operations of a training step on rows of examples behind their chunks, half of each the answer."""
    pair = min(length, counts.pair_tokens)
    tokens = rows * length
    targets = tokens / pair * EXAMPLE_TOKENS / 2
    attended = tokens * (pair + 1) / 2
    return training_flops(module.config, tokens=tokens, attended=attended, targets=targets, lora=lora)


def weights_of(module: Any, params: Any, mesh: Any) -> float:
    """Bytes that a chip reads to use every parameter once, in the dtype that it computes in."""
    return num_parameters(params) * jnp.dtype(module.dtype).itemsize / mesh.shape["tensor"]


def activations_of(module: Any, mesh: Any, rows: int, length: int, *, training: bool) -> float:
    """Bytes of a chip for activations, about: what layers keep, and what the widest one needs."""
    shape, tensor = module.config, mesh.shape["tensor"]
    own_rows, width = rows / data_parallel_size(mesh), module.dtype.itemsize
    wide = (3 * shape.ffn_size + 4 * shape.num_heads * shape.head_size) / tensor
    layer = own_rows * length * (4 * shape.hidden_size + wide) * width
    kept = {"full": 1, "dots": 3, "none": 6}[module.remat] * shape.hidden_size
    kept += 0 if module.remat == "full" else wide
    kept = own_rows * length * kept * width * shape.num_layers if training else 0.0
    scores = 0.0
    if module.attention == "xla":
        scores = own_rows * shape.num_heads / tensor * length**2 * 4 * (2 if training else 1)
    logits = own_rows * TARGETS_PER_PART * shape.vocab_size * 4 / tensor * (3 if training else 1)
    gathered = 2 * 2 * sum(map(math.prod, projection_shapes(shape).values())) / tensor * width
    return kept + 2 * layer + scores + logits + gathered
