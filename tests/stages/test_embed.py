"""Shards of a killed run are kept, and what is embedded does not depend on when."""

import numpy as np
import pytest
from exact import assert_rounded
from small import CHUNKS

from radit_jax.config import EmbedConfig, MeshConfig
from radit_jax.runtime.storage.workdir import Workdir
from radit_jax.stages import embed

SETTINGS = EmbedConfig(batch_size=2, shard_size=4)  # ten chunks: shards of 4, 4 and 2
NAMES = [f"embeddings-{number:05d}-of-00003.npy" for number in range(3)]


def embedded(inputs, output):
    return embed.run(inputs, output, embed=SETTINGS, mesh=MeshConfig())


@pytest.fixture
def output(tmp_path):
    return Workdir(tmp_path).folder("embed", "e")


def test_there_is_a_vector_for_each_chunk_in_the_order_of_the_corpus(inputs, searcher64, output):
    assert embedded(inputs, output) == {"chunks": 10, "width": 16, "shards": 3}
    shards = [output.map_arrays([name])[0] for name in NAMES]
    assert [len(shard) for shard in shards] == [4, 4, 2]
    exact, passages = searcher64.encoder, [chunk.passage for chunk in CHUNKS]
    assert_rounded(np.concatenate(shards), lambda p: exact.with_params(p).embed(passages), exact.model.params)


def test_a_run_that_goes_on_makes_the_missing_shards_alone_and_the_same_bytes(inputs, output, tmp_path):
    embedded(inputs, output)
    killed = Workdir(tmp_path / "killed").folder("embed", "e")
    mark = np.full((4, 16), 7.0, np.float32)
    killed.write_array(NAMES[1], mark)  # as a run that was killed may have left the second
    embedded(inputs, killed)
    np.testing.assert_array_equal(killed.map_arrays([NAMES[1]])[0], mark)
    for name in (NAMES[0], NAMES[2]):
        assert killed.read(name) == output.read(name)


def test_a_finished_set_of_shards_is_left_as_it_is(inputs, output):
    embedded(inputs, output)
    before = [output.read(name) for name in NAMES]
    assert embedded(inputs, output)["shards"] == 3
    assert [output.read(name) for name in NAMES] == before
