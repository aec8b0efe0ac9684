"""lm_ft: the training step, of a full fine-tuning or of adapters, and the tasks that select a checkpoint."""

import functools
import math
from dataclasses import replace
from typing import Any

import jax

from radit_jax.config import LmFtConfig
from radit_jax.data.eval_tasks.registry import development_tasks
from radit_jax.evaluation.task_suite import COPIES_IN_TRAINING
from radit_jax.lm.training import initial_state
from radit_jax.method.optimizers import make_optimizer
from radit_jax.method.steps import TrainState, make_lm_step
from radit_jax.models.frozen import frozen_shapes, is_frozen
from radit_jax.models.lora import adapted, quantized
from radit_jax.planning.deployment import Deployment, PlannedModel, placed
from radit_jax.planning.estimates import (
    activations_of,
    batch_of,
    dcn_bytes,
    flops_of,
    ici_bytes,
    weights_of,
)
from radit_jax.planning.evaluate import answering_program
from radit_jax.planning.resources import Call, ResourceEstimate, StageProgram, estimate, in_turn, num_bytes
from radit_jax.runtime.distributed.memory import bytes_per_device
from radit_jax.runtime.distributed.mesh import abstract_sharded


def plan_lm_ft(deployment: Deployment) -> ResourceEstimate:
    """Training steps, and where KILT's questions select the checkpoint, their answers in between."""
    settings = deployment.experiment.lm_ft
    rows = settings.batch_size
    length = settings.sequence_length
    mesh = deployment.mesh(settings.rows_at_a_time)
    tasks = development_tasks(deployment.experiment) if settings.select == "kilt_dev" else None
    model = deployment.llama(mesh, settings.dtype, frozen=is_frozen(settings, tasks))
    model = deployment.fitted(model, length)
    step = training_call(model, settings)
    state, _, *frozen = step.arguments

    # 1) A step reads the weights forward and backward, and again where it recomputes activations.
    passes = 3 if model.module.remat == "none" else 4
    weight_bytes = passes * weights_of(model) * settings.accumulate_steps
    state_bytes = 2 * bytes_per_device(state)  # read and written

    # 2) Besides the state it needs gradients, and the activations of the rows that it reads at a time.
    gradients = bytes_per_device(state.params)
    activations = activations_of(model, settings.rows_at_a_time, length, training=True)
    # Over several slices every part of a batch gathers the weights twice, and sums gradients.
    num_slices = deployment.target.num_slices
    dcn = dcn_bytes(model, num_slices, passes=2, trained=state.params)
    tokens = settings.rows_at_a_time * length
    ici = ici_bytes(model, passes=2, tokens=tokens, trained=state.params)
    program = StageProgram(
        calls=[step],
        held=(state, frozen, step.resident),
        flops=flops_of(model.module, deployment.counts, rows, length, settings.lora),
        traffic=weight_bytes + state_bytes,
        activations=gradients + activations,
        times=settings.optimizer.steps,
        dcn=dcn * settings.accumulate_steps,
        ici=ici * settings.accumulate_steps,
    )

    # 3) Two checkpoints on disk, the best parameters and the result.
    checkpoint = num_bytes(state) + num_bytes(deployment.lm_params)
    disk = 2 * checkpoint
    training = estimate("lm_ft", program, model.params, deployment, disk=disk)
    if settings.select != "kilt_dev":
        return training
    return in_turn(training, _plan_validation(deployment, step, model))


def _plan_validation(deployment: Deployment, step: Call, trained: PlannedModel) -> ResourceEstimate:
    """KILT's development questions, answered by a copy of the model while the training state waits."""
    settings = deployment.experiment.lm_ft
    tasks = development_tasks(deployment.experiment)
    tasks = replace(tasks, batch_size=settings.rows_at_a_time)
    state: TrainState = step.arguments[0]
    frozen = step.arguments[2] if settings.lora.rank else step.resident

    # 1) The parameters that answer, with the adapters between them, on the mesh that `kilt_validation` takes.
    training_bytes = COPIES_IN_TRAINING * bytes_per_device(frozen)
    mesh = deployment.answering_mesh(tasks, settings.rows_at_a_time, held=training_bytes)
    model = deployment.llama(mesh, tasks.dtype)
    if settings.lora.rank:
        with_adapters = functools.partial(adapted, lora=settings.lora)
        params = placed(with_adapters, mesh, frozen, state.params)
    else:
        params = abstract_sharded(state.params, mesh)
    model = model._replace(params=frozen_shapes(params, tasks.dtype))

    # 2) What else is on the devices. On one mesh, in one dtype, the parameters are not copied.
    held: Any = (state, frozen)
    if mesh == trained.mesh and num_bytes(model.params) == num_bytes(params):
        held = state if settings.lora.rank else (state._replace(params=()), frozen)

    # 3) At most as many questions as are asked for, of every task at every validation.
    questions_per_validation = len(tasks.tasks) * tasks.questions_per_task
    num_questions = num_validations(settings) * questions_per_validation
    # KILT's tasks are all generated: no pair is scored.
    program = answering_program(
        deployment,
        tasks,
        model,
        held=held,
        num_questions=num_questions,
        scores_pairs=False,
    )
    return estimate("lm_ft", program, params, deployment, host=deployment.searching)


def num_validations(settings: LmFtConfig) -> int:
    """How often LM-ft validates: before the first step, every `validate_every` steps, and after the last."""
    if not settings.validate_every:
        return 1  # after the last step only
    after_steps = math.ceil(settings.optimizer.steps / settings.validate_every)
    return 1 + after_steps


def training_call(model: PlannedModel, settings: LmFtConfig) -> Call:
    """A step on state and batch, and, where adapters learn, on the parameters that stay as they are.

    Only the examples know how many slots for targets a row has. Here it is the most: one for every token.
    """
    module, params, mesh = model
    module = module.clone(rounds_head_gradient=settings.round_head_gradient)
    lora = settings.lora
    tx = make_optimizer(settings.optimizer)
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
    length = settings.sequence_length
    batch = batch_of(mesh, settings.batch_size, length, targets=length)
    if lora.rank:
        return Call(step, (state, batch, params))
    # The stage keeps the parameters that it began with.
    return Call(step, (state, batch), resident=params)
