"""r_ft: the query tower's training step over stored embeddings, or both towers' over texts, and scoring."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from radit_jax.config import Experiment, Instructions, layers_of
from radit_jax.method.optimizers import make_optimizer
from radit_jax.method.steps import RftBatch, RftTextBatch, init_state, make_r_ft_step, make_r_ft_text_step
from radit_jax.models.bert import PackedTexts
from radit_jax.models.flops import encoder_flops
from radit_jax.planning.deployment import Deployment, PlannedModel, placed, rows_of
from radit_jax.planning.estimates import activations_of, dcn_bytes, ici_bytes, weights_of
from radit_jax.planning.resources import Call, ResourceEstimate, StageProgram, estimate, num_bytes
from radit_jax.planning.score import scoring_calls
from radit_jax.runtime.distributed.memory import bytes_per_device
from radit_jax.runtime.distributed.mesh import data_parallel_size


def plan_r_ft(deployment: Deployment) -> ResourceEstimate:
    """Training on the encoders; scoring counts for its memory only.

    How many pairs are new, and so the time that scoring takes, is known only in the run.
    """
    settings = deployment.experiment.r_ft
    mesh = deployment.mesh()
    tower = deployment.encoder(mesh)
    model = tower
    if settings.train_chunk_encoder:
        both = {"query": tower.params, "chunk": tower.params}
        model = tower._replace(params=both)
    training = training_call(deployment, model)
    state, _ = training.arguments
    held = (state, model.params)

    # 1) A chip's peak: the step's activations, or scoring beyond what is held, whichever takes more.
    resident = resident_during_scoring(deployment, held, tower.params)
    scoring, scoring_peak = pair_scoring(deployment, resident)
    step_activations = _activations(deployment, model)
    scoring_activations = scoring_peak - bytes_per_device(held)
    activations = max(step_activations, scoring_activations)

    # 2) One step: it reads the weights once forward and twice backward, and rewrites the state.
    weights = weights_of(model)
    traffic = 3 * weights + 2 * bytes_per_device(state)
    num_slices = deployment.target.num_slices
    program = StageProgram(
        calls=[training, *scoring],
        held=held,
        flops=3 * _flops(deployment, model.module),
        traffic=traffic,
        activations=activations,
        times=settings.optimizer.steps,
        dcn=dcn_bytes(model, num_slices, passes=2, trained=model.params),
        ici=ici_bytes(model, passes=2, trained=model.params),
    )
    # 3) Two checkpoints on disk, the best and the result, and the index in a host's memory.
    checkpoint = num_bytes(state) + num_bytes(model.params)
    disk = 2 * checkpoint
    host = deployment.searching
    return estimate("r_ft", program, model.params, deployment, host=host, disk=disk)


def training_call(deployment: Deployment, model: PlannedModel) -> Call:
    """A step on copies of the towers that learn; the untrained ones stay, to search and validate with."""
    settings = deployment.experiment.r_ft
    # The state has the parameters that learn and the optimizer's moments.
    tx = make_optimizer(settings.optimizer)
    init = functools.partial(init_state, tx=tx)
    state = placed(init, model.mesh, model.params)
    make_step: Any = make_r_ft_step
    if settings.train_chunk_encoder:
        make_step = functools.partial(make_r_ft_text_step, chunk_module=model.module)
    step = make_step(
        model.module,
        tx,
        temperature=deployment.experiment.retrieve.temperature,
        direction=settings.direction,
        state_shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
    )
    batch = _batch(deployment, model)
    # The untrained towers are no argument of the step, and the devices hold them all the same.
    return Call(step, (state, batch), resident=model.params)


def resident_during_scoring(deployment: Deployment, held: Any, query_tower: Any) -> Any:
    """The most that is on the devices while the language model scores; None where it never does.

    A refresh comes between steps. Development questions are scored before there is a state or a chunk
    encoder, and only those of instructions are.
    """
    settings = deployment.experiment.r_ft
    if 0 < settings.refresh_every < settings.optimizer.steps:
        return held
    return query_tower if isinstance(deployment.experiment.data, Instructions) else None


def pair_scoring(deployment: Deployment, resident: Any) -> tuple[Sequence[Call], float]:
    """The calls that score pairs while `resident` is on the devices, and an estimate of a chip's peak bytes.

    There are no calls, and no bytes, where `resident` is None.
    """
    if resident is None:
        return (), 0.0
    settings = deployment.experiment.score
    rows = settings.batch_size
    length = settings.sequence_length
    mesh = deployment.mesh(rows)
    model = deployment.labeller(mesh)
    model = deployment.fitted(model, length)
    activations = activations_of(model, rows, length, training=False)
    peak = bytes_per_device((model.params, resident)) + activations
    return scoring_calls(model, settings, resident), peak


def _batch(deployment: Deployment, model: PlannedModel) -> RftBatch | RftTextBatch:
    """Abstract queries with their chunks, as embeddings or, where the chunk tower learns, as texts.

    Texts have the greatest length, and packed queries the greatest number of rows.
    """
    experiment = deployment.experiment
    retriever = experiment.base.retriever
    rows = experiment.r_ft.batch_size
    num_chunks = experiment.retrieve.num_chunks
    array = functools.partial(rows_of, model.mesh)

    # In the worst case every query has a row of its own.
    query = array((rows, retriever.query_length), jnp.int32)
    queries = PackedTexts(tokens=query, positions=query, texts=query)
    target = array((rows, num_chunks), jnp.float32)
    mask = array((rows, num_chunks), bool)
    if not experiment.r_ft.train_chunk_encoder:
        vector_size = model.module.config.vector_size
        embeddings = array((rows, num_chunks, vector_size), jnp.float32)
        return RftBatch(queries, embeddings, target, mask)

    # Texts of the greatest length.
    text_shape = (rows, num_chunks, retriever.chunk_length)
    tokens = array(text_shape, jnp.int32)
    token_mask = array(text_shape, bool)
    return RftTextBatch(queries, tokens, token_mask, target, mask)


def _flops(deployment: Deployment, module: Any) -> float:
    """Operations of a forward pass over a batch."""
    experiment = deployment.experiment
    retriever = experiment.base.retriever
    rows = experiment.r_ft.batch_size
    num_chunks = rows * _chunks_read(experiment)
    usual_length = min(retriever.chunk_length, deployment.counts.chunk_tokens)
    # Queries are packed, so their rows are full.
    queries = encoder_flops(module.config, rows=rows, length=retriever.query_length)
    chunks = encoder_flops(module.config, rows=num_chunks, length=usual_length)
    return queries + chunks


def _activations(deployment: Deployment, model: PlannedModel) -> float:
    """Bytes of a chip for what the backward pass reads, estimated."""
    experiment = deployment.experiment
    retriever = experiment.base.retriever
    chunk_tokens = _chunks_read(experiment) * retriever.chunk_length
    tokens_per_query = retriever.query_length + chunk_tokens
    all_tokens = experiment.r_ft.batch_size * tokens_per_query
    tokens = all_tokens / data_parallel_size(model.mesh)
    # A layer keeps four arrays as wide as the hidden state, and one as wide as the feed-forward network.
    shape = layers_of(model.module.config)
    width = 4 * shape.hidden_size + shape.ffn_size
    bytes_per_token = 16 * width
    return tokens * shape.num_layers * bytes_per_token


def _chunks_read(experiment: Experiment) -> int:
    """Chunks of a query that a step reads as text: none where only the query tower learns."""
    return experiment.retrieve.num_chunks if experiment.r_ft.train_chunk_encoder else 0
