"""r_ft: the query tower's training step over stored embeddings, or both towers' over texts; and scoring."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from radit_jax.config import Instructions
from radit_jax.method.steps import (
    RftBatch,
    RftTextBatch,
    init_state,
    make_optimizer,
    make_r_ft_step,
    make_r_ft_text_step,
)
from radit_jax.models.bert import PackedTexts
from radit_jax.models.flops import encoder_flops
from radit_jax.planning.need import Call, Need, Program, need_of, size
from radit_jax.planning.packed import activations_of, weights_of
from radit_jax.planning.score import scoring_calls
from radit_jax.planning.site import Site, placed, rows_of
from radit_jax.runtime.memory import share
from radit_jax.runtime.mesh import ways


def r_ft(site: Site) -> Need:
    settings, mesh = site.experiment.r_ft, site.mesh()
    module, params = site.encoder(mesh)
    both = settings.train_chunk_encoder
    tx, make = make_optimizer(settings.optimizer), make_r_ft_text_step if both else make_r_ft_step
    towers = {"query": params, "chunk": params} if both else params
    state = placed(lambda tree: init_state(tree, tx), mesh, towers)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make(
        module, tx, temperature=settings.temperature, direction=settings.direction, state_shardings=shardings
    )
    scoring, scoring_memory = _scoring(site, beside=state)
    texts, config = _texts(site), module.config
    tokens = sum(rows * length for rows, length in texts) / ways(mesh)
    learning_memory = tokens * config.num_layers * 16 * (4 * config.hidden_size + config.ffn_size)
    program = Program(
        calls=[Call(step, (state, _batch(site, mesh)), beside=towers), *scoring],
        held=(state, towers),
        flops=3 * sum(encoder_flops(config, rows=rows, length=length) for rows, length in texts),
        traffic=3 * weights_of(module, towers, mesh) + 2 * share(state),
        activations=max(learning_memory, scoring_memory),
        times=settings.optimizer.steps,
    )
    kept = 2 * (size(state) + size(towers))
    return need_of("r_ft", program, towers, site.target, host=site.searching, disk=kept)


def _texts(site: Site) -> list[tuple[int, int]]:
    """How many texts a step encodes, and of how many tokens: queries, and chunks if their encoder learns."""
    settings, retriever = site.experiment.r_ft, site.experiment.base.retriever
    chunks = settings.batch_size * site.experiment.retrieve.num_chunks
    of_chunks = [(chunks, retriever.chunk_length)] if settings.train_chunk_encoder else []
    return [(settings.batch_size, retriever.query_length), *of_chunks]


def _batch(site: Site, mesh: Any) -> RftBatch | RftTextBatch:
    """A step's batch as shapes. Queries share rows; how many only they know, and a row each is the most."""
    retriever = site.experiment.base.retriever
    rows, k = site.experiment.r_ft.batch_size, site.experiment.retrieve.num_chunks
    length = retriever.query_length
    queries = PackedTexts(*(rows_of(mesh, (rows, length), jnp.int32) for _ in PackedTexts._fields))
    target, mask = rows_of(mesh, (rows, k), jnp.float32), rows_of(mesh, (rows, k), bool)
    if site.experiment.r_ft.train_chunk_encoder:
        shape = (rows, k, retriever.chunk_length)
        chunks = rows_of(mesh, shape, jnp.int32), rows_of(mesh, shape, bool)
        return RftTextBatch(queries, *chunks, target, mask)
    width = site.encoder(mesh)[0].config.hidden_size
    return RftBatch(queries, rows_of(mesh, (rows, k, width), jnp.float32), target, mask)


def _scoring(site: Site, beside: Any) -> tuple[Sequence[Call], float]:
    """How the language model scores refreshed candidates, or those of development questions that were drawn
    with examples; and the bytes of a chip that this takes, as an estimate."""
    experiment = site.experiment
    if not experiment.r_ft.refresh_every and not isinstance(experiment.data, Instructions):
        return [], 0.0
    settings, length = experiment.score, experiment.score.sequence_length
    mesh = site.mesh(settings.batch_size)
    module, params = site.llama(mesh, settings.dtype)
    calls = scoring_calls(site.fitted(module, mesh, length), params, settings, mesh, beside=beside)
    activations = activations_of(module, mesh, settings.batch_size, length, training=False)
    return calls, share(params) + activations
