"""embed: texts through a tower, a batch at a time."""

from radit_jax.config import layers_of
from radit_jax.models.flops import encoder_flops
from radit_jax.planning.deployment import Deployment, texts_of
from radit_jax.planning.estimates import dcn_bytes, weights_of
from radit_jax.planning.resources import Call, ResourceEstimate, StageProgram, estimate
from radit_jax.retrieval.search import encode_batch
from radit_jax.runtime.distributed.mesh import data_parallel_size


def plan_embed(deployment: Deployment) -> ResourceEstimate:
    """The chunk tower reads the corpus once, or twice where R-ft tunes it too."""
    settings = deployment.experiment.embed
    counts = deployment.counts
    program = encoding(
        deployment,
        settings.dtype,
        rows=settings.batch_size,
        length=deployment.experiment.base.retriever.chunk_length,
        usual_length=counts.chunk_tokens,
        num_texts=deployment.embedded * counts.chunks,
    )
    # A host holds the embeddings of one shard until they are written.
    host = deployment.embeddings / counts.chunks * settings.shard_size
    disk = deployment.embedded * deployment.embeddings
    return estimate("embed", program, program.held, deployment.target, host=host, disk=disk)


def encoding(
    deployment: Deployment, dtype: str, *, rows: int, length: int, usual_length: int, num_texts: int
) -> StageProgram:
    """`num_texts` texts through a tower, in batches of at least `rows`.

    A text has up to `length` tokens, which its row is padded to, and on average `usual_length`.
    """
    mesh = deployment.mesh()
    num_groups = data_parallel_size(mesh)
    rows_per_group = -(-rows // num_groups)
    rows = rows_per_group * num_groups  # every chip has its part
    model = deployment.encoder(mesh, dtype)
    tokens, mask = texts_of(mesh, rows, length)
    encode = Call(encode_batch, (model.module, model.params, tokens, mask))
    # Twice a layer's widest array in float32, which is the feed-forward network's.
    config = model.module.config
    bytes_per_token = 8 * layers_of(config).ffn_size
    return StageProgram(
        calls=[encode],
        held=model.params,
        flops=encoder_flops(config, rows=rows, length=min(length, usual_length)),
        traffic=weights_of(model),
        activations=rows / num_groups * length * bytes_per_token,
        times=num_texts / rows,
        dcn=dcn_bytes(model, deployment.target.num_slices, passes=1),
    )
