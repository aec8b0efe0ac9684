"""The stages that run no program on a chip: the corpus, the base models, the index and the export."""

from typing import Any

import jax

from radit_jax.planning.deployment import INDEX_SHARE, Site
from radit_jax.planning.resources import Need, count, size
from radit_jax.runtime.distributed.accelerators import GIB
from radit_jax.runtime.distributed.memory import share

BYTES_PER_WORD = 6.0


def corpus(site: Site) -> Need:
    return Need("corpus", disk=site.counts.chunks * site.counts.chunk_words * BYTES_PER_WORD)


def base(site: Site) -> Need:
    """A checkpoint is read a layer at a time, straight to its shards."""
    params, tower = _models(site)
    layer = max(size(leaf) / leaf.shape[0] for leaf in jax.tree.leaves(params) if len(leaf.shape) == 3)
    held = share(params) + 2 * share(tower)
    disk = size(params) + 2 * size(tower)
    return Need("base", count(params) + 2 * count(tower), held, held, host=1.3 * layer + GIB / 4, disk=disk)


def index(site: Site) -> Need:
    return Need("index", host=site.indexing, disk=site.embedded * INDEX_SHARE * site.embeddings)


def export(site: Site) -> Need:
    """Our form of the models and Hugging Face's, chunks and their embeddings; a host reads a whole model."""
    params, tower = _models(site)
    numbers, settings = count(params) + 3 * count(tower), site.experiment.export
    width = 4 + settings.hf * {"float32": 4, "bfloat16": 2}[settings.dtype]
    host = max(map(size, jax.tree.leaves(params))) + GIB / 4
    disk = numbers * width + site.embeddings + corpus(site).disk
    held = settings.hf * size(params) / min(site.target.num_chips, site.target.chip.chips_per_host)
    return Need("export", numbers, held, held, host=host, disk=disk)


def _models(site: Site) -> tuple[Any, Any]:
    """The shapes of the language model and of a tower."""
    mesh = site.mesh()
    return site.llama(mesh, "float32")[1], site.encoder(mesh)[1]
