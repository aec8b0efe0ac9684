"""retrieve: the queries of R-ft's examples, encoded, and searched for by the host."""

from radit_jax.planning.deployment import EXAMPLE_TOKENS, Deployment
from radit_jax.planning.embed import encoding
from radit_jax.planning.resources import ResourceEstimate, estimate
from radit_jax.retrieval.search import BATCH_SIZE


def plan_retrieve(site: Deployment) -> ResourceEstimate:
    length, examples = site.experiment.base.retriever.query_length, site.counts.examples
    program = encoding(site, "float32", BATCH_SIZE, length, EXAMPLE_TOKENS // 2, examples)
    disk = 8.0 * examples * site.experiment.retrieve.num_chunks
    return estimate("retrieve", program, program.held, site.target, host=site.searching, disk=disk)
