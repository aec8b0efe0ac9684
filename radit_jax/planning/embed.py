"""embed: texts through a tower, a batch at a time."""

from radit_jax.models.flops import encoder_flops
from radit_jax.planning.deployment import Site, texts_of
from radit_jax.planning.estimates import weights_of
from radit_jax.planning.resources import Call, Need, Program, need_of
from radit_jax.retrieval.search import encode_batch
from radit_jax.runtime.distributed.mesh import ways


def embed(site: Site) -> Need:
    settings, length = site.experiment.embed, site.experiment.base.retriever.chunk_length
    texts = site.embedded * site.counts.chunks
    program = encoding(site, settings.dtype, settings.batch_size, length, site.counts.chunk_tokens, texts)
    host = site.embeddings / site.counts.chunks * settings.shard_size
    return need_of(
        "embed", program, program.held, site.target, host=host, disk=site.embedded * site.embeddings
    )


def encoding(site: Site, dtype: str, rows: int, length: int, usual: int, texts: int) -> Program:
    """So many texts of up to `length` tokens, of which they have `usual`, in batches of at least `rows`."""
    mesh = site.mesh()
    rows = -(-rows // ways(mesh)) * ways(mesh)  # every chip has its part
    module, params = site.encoder(mesh, dtype)
    return Program(
        calls=[Call(encode_batch, (module, params, *texts_of(mesh, rows, length)))],
        held=params,
        flops=encoder_flops(module.config, rows=rows, length=min(length, usual)),
        traffic=weights_of(module, params, mesh),
        activations=rows / ways(mesh) * length * 8 * module.config.ffn_size,
        times=texts / rows,
    )
