"""retrieve: a chip encodes the queries of R-ft's examples, and the host searches for them."""

from radit_jax.planning.deployment import EXAMPLE_TOKENS, Deployment
from radit_jax.planning.embed import encoding
from radit_jax.planning.resources import ResourceEstimate, estimate
from radit_jax.retrieval.search import BATCH_SIZE

BYTES_PER_RESULT = 8.0  # a chunk's row and its score


def plan_retrieve(deployment: Deployment) -> ResourceEstimate:
    """The query tower reads each example's query once, in float32."""
    num_examples = deployment.counts.examples
    program = encoding(
        deployment,
        "float32",
        rows=BATCH_SIZE,
        length=deployment.experiment.base.retriever.query_length,
        usual_length=EXAMPLE_TOKENS // 2,  # the other half is the answer
        num_texts=num_examples,
    )
    host = deployment.searching
    disk = BYTES_PER_RESULT * num_examples * deployment.experiment.retrieve.num_chunks
    return estimate("retrieve", program, program.held, deployment.target, host=host, disk=disk)
