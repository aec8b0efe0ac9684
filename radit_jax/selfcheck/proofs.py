"""The proofs of the self-check (`__main__.py`), and what proves them one after the other."""

import functools
import sys
import time
from collections.abc import Iterable
from typing import Any, NoReturn, SupportsFloat

import jax
import numpy as np
from jaxtyping import Array

from radit_jax.data.batches.packing import continuation_places, pack_texts
from radit_jax.method import likelihood, steps
from radit_jax.models.bert import encode
from radit_jax.selfcheck import equations  # noqa: F401 - its proofs come first
from radit_jax.selfcheck.properties import PROPERTIES, Property, prove
from radit_jax.selfcheck.reference import (
    central_differences,
    float64,
    gradient_distance,
    norm,
    path_name,
)
from radit_jax.selfcheck.tiny_models import (
    NUM_ROWS,
    TARGETS,
    TinyModels,
)


def main(properties: Iterable[Property] = PROPERTIES) -> NoReturn:
    """Check each property on fresh models, print a line for each, and exit: 0 if they all hold, else 1."""
    # Fail here, and not in a property, where JAX_PLATFORMS names no device.
    jax.devices()
    models = TinyModels()
    start = time.monotonic()
    num_failed = 0
    for prop in properties:
        # An accelerator multiplies float32 less precisely by default.
        with jax.default_matmul_precision("highest"):
            measured = float(prop.measure(models))
        holds = prop.holds(measured)
        num_failed += not holds
        verdict = "ok  " if holds else "FAIL"
        relation = "≥" if prop.at_least else "≤"
        print(f"{verdict} {measured:8.1e} {relation} {prop.bound:<7.0e} {prop.name}", flush=True)
    seconds = time.monotonic() - start
    print(f"{num_failed} failed; jax {jax.__version__}, {seconds:.0f} s")
    sys.exit(1 if num_failed else 0)


# --- Eq. 3 on a tiny LLaMA ----------------------------------------------------------------------------


@prove("answer log-probabilities are those of each token given all before it", 1e-4)
def _(models: TinyModels) -> SupportsFloat:
    reference = models.log_probs_one_by_one(shift=0)
    return np.abs(models.packed_log_probs - reference).max()


@prove("a reference that is shifted by one token disagrees", 0.1, at_least=True)
def _(models: TinyModels) -> SupportsFloat:
    # The property before this one would notice a target that is read one position off.
    errors = []
    for shift in (-1, 1):
        reference = models.log_probs_one_by_one(shift=shift)
        errors.append(np.abs(models.packed_log_probs - reference).max())
    return min(errors)


@prove("answers that share a prefix in a row score as they do alone", 1e-4)
def _(models: TinyModels) -> SupportsFloat:
    # Each row's sums by continuation, put in the order of the trees.
    score = functools.partial(
        likelihood.continuation_log_probs,
        models.llama,
        num_continuations=NUM_ROWS,
    )
    sums = jax.jit(score)(models.llama_params, batch=models.packed)
    places = continuation_places(models.trees, models.rows)
    in_order = np.asarray(sums)[places]
    reference = [log_probs.sum() for log_probs in models.continuations_one_by_one(shift=0)]
    return np.abs(in_order - reference).max()


@prove("Eq. 3: LM-ft loss against float64, over the answer tokens of the whole batch", 1e-5)
def _(models: TinyModels) -> SupportsFloat:
    # Every answer token counts once, whatever row it is in.
    _, metrics = models.lm_step_on(models.packed)
    reference = -models.log_probs_one_by_one(shift=0).mean()
    return abs(metrics["loss"] / reference - 1)


@prove("Eq. 3: its gradient for the head against float64, Σ (p − y) h per answer token", 1e-5)
def _(models: TinyModels) -> SupportsFloat:
    gradient, _ = models.lm_step_on(models.packed)
    reference = models.head_gradient64()
    error = np.abs(gradient["lm_head"]["kernel"] - reference)
    return error.max() / np.linalg.norm(reference)


@prove("packed equals unpacked in loss", 1e-5)
def _(models: TinyModels) -> SupportsFloat:
    _, packed = models.lm_step_on(models.packed)
    _, unpacked = models.lm_step_on(models.unpacked)
    return abs(packed["loss"] / unpacked["loss"] - 1)


@prove("packed equals unpacked in gradient", 1e-5)
def _(models: TinyModels) -> SupportsFloat:
    # Rows hold another number of answers each, which must not weigh them.
    packed, _ = models.lm_step_on(models.packed)
    unpacked, _ = models.lm_step_on(models.unpacked)
    return gradient_distance(packed, unpacked)


