"""embed: texts through a tower, a batch at a time."""

from radit_jax.config import layers_of
from radit_jax.models.flops import encoder_flops
from radit_jax.planning.deployment import Deployment, texts_of
from radit_jax.planning.estimates import dcn_bytes, ici_bytes, weights_of
from radit_jax.planning.resources import (
    Call,
    Number,
    ResourceEstimate,
    StageProgram,
    estimate,
    in_parts,
    num_bytes,
)
from radit_jax.retrieval.search import encode_batch
from radit_jax.runtime.distributed.mesh import data_parallel_size


def plan_embed(deployment: Deployment) -> ResourceEstimate:
    """The chunk tower reads the corpus once, or twice where R-ft tunes it too.

    Every host embeds shards of its own, with a tower on its own chips.
    """
    settings = deployment.experiment.embed
    counts, assumed = deployment.counts, deployment.assumptions
    place, num_parts = deployment.apart(num_bytes(deployment.tower_params))
    # 1) One host's texts, and its part of a batch.
    num_texts = deployment.embedded * counts.chunks / num_parts
    tokenizing = num_texts * counts.chunk_words * assumed.tokenize_word
    program = encoding(
        place,
        settings.dtype,
        rows=-(-settings.batch_size // num_parts),
        length=deployment.experiment.base.retriever.chunk_length,
        usual_length=counts.chunk_tokens,
        num_texts=num_texts,
        host_seconds=tokenizing / deployment.target.cpus,
    )
    program = in_parts(program, num_parts)
    # 2) A host holds the embeddings of one shard until they are written.
    host = deployment.embeddings / counts.chunks * settings.shard_size
    disk = deployment.embedded * deployment.embeddings
    return estimate("embed", program, program.held, deployment, host=host, disk=disk)


def encoding(
    deployment: Deployment,
    dtype: str,
    *,
    rows: int,
    length: int,
    usual_length: int,
    num_texts: Number,
    host_seconds: Number = 0.0,
) -> StageProgram:
    """`num_texts` texts through a tower, in batches of at least `rows`.

    A text has up to `length` tokens, which its row is padded to, and on average `usual_length`. A host works
    `host_seconds` for all of them.
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
        ici=ici_bytes(model, passes=1),
        host_seconds=host_seconds,
    )
