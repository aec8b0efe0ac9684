"""r_ft: the query tower's training step over stored embeddings, or both towers' over texts."""

import jax
import jax.numpy as jnp

from radit_jax.method.steps import RftBatch, init_state, make_optimizer, make_r_ft_step
from radit_jax.models.bert import PackedTexts
from radit_jax.models.flops import encoder_flops
from radit_jax.planning.need import Call, Need, Program, need_of, size
from radit_jax.planning.packed import weights_of
from radit_jax.planning.site import Site, placed, rows_of
from radit_jax.runtime.memory import share
from radit_jax.runtime.mesh import ways


def r_ft(site: Site) -> Need:
    settings, mesh = site.experiment.r_ft, site.mesh()
    rows, length = settings.batch_size, site.experiment.base.retriever.query_length
    module, params = site.encoder(mesh)
    k, width = site.experiment.retrieve.num_chunks, module.config.hidden_size
    tx = make_optimizer(settings.optimizer)
    state = placed(lambda tree: init_state(tree, tx), mesh, params)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_r_ft_step(
        module, tx, temperature=settings.temperature, direction=settings.direction, state_shardings=shardings
    )
    of_chunks = ((rows, k, width), jnp.float32), ((rows, k), jnp.float32), ((rows, k), bool)
    # Queries share rows; how many it takes only they know, and a row each is the most.
    queries = PackedTexts(*(rows_of(mesh, (rows, length), jnp.int32) for _ in PackedTexts._fields))
    batch = RftBatch(queries, *(rows_of(mesh, *spec) for spec in of_chunks))
    tokens = rows * length / ways(mesh)
    program = Program(
        calls=[Call(step, (state, batch), beside=params)],
        held=(state, params),
        flops=3 * encoder_flops(module.config, rows=rows, length=length),
        traffic=3 * weights_of(module, params, mesh) + 2 * share(state),
        activations=tokens * module.config.num_layers * 16 * (4 * width + module.config.ffn_size),
        times=settings.optimizer.steps,
    )
    kept = 2 * (size(state) + size(params))
    return need_of("r_ft", program, params, site.target, host=site.searching, disk=kept)
