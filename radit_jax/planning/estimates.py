"""Packed rows of a decoder: their batch as shapes, their arithmetic, and about how much memory they take."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from radit_jax.config import LoraConfig
from radit_jax.method.likelihood import LmBatch, targets_per_part
from radit_jax.models.cudnn import max_segments
from radit_jax.models.flops import attended_pairs, projection_shapes, training_flops
from radit_jax.planning.deployment import EXAMPLE_TOKENS, Counts, PlannedModel, rows_of
from radit_jax.planning.resources import Number, num_parameters
from radit_jax.runtime.distributed.mesh import data_parallel_size
from radit_jax.runtime.distributed.slices import dcn_shape

# Arrays of (tokens, hidden size) that a layer keeps for the backward pass, by `mesh.remat`.
KEPT_PER_LAYER = {"full": 1, "dots": 3, "none": 6}


def batch_of(mesh: Any, rows: int, length: int, targets: int, *, continuations: bool = False) -> LmBatch:
    """The abstract batch of `rows` rows with `length` tokens and `targets` target slots each.

    With `continuations` it has ids for segments of several continuations.
    """
    tokens = rows_of(mesh, (rows, length), jnp.int32)
    slots = rows_of(mesh, (rows, targets), jnp.int32)
    weights = rows_of(mesh, (rows, targets), jnp.float32)
    return LmBatch(
        tokens=tokens,
        positions=tokens,
        segment_ids=tokens,
        continuation_ids=tokens if continuations else None,
        target_slots=slots,
        targets=slots,
        target_weights=weights,
        target_items=slots,
    )


def flops_of(
    module: Any,
    counts: Counts,
    rows: int,
    length: int,
    lora: LoraConfig | None = None,
) -> float:
    """Operations of a training step on full rows of (chunk, example) pairs.

    Half of an example is its answer, and so targets.
    """
    tokens = rows * length
    pair_length = min(length, counts.pair_tokens)
    num_pairs = tokens / pair_length
    targets = num_pairs * EXAMPLE_TOKENS / 2
    attended = attended_pairs(module.config, sequences=num_pairs, length=pair_length)
    return training_flops(module.config, tokens=tokens, attended=attended, targets=targets, lora=lora)


def weights_of(model: PlannedModel) -> float:
    """Bytes that a chip reads to use every parameter once, in the dtype that it computes in."""
    bytes_per_number = jnp.dtype(model.module.dtype).itemsize
    all_bytes = num_parameters(model.params) * bytes_per_number
    return all_bytes / model.mesh.shape["tensor"]


def dcn_bytes(
    model: PlannedModel,
    num_slices: int,
    *,
    passes: Number,
    trained: Any = None,
) -> float:
    """Bytes that a slice must at least receive from the others in a turn; 0 where there is one slice.

    A copy of the model that is cut over several slices is gathered for each of `passes` over the weights, in
    the dtype that they compute in. Gradients of the `trained` parameters, if any, are summed over all slices:
    scattered, and then gathered by the slices that hold the same part.
    """
    _, parts, _ = dcn_shape(tuple(model.mesh.shape.values()), num_slices)
    itemsize = jnp.dtype(model.module.dtype).itemsize
    # 1) A slice has 1 of the parts of its copy, and needs the others.
    missing = 1 - 1 / parts
    gathered = num_parameters(model.params) * itemsize * missing
    if trained is None:
        return passes * gathered
    # 2) Of the sums, those of the other slices come in, and then what the copies share.
    summed = (1 - 1 / num_slices) + (1 / parts - 1 / num_slices)
    return passes * gathered + _gradient_bytes(trained, itemsize) * summed


def ici_bytes(model: PlannedModel, *, passes: Number, tokens: Number = 0, trained: Any = None) -> float:
    """Bytes that a chip must at least receive from the others of its copy of the model in a turn.

    Weights are gathered for each of `passes`, and gradients of the `trained` parameters, if any, scattered.
    Over `tensor`, two sums a layer cross for each of the batch's `tokens`, and as many in the backward pass.
    """
    mesh, module = model.mesh, model.module
    missing = 1 - 1 / mesh.shape["fsdp"]
    itemsize = jnp.dtype(module.dtype).itemsize
    received = passes * weights_of(model) * missing
    if trained is not None:
        received += _gradient_bytes(trained, itemsize) / mesh.shape["tensor"] * missing
    # A sum is scattered and then gathered.
    tensor_missing = 1 - 1 / mesh.shape["tensor"]
    if tokens and tensor_missing:
        shape = module.config
        sums = 4 * shape.num_layers * (1 if trained is None else 2)
        tokens_per_group = tokens / data_parallel_size(mesh)
        received += sums * tokens_per_group * shape.hidden_size * itemsize * tensor_missing
    return received


def _gradient_bytes(trained: Any, itemsize: int) -> float:
    """Bytes of the gradients in the dtype in which they are summed: an embedding's in float32."""
    total = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(trained):
        is_embedding = "embedding" in jax.tree_util.keystr(path)
        total += math.prod(leaf.shape) * (4 if is_embedding else itemsize)
    return total


def activations_of(model: PlannedModel, rows: int, length: int, *, training: bool) -> float:
    """Bytes of a chip for activations, estimated.

    The sum of what all layers keep for the backward pass, two layers' activations, attention's scores where
    the reference computes them, the logits of one part of the targets, and gathered weights.
    """
    module = model.module
    shape = module.config
    tensor = model.mesh.shape["tensor"]
    rows_per_chip = rows / data_parallel_size(model.mesh)
    tokens = rows_per_chip * length
    bytes_per_number = module.dtype.itemsize

    # 1) One layer. Tensor parallelism divides the wide arrays: the feed-forward network's and the heads'.
    heads = shape.num_heads * shape.head_size
    wide = (3 * shape.ffn_size + 4 * heads) / tensor
    layer_width = 4 * shape.hidden_size + wide
    layer = tokens * layer_width * bytes_per_number

    # 2) What each layer keeps for the backward pass.
    stored = 0.0
    if training:
        width = KEPT_PER_LAYER[module.remat] * shape.hidden_size
        width += 0 if module.remat == "full" else wide
        stored = tokens * width * bytes_per_number * shape.num_layers

    # 3) Attention's scores in float32, of every position for every position. A kernel keeps none, but cuDNN's
    # keeps a statistic of each position for gradients, in every place that a row has for a segment.
    scores = 0.0
    heads_per_chip = rows_per_chip * shape.num_heads / tensor
    if module.attention == "xla":
        copies = 2 if training else 1
        scores = heads_per_chip * length**2 * 4 * copies
    if module.attention == "cudnn" and training:
        layers = shape.num_layers if module.remat == "none" else 1
        scores = heads_per_chip * length * max_segments(length) * 4 * layers

    # 4) Logits in float32, with their gradients.
    copies = 3 if training else 1
    targets = min(length, targets_per_part(rows_per_chip, shape.vocab_size))
    num_targets = rows_per_chip * targets
    logits = num_targets * shape.vocab_size * 4 / tensor * copies

    # 5) Weights that are gathered from all chips, of four layers at most.
    kernels = projection_shapes(shape).values()
    layer_parameters = sum(map(math.prod, kernels))
    gathered = 4 * layer_parameters / tensor * bytes_per_number
    return stored + 2 * layer + scores + logits + gathered
