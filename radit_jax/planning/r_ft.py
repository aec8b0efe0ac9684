"""r_ft: the query tower's training step over stored embeddings, or both towers' over texts, and scoring."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from radit_jax.config import Instructions
from radit_jax.method.optimizers import make_optimizer
from radit_jax.method.steps import RftBatch, RftTextBatch, init_state, make_r_ft_step, make_r_ft_text_step
from radit_jax.models.bert import PackedTexts
from radit_jax.models.flops import encoder_flops
from radit_jax.planning.deployment import Deployment, placed, rows_of
from radit_jax.planning.estimates import activations_of, weights_of
from radit_jax.planning.resources import Call, ResourceEstimate, StageProgram, estimate, num_bytes
from radit_jax.planning.score import scoring_calls
from radit_jax.runtime.distributed.memory import bytes_per_device
from radit_jax.runtime.distributed.mesh import data_parallel_size


def plan_r_ft(site: Deployment) -> ResourceEstimate:
    """Scoring counts for the memory only: how many pairs are new, and so its time, only the run knows."""
    settings, mesh = site.experiment.r_ft, site.mesh()
    module, tower = site.encoder(mesh)
    params = {"query": tower, "chunk": tower} if settings.train_chunk_encoder else tower
    training = training_call(site, module, params, mesh)
    state, _ = training.arguments
    held = (state, params)
    scoring, scoring_peak = scoring_beside(site, during_scoring(site, state, params, tower))
    program = StageProgram(
        calls=[training, *scoring],
        held=held,
        flops=3 * _flops(site, module),
        traffic=3 * weights_of(module, params, mesh) + 2 * bytes_per_device(state),
        activations=max(_activations(site, module, mesh), scoring_peak - bytes_per_device(held)),
        times=settings.optimizer.steps,
    )
    kept = 2 * (num_bytes(state) + num_bytes(params))
    return estimate("r_ft", program, params, site.target, host=site.searching, disk=kept)


def training_call(site: Deployment, module: Any, params: Any, mesh: Any) -> Call:
    """A step on copies of the towers that learn; as they came they stay beside, to search and validate."""
    settings = site.experiment.r_ft
    tx = make_optimizer(settings.optimizer)
    state = placed(lambda tree: init_state(tree, tx), mesh, params)
    make_step = make_r_ft_text_step if settings.train_chunk_encoder else make_r_ft_step
    step = make_step(
        module,
        tx,
        temperature=settings.temperature,
        direction=settings.direction,
        state_shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
    )
    return Call(step, (state, _batch(site, mesh, module.config.vector_size)), beside=params)


def during_scoring(site: Deployment, state: Any, params: Any, tower: Any) -> Any:
    """What lies on the devices at the most while the language model scores; None where it never does.

    A refresh comes between steps. Development questions are scored before there is a state or a chunk
    encoder, and only those of instructions are.
    """
    settings = site.experiment.r_ft
    if 0 < settings.refresh_every < settings.optimizer.steps:
        return state, params
    return tower if isinstance(site.experiment.data, Instructions) else None


def scoring_beside(site: Deployment, beside: Any) -> tuple[Sequence[Call], float]:
    """What scores pairs, and about the bytes of a chip that it takes; nothing for a `beside` of None."""
    if beside is None:
        return (), 0.0
    settings = site.experiment.score
    rows, length = settings.batch_size, settings.sequence_length
    mesh = site.mesh(rows)
    module, params = site.llama(mesh, settings.dtype)
    module = site.fitted(module, mesh, length)
    peak = bytes_per_device((params, beside)) + activations_of(module, mesh, rows, length, training=False)
    return scoring_calls(module, params, settings, mesh, beside=beside), peak


def _batch(site: Deployment, mesh: Any, width: int) -> RftBatch | RftTextBatch:
    """Queries with their chunks, as embeddings of `width` or as texts that are as long as they may be."""
    settings, retriever = site.experiment.r_ft, site.experiment.base.retriever
    rows, k = settings.batch_size, site.experiment.retrieve.num_chunks
    # Queries share rows; how many it takes only they know, and a row each is the most.
    query = rows_of(mesh, (rows, retriever.query_length), jnp.int32)
    queries = PackedTexts(*(query for _ in PackedTexts._fields))
    target, mask = (rows_of(mesh, (rows, k), dtype) for dtype in (jnp.float32, bool))
    if not settings.train_chunk_encoder:
        return RftBatch(queries, rows_of(mesh, (rows, k, width), jnp.float32), target, mask)
    tokens, token_mask = (
        rows_of(mesh, (rows, k, retriever.chunk_length), dtype) for dtype in (jnp.int32, bool)
    )
    return RftTextBatch(queries, tokens, token_mask, target, mask)


def _flops(site: Deployment, module: Any) -> float:
    """Operations that read a batch once."""
    settings, retriever = site.experiment.r_ft, site.experiment.base.retriever
    rows, usual = settings.batch_size, min(retriever.chunk_length, site.counts.chunk_tokens)
    chunks = rows * site.experiment.retrieve.num_chunks * settings.train_chunk_encoder
    queries = encoder_flops(module.config, rows=rows, length=retriever.query_length)
    return queries + encoder_flops(module.config, rows=chunks, length=usual)


def _activations(site: Deployment, module: Any, mesh: Any) -> float:
    """Bytes of a chip for what the backward pass reads, about."""
    settings, retriever, shape = site.experiment.r_ft, site.experiment.base.retriever, module.config
    chunks = site.experiment.retrieve.num_chunks * settings.train_chunk_encoder
    tokens = (
        settings.batch_size
        * (retriever.query_length + chunks * retriever.chunk_length)
        / data_parallel_size(mesh)
    )
    return tokens * shape.num_layers * 16 * (4 * shape.hidden_size + shape.ffn_size)
