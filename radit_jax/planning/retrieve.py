"""retrieve: the queries of R-ft's examples, encoded, and searched for by the host."""

from radit_jax.planning.deployment import EXAMPLE_TOKENS, Site
from radit_jax.planning.embed import encoding
from radit_jax.planning.resources import Need, need_of
from radit_jax.retrieval.search import BATCH_SIZE


def retrieve(site: Site) -> Need:
    length, examples = site.experiment.base.retriever.query_length, site.counts.examples
    program = encoding(site, "float32", BATCH_SIZE, length, EXAMPLE_TOKENS // 2, examples)
    disk = 8.0 * examples * site.experiment.retrieve.num_chunks
    return need_of("retrieve", program, program.held, site.target, host=site.searching, disk=disk)