@prove("the LM-ft gradient does not depend on prompt labels", 0.0)
def _(models: TinyModels) -> SupportsFloat:
    batch = models.packed

    def with_labels(label: int) -> Any:
        """The gradient when target slots without weight ask for `label` at a row's first four positions."""
        # A batch lists only the answers' tokens as targets, with weight 1. Its unused slots stand in for a
        # prompt's tokens: a row starts with a prompt.
        is_unused = batch.target_weights == 0
        targets = np.where(is_unused, label, batch.targets)
        slots = np.where(is_unused, np.arange(TARGETS) % 4, batch.target_slots)
        relabelled = batch._replace(targets=targets, target_slots=slots)
        gradient, _ = models.lm_step_on(relabelled)
        return gradient

    return gradient_distance(with_labels(3), with_labels(17))


@prove("what stands in a row's padding changes no gradient", 0.0)
def _(models: TinyModels) -> SupportsFloat:
    # Segment 0 is padding: whatever token stands there, no other segment sees it.
    batch = models.packed
    is_padding = batch.segment_ids == 0
    other_tokens = np.where(is_padding, 11, batch.tokens)
    gradient, _ = models.lm_step_on(batch)
    other_gradient, _ = models.lm_step_on(batch._replace(tokens=other_tokens))
    return gradient_distance(gradient, other_gradient)


# --- R-ft on a tiny BERT ------------------------------------------------------------------------------


@prove("every query-encoder parameter gets a gradient (key biases have none by nature)", 1e-5, at_least=True)
def _(models: TinyModels) -> SupportsFloat:
    gradient, _ = models.r_ft_step_on(models.queries)
    sizes = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        # A key bias adds the same to all of a query's attention scores, which softmax does not see.
        if "key/bias" not in path_name(path):
            sizes.append(np.abs(leaf).max())
    return min(sizes) / norm(gradient)


@prove("Eq. 1 and 5: R-ft gradient against float64 differences through the encoder", 1e-5)
def _(models: TinyModels) -> SupportsFloat:
    # The queries have a row each: packing must not matter.
    def queries(params: Any) -> Array:
        return encode(models.bert, params, *models.padded_queries)

    def through_encoder(params: Any, query_gradient: Array) -> Any:
        """What a gradient for the query embeddings is for the encoder's parameters."""
        _, pull_back = jax.vjp(queries, params)
        (gradient,) = pull_back(query_gradient)
        return gradient

    # The loss as a function of the query embeddings is differentiated in float64, the encoder by JAX.
    # The two are joined by the chain rule.
    params = models.bert_params
    embedded = float64(jax.jit(queries)(params))
    query_gradient = central_differences(models.r_ft_loss64, embedded)
    reference = jax.jit(through_encoder)(params, np.float32(query_gradient))
    gradient, _ = models.r_ft_step_on(models.queries)
    return gradient_distance(gradient, reference)


@prove("R-ft leaves the LM, the chunk encoder and the stored embeddings bit for bit as they were", 0.0)
def _(models: TinyModels) -> SupportsFloat:
    # Bytes are compared, so that even −0 for 0 would be noticed.
    # The query encoder starts from the chunk encoder's very arrays, which a step may not take for itself.
    frozen = (models.llama_params, models.bert_params, models.queries.chunk_embeddings)
    before = [np.array(leaf).tobytes() for leaf in jax.tree.leaves(frozen)]
    models.r_ft_step_on(models.queries)
    after = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(frozen)]
    return sum(old != new for old, new in zip(before, after, strict=True))


@prove("the order of the chunks changes neither loss nor gradient", 1e-5)
def _(models: TinyModels) -> SupportsFloat:
    # The chunks change places with their targets and their mask.
    batch = models.queries
    order = np.array([3, 0, 4, 2, 1])
    moved = batch._replace(
        chunk_embeddings=batch.chunk_embeddings[:, order],
        target_log_probs=batch.target_log_probs[:, order],
        chunk_mask=batch.chunk_mask[:, order],
    )
    return models.r_ft_difference(batch, moved)


@prove("NaN in masked chunks and other tokens in pads change neither loss nor gradient", 0.0)
def _(models: TinyModels) -> SupportsFloat:
    # Pads have text −1.
    batch = models.queries
    queries = batch.queries
    is_pad = queries.texts < 0
    other_tokens = np.where(is_pad, 9, queries.tokens)
    chunk_mask = batch.chunk_mask
    garbage = batch._replace(
        queries=queries._replace(tokens=other_tokens),
        chunk_embeddings=np.where(chunk_mask[:, :, None], batch.chunk_embeddings, np.nan),
        target_log_probs=np.where(chunk_mask, batch.target_log_probs, np.nan),
    )
    return models.r_ft_difference(batch, garbage)


@prove("masked chunks and pads are as good as cut off", 1e-5)
def _(models: TinyModels) -> SupportsFloat:
    # Rows of 6 instead of 8, two instead of three, and without the chunk that is masked everywhere.
    batch = models.queries
    cut = steps.RftBatch(
        pack_texts(models.query_ids, row_length=6, num_rows=2),
        batch.chunk_embeddings[:, :4],
        batch.target_log_probs[:, :4],
        batch.chunk_mask[:, :4],
    )
    return models.r_ft_difference(batch, cut)
