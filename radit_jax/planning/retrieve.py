"""retrieve: a chip encodes the queries of R-ft's examples, and the host searches for them."""

from radit_jax.planning.deployment import EXAMPLE_TOKENS, Deployment
from radit_jax.planning.embed import encoding
from radit_jax.planning.files import retrieved_bytes
from radit_jax.planning.resources import ResourceEstimate, estimate
from radit_jax.retrieval.search import BATCH_SIZE


def plan_retrieve(deployment: Deployment) -> ResourceEstimate:
    """The query tower reads each example's query once, in float32, and each host searches its own shards."""
    num_examples = deployment.counts.examples
    searching = num_examples * deployment.shards_per_host * deployment.assumptions.search_shard
    program = encoding(
        deployment,
        "float32",
        rows=BATCH_SIZE,
        length=deployment.experiment.base.retriever.query_length,
        usual_length=EXAMPLE_TOKENS // 2,  # the other half is the answer
        num_texts=num_examples,
        host_seconds=searching / deployment.target.cpus,
    )
    host = deployment.searching
    disk = retrieved_bytes(deployment, deployment.experiment.retrieve.num_chunks)
    return estimate("retrieve", program, program.held, deployment, host=host, disk=disk)
