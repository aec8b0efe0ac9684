"""score: log p(y | c∘x) of pairs in packed rows."""

from collections.abc import Sequence
from typing import Any

from radit_jax.config import ScoreConfig
from radit_jax.method.likelihood import continuation_log_probs
from radit_jax.planning.deployment import Deployment
from radit_jax.planning.estimates import activations_of, batch_of, flops_of, weights_of
from radit_jax.planning.resources import Call, ResourceEstimate, StageProgram, estimate


def plan_score(site: Deployment) -> ResourceEstimate:
    settings = site.experiment.score
    rows, length = settings.batch_size, settings.sequence_length
    mesh = site.mesh(rows)
    module, params = site.llama(mesh, settings.dtype)
    fitted = site.fitted(module, mesh, length)
    per_row = length / min(length, site.counts.pair_tokens)
    num_pairs = site.counts.examples * (site.experiment.retrieve.num_chunks + 1)
    program = StageProgram(
        calls=scoring_calls(fitted, params, settings, mesh),
        held=params,
        flops=flops_of(module, site.counts, rows, length) / 3,
        traffic=weights_of(module, params, mesh),
        activations=activations_of(module, mesh, rows, length, training=False),  # the reference's
        times=num_pairs / (rows * per_row),
    )
    return estimate("score", program, params, site.target, host=32.0 * num_pairs, disk=16.0 * num_pairs)


def scoring_calls(
    module: Any, params: Any, settings: ScoreConfig, mesh: Any, beside: Any = ()
) -> Sequence[Call]:
    """Trees of several continuations go to the reference, those of one to a kernel if there is one."""
    length, targets = settings.sequence_length, settings.sequence_length // 2
    kinds = (True,) if module.attention == "xla" else (True, False)
    batches = (batch_of(mesh, settings.batch_size, length, targets, continuations=kind) for kind in kinds)
    return [
        Call(continuation_log_probs, (module, params, batch, targets), beside=beside) for batch in batches
    ]
