"""The stages that run no program on a chip: the corpus, the base models, the index and the export."""

import jax

from radit_jax.planning.deployment import Deployment
from radit_jax.planning.files import chunk_bytes, index_bytes
from radit_jax.planning.resources import ResourceEstimate, num_bytes, num_parameters
from radit_jax.runtime.distributed.accelerators import GIB
from radit_jax.runtime.distributed.memory import bytes_per_device

BYTES_PER_NUMBER = {"float32": 4, "bfloat16": 2}


def plan_corpus(deployment: Deployment) -> ResourceEstimate:
    """The chunks' text is cut by all cores of the first host, and written by one process."""
    counts, assumed = deployment.counts, deployment.assumptions
    words = counts.chunks * counts.chunk_words
    cutting = words * assumed.cut_word / deployment.target.cpus
    seconds = max(cutting, words * assumed.write_word)
    return ResourceEstimate("corpus", disk=chunk_bytes(deployment), realistic=seconds, limit="host")


def plan_base(deployment: Deployment) -> ResourceEstimate:
    """The base models in float32, read from checkpoints one layer of one kernel at a time.

    Each layer goes straight to its shards. So a chip needs only what it holds in the end, and a host the
    largest such layer, with a margin. A labeller is kept in the dtype that it computes in.
    """
    lm, tower = deployment.lm_params, deployment.tower_params
    lms = [lm]
    if deployment.experiment.score.checkpoint:
        lms.append(deployment.labeller_params)
    # A kernel is (L, in, out), all layers stacked.
    layer_bytes = []
    for leaf in jax.tree.leaves(lms):
        if len(leaf.shape) == 3:
            layer_bytes.append(num_bytes(leaf) / leaf.shape[0])
    # The retriever has two towers. A chip has one language model at a time.
    params = sum(map(num_parameters, lms)) + 2 * num_parameters(tower)
    disk = sum(map(num_bytes, lms)) + 2 * num_bytes(tower)
    held = max(map(bytes_per_device, lms)) + 2 * bytes_per_device(tower)
    return ResourceEstimate(
        "base",
        params=params,
        held=held,
        peak=held,
        host=1.3 * max(layer_bytes) + GIB / 4,
        disk=disk,
    )


def plan_index(deployment: Deployment) -> ResourceEstimate:
    """ScaNN's trees over the embeddings; every host builds those of its shards."""
    disk = deployment.embedded * index_bytes(deployment)
    vectors = deployment.embedded * deployment.counts.chunks
    hosts = min(deployment.target.num_hosts, deployment.num_shards)
    seconds = vectors * deployment.assumptions.index_vector / (deployment.target.cpus * hosts)
    return ResourceEstimate("index", host=deployment.indexing, disk=disk, realistic=seconds, limit="host")


def plan_export(deployment: Deployment) -> ResourceEstimate:
    """The models in our form and Hugging Face's, the chunks, and their embeddings.

    A host reads a whole model for Hugging Face's form, and only for that.
    """
    settings = deployment.experiment.export
    lm, tower = deployment.lm_params, deployment.tower_params
    # Three towers: the base query encoder and both of the tuned retriever.
    params = num_parameters(lm) + 3 * num_parameters(tower)
    disk = held = 0.0
    if settings.hf:
        target = deployment.target
        disk = params * BYTES_PER_NUMBER[settings.dtype]
        held = num_bytes(lm) / min(target.num_chips, target.chip.chips_per_host)
    # A host's memory has one array at a time.
    largest_array = max(map(num_bytes, jax.tree.leaves(lm)))
    # Weights, chunks, embeddings and trees are further names of the stages' own files.
    linked = 4 * params + chunk_bytes(deployment) + deployment.embeddings + index_bytes(deployment)
    return ResourceEstimate(
        "export",
        params=params,
        held=held,
        peak=held,
        host=largest_array + GIB / 4,
        disk=disk,
        linked=linked,
    )
