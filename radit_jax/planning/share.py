"""A host's share of a corpus whose shards hosts own: each has 1/N of the text, the vectors and the search.

It is what the design aims at, beside what `table.py` says of the stages as they are.
"""

from typing import NamedTuple

from radit_jax.models.flops import encoder_flops
from radit_jax.planning.deployment import Deployment
from radit_jax.planning.files import chunk_bytes


class HostShare(NamedTuple):
    """One host's part: bytes, and seconds of the chips at the assumed share of their peak."""

    text: float  # bytes of chunks in their files, read once
    embeddings: float  # bytes of vectors of 16 bits, written once and read once
    resident: float  # of these, the bytes of a chip that searches them
    embedding_seconds: float
    search_seconds: float  # products of every example's query with every vector, without choosing among them


def host_share(deployment: Deployment) -> HostShare:
    """The share of each of the target's hosts."""
    target, counts = deployment.target, deployment.counts
    vectors = deployment.embeddings / 2
    # 1) Operations of all hosts: a multiply-add is two.
    shape = deployment.encoder(deployment.mesh()).module.config
    per_chunk = encoder_flops(shape, rows=1, length=counts.chunk_tokens)
    products = counts.examples * deployment.embeddings / 4
    # 2) What all chips do in a second.
    speed = target.num_chips * target.chip.flops * deployment.assumptions.mfu
    return HostShare(
        text=chunk_bytes(deployment) / target.num_hosts,
        embeddings=vectors / target.num_hosts,
        resident=vectors / target.num_chips,
        embedding_seconds=counts.chunks * per_chunk / speed,
        search_seconds=2 * products / speed,
    )
