"""score: log p(y | c∘x) of pairs in packed rows."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from radit_jax.config import ScoreConfig
from radit_jax.method.likelihood import continuation_log_probs
from radit_jax.planning.deployment import Deployment, PlannedModel
from radit_jax.planning.estimates import activations_of, batch_of, dcn_bytes, flops_of, ici_bytes, weights_of
from radit_jax.planning.files import score_bytes
from radit_jax.planning.resources import (
    Call,
    ResourceEstimate,
    StageProgram,
    estimate,
    in_parts,
    num_bytes,
)
from radit_jax.runtime.distributed.mesh import data_parallel_size

HOST_BYTES_PER_PAIR = 32.0  # while pairs are ordered and their scores collected


def plan_score(deployment: Deployment) -> ResourceEstimate:
    """Hosts score shards of their own: each example with each of its chunks, and once without any."""
    settings = deployment.experiment.score
    counts = deployment.counts
    pairs_per_example = deployment.experiment.retrieve.num_chunks + 1
    num_pairs = counts.examples * pairs_per_example
    host = HOST_BYTES_PER_PAIR * num_pairs
    disk = score_bytes(deployment)
    if settings.file:  # whose scores are read, not computed
        return ResourceEstimate("score", host=host, disk=disk)
    # 1) Where it is scored, and a host's part of a batch.
    labeller = deployment.labeller(deployment.mesh())
    place, num_parts = deployment.apart(num_bytes(labeller.params))
    rows, length = settings.batch_size, settings.sequence_length
    mesh = deployment.mesh(rows)
    if num_parts > 1:
        mesh = place.mesh()
        unit = data_parallel_size(mesh)
        rows = -(-rows // (num_parts * unit)) * unit
    model = place.labeller(mesh)
    row_model = place.fitted(model, length)

    # 2) The pairs' number gives the turns, a turn being a batch of full rows.
    pairs_per_row = length / min(length, counts.pair_tokens)
    pairs_per_host = num_pairs / num_parts
    forward_flops = flops_of(model.module, counts, rows, length) / 3
    program = StageProgram(
        calls=scoring_calls(row_model, replace(settings, batch_size=rows)),
        held=model.params,
        flops=forward_flops,
        traffic=weights_of(model),
        # The module with reference attention is the one that takes more.
        activations=activations_of(model, rows, length, training=False),
        times=pairs_per_host / (rows * pairs_per_row),
        dcn=dcn_bytes(model, place.target.num_slices, passes=1),
        ici=ici_bytes(model, passes=1, tokens=rows * length),
        host_seconds=pairs_per_host * deployment.assumptions.lay_out_pair,
    )
    program = in_parts(program, num_parts)
    return estimate("score", program, model.params, deployment, host=host, disk=disk)


def scoring_calls(model: PlannedModel, settings: ScoreConfig, resident: Any = ()) -> Sequence[Call]:
    """The calls that score packed rows while `resident` is on the devices too.

    Trees of several continuations go to reference attention. Trees of one go to a kernel, if there is one.
    """
    length = settings.sequence_length
    targets = length // 2
    # A kernel knows only segments, so it is compiled for batches without ids of continuations.
    kinds = (True,) if model.module.attention == "xla" else (True, False)
    calls = []
    for continuations in kinds:
        batch = batch_of(model.mesh, settings.batch_size, length, targets, continuations=continuations)
        arguments = (model.module, model.params, batch, targets)
        calls.append(Call(continuation_log_probs, arguments, resident=resident))
    return calls
