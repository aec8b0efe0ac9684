"""The stages that run no program on a chip: the corpus, the base models, the index and the export."""

from typing import Any

import jax

from radit_jax.planning.deployment import INDEX_SHARE, Deployment
from radit_jax.planning.resources import ResourceEstimate, num_bytes, num_parameters
from radit_jax.runtime.distributed.accelerators import GIB
from radit_jax.runtime.distributed.memory import bytes_per_device

BYTES_PER_WORD = 6.0


def plan_corpus(site: Deployment) -> ResourceEstimate:
    return ResourceEstimate("corpus", disk=site.counts.chunks * site.counts.chunk_words * BYTES_PER_WORD)


def plan_base(site: Deployment) -> ResourceEstimate:
    """A checkpoint is read a layer at a time, straight to its shards."""
    params, tower = _models(site)
    layer = max(num_bytes(leaf) / leaf.shape[0] for leaf in jax.tree.leaves(params) if len(leaf.shape) == 3)
    held = bytes_per_device(params) + 2 * bytes_per_device(tower)
    disk = num_bytes(params) + 2 * num_bytes(tower)
    return ResourceEstimate(
        "base",
        num_parameters(params) + 2 * num_parameters(tower),
        held,
        held,
        host=1.3 * layer + GIB / 4,
        disk=disk,
    )


def plan_index(site: Deployment) -> ResourceEstimate:
    return ResourceEstimate("index", host=site.indexing, disk=site.embedded * INDEX_SHARE * site.embeddings)


def plan_export(site: Deployment) -> ResourceEstimate:
    """Our form of the models and Hugging Face's, chunks and their embeddings; a host reads a whole model."""
    params, tower = _models(site)
    numbers, settings = num_parameters(params) + 3 * num_parameters(tower), site.experiment.export
    width = 4 + settings.hf * {"float32": 4, "bfloat16": 2}[settings.dtype]
    host = max(map(num_bytes, jax.tree.leaves(params))) + GIB / 4
    disk = numbers * width + site.embeddings + plan_corpus(site).disk
    held = settings.hf * num_bytes(params) / min(site.target.num_chips, site.target.chip.chips_per_host)
    return ResourceEstimate("export", numbers, held, held, host=host, disk=disk)


def _models(site: Deployment) -> tuple[Any, Any]:
    """The shapes of the language model and of a tower."""
    mesh = site.mesh()
    return site.llama(mesh, "float32")[1], site.encoder(mesh)[1]
