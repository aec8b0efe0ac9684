"""A host's share of 399M chunks, by hand: 82 words a chunk, and 0.4 of the chips' peak."""

from dataclasses import replace

import pytest

from radit_jax import config
from radit_jax.planning.assumptions import Assumptions, assume
from radit_jax.planning.deployment import Counts, Deployment
from radit_jax.planning.share import host_share
from radit_jax.runtime.distributed.accelerators import GB, find_target

COUNTS = Counts(chunks=399_000_000, chunk_words=82, examples=947_000, questions=1000)
EXPERIMENT = config.load_experiment("radit_7b")


def share_on(name, assumptions=None):
    target = replace(find_target(name), topology="")
    return host_share(Deployment(EXPERIMENT, target, COUNTS, assumptions or Assumptions()))


# 399M chunks of 82 words at 4.33 bytes; 768 numbers of two bytes each; and of 111 tokens with 12 layers.
@pytest.mark.parametrize(
    ("target", "hosts", "text", "embeddings", "resident", "embedding", "search"),
    [
        ("h200-8", 1, 142, 613, 76.6, 40, 3.1),
        ("h100-64", 8, 17.7, 76.6, 9.6, 5, 0.38),
        ("v5e-256", 64, 2.2, 9.6, 2.4, 6.3, 0.48),
    ],
)
def test_a_host_has_one_part_of_as_many_as_there_are_hosts(
    target, hosts, text, embeddings, resident, embedding, search
):
    assert find_target(target).num_hosts == hosts
    share = share_on(target)
    assert share.text / GB == pytest.approx(text, rel=0.02)
    assert share.embeddings / GB == pytest.approx(embeddings, rel=0.01)
    assert share.resident / GB == pytest.approx(resident, rel=0.01)
    assert share.embedding_seconds / 60 == pytest.approx(embedding, rel=0.03)
    assert share.search_seconds / 60 == pytest.approx(search, rel=0.03)


def test_the_chips_take_longer_where_less_of_their_peak_is_assumed():
    half = share_on("v5e-256", assume(["mfu=0.2"]))
    assert half.embedding_seconds == pytest.approx(2 * share_on("v5e-256").embedding_seconds)
    assert half.text == share_on("v5e-256").text
