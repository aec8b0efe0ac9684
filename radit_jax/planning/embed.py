"""embed: texts through a tower, a batch at a time."""

from radit_jax.models.flops import encoder_flops
from radit_jax.planning.deployment import Deployment, texts_of
from radit_jax.planning.estimates import weights_of
from radit_jax.planning.resources import Call, ResourceEstimate, StageProgram, estimate
from radit_jax.retrieval.search import encode_batch
from radit_jax.runtime.distributed.mesh import data_parallel_size


def plan_embed(site: Deployment) -> ResourceEstimate:
    settings, length = site.experiment.embed, site.experiment.base.retriever.chunk_length
    texts = site.embedded * site.counts.chunks
    program = encoding(site, settings.dtype, settings.batch_size, length, site.counts.chunk_tokens, texts)
    host = site.embeddings / site.counts.chunks * settings.shard_size
    return estimate(
        "embed", program, program.held, site.target, host=host, disk=site.embedded * site.embeddings
    )


def encoding(site: Deployment, dtype: str, rows: int, length: int, usual: int, texts: int) -> StageProgram:
    """So many texts of up to `length` tokens, of which they have `usual`, in batches of at least `rows`."""
    mesh = site.mesh()
    rows = -(-rows // data_parallel_size(mesh)) * data_parallel_size(mesh)  # every chip has its part
    module, params = site.encoder(mesh, dtype)
    return StageProgram(
        calls=[Call(encode_batch, (module, params, *texts_of(mesh, rows, length)))],
        held=params,
        flops=encoder_flops(module.config, rows=rows, length=min(length, usual)),
        traffic=weights_of(module, params, mesh),
        activations=rows / data_parallel_size(mesh) * length * 8 * module.config.ffn_size,
        times=texts / rows,
    )
