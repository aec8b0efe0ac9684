"""lm_ft: the training step, of a full fine-tuning or of adapters."""

from typing import Any

import jax

from radit_jax.config import LmFtConfig
from radit_jax.lm.training import initial_state
from radit_jax.method.optimizers import make_optimizer
from radit_jax.method.steps import TrainState, make_lm_step
from radit_jax.models.lora import quantized
from radit_jax.planning.deployment import Deployment, placed
from radit_jax.planning.estimates import activations_of, batch_of, flops_of, weights_of
from radit_jax.planning.resources import Call, ResourceEstimate, StageProgram, estimate, num_bytes
from radit_jax.runtime.distributed.memory import bytes_per_device


def plan_lm_ft(site: Deployment) -> ResourceEstimate:
    settings = site.experiment.lm_ft
    rows, length = settings.batch_size, settings.sequence_length
    mesh = site.mesh(settings.rows_at_a_time)
    module, params = site.llama(mesh, settings.dtype)
    module = site.fitted(module, mesh, length)
    call = training_call(module, params, settings, mesh)
    state, _, *frozen = call.arguments
    passes = 3 if module.remat == "none" else 4
    program = StageProgram(
        calls=[call],
        held=(state, frozen, call.beside),
        flops=flops_of(module, site.counts, rows, length, settings.lora),
        traffic=passes * weights_of(module, params, mesh) * settings.accumulate_steps
        + 2 * bytes_per_device(state),
        activations=bytes_per_device(state.params)
        + activations_of(module, mesh, settings.rows_at_a_time, length, training=True),
        times=settings.optimizer.steps,
    )
    kept = 2 * (num_bytes(state) + num_bytes(params))  # two checkpoints, the best and the result
    return estimate("lm_ft", program, params, site.target, disk=kept)


def training_call(module: Any, params: Any, settings: LmFtConfig, mesh: Any) -> Call:
    """A step on state and batch, and, where adapters learn, on the parameters that stay.

    How many slots for targets a row has, only the examples know: here it is the most, one for every token.
    """
    tx, lora = make_optimizer(settings.optimizer), settings.lora
    if lora.quantize != "none":
        params = placed(lambda tree: quantized(tree, lora), mesh, params)
    state: TrainState = placed(initial_state(tx, lora), mesh, params)
    step = make_lm_step(
        module,
        tx,
        lora=lora if lora.rank else None,
        accumulate_steps=settings.accumulate_steps,
        state_shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
    )
    batch = batch_of(mesh, settings.batch_size, settings.sequence_length, settings.sequence_length)
    if lora.rank:
        return Call(step, (state, batch, params))
    return Call(step, (state, batch), beside=params)  # the stage has them as they came
