"""evaluate: prompts are read, answers decoded and scored, by two language models."""

import jax
import jax.numpy as jnp

from radit_jax.config import ScoreConfig
from radit_jax.method.decode import ROWS, Transfer, prefill
from radit_jax.models.flops import training_flops
from radit_jax.planning.need import Call, Need, Program, need_of
from radit_jax.planning.packed import activations_of, weights_of
from radit_jax.planning.score import scoring_calls
from radit_jax.planning.site import Site, rows_of
from radit_jax.runtime.mesh import row_layout, ways


def evaluate(site: Site) -> Need:
    """The base and the tuned model are on the devices together.

    The caches of a batch's prompts are held until its answers have been scored, beside two copies of those of
    the part that is being decoded.
    """
    settings = site.experiment.evaluate
    length = settings.sequence_length
    packed = ScoreConfig(batch_size=settings.batch_size, sequence_length=length)
    mesh = site.mesh(packed.batch_size)
    rows = Transfer(ways=ways(mesh)).rows(min(ROWS, settings.prompts_per_batch))
    parts = -(-settings.prompts_per_batch // rows)
    module, params = site.llama(mesh, packed.dtype)
    if site.target.topology:
        module = module.clone(layout=row_layout(mesh))
    prompts = rows_of(mesh, (rows, length), jnp.int32), rows_of(mesh, (rows,), jnp.int32)
    read = jax.jit(prefill, static_argnames="module")
    reading = Call(read, (module, params, *prompts), beside=params, results=parts + 2)
    scoring = scoring_calls(site.fitted(module, mesh, length), params, packed, mesh, beside=params)
    shape = module.config
    cache = 2 * 4 * rows * length * shape.num_layers * shape.num_kv_heads * shape.head_size
    usual = min(length, site.counts.pair_tokens)
    attended = rows * usual * (usual + 1) / 2
    program = Program(
        calls=[reading, *scoring],
        held=(params, params),
        flops=training_flops(shape, tokens=rows * usual, attended=attended, targets=rows) / 3,
        traffic=(1 + settings.max_new_tokens) * weights_of(module, params, mesh),
        activations=reading.results * cache / site.target.num_chips
        + activations_of(module, mesh, max(rows, ways(mesh)), length, training=False),
        times=5 * site.counts.questions * settings.chunks_per_answer / rows,
    )
    disk = 5e3 * site.counts.questions
    return need_of("evaluate", program, params, site.target, host=site.searching, disk=disk)
