"""Shards of a killed run are kept, and what is embedded does not depend on when."""

import json

import numpy as np
import pytest
from exact import assert_rounded
from small import CHUNKS
from two_processes import run_two

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


PROGRAM = """
import json, sys
from radit_jax.runtime.distributed import processes, topology
corpus, retriever, home, port, number = sys.argv[1:]
processes.join_processes(topology.find_topology("127.0.0.1:" + port, 2, int(number)))
from radit_jax.config import EmbedConfig, MeshConfig
from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.runtime.pretrained.tokenizers import Tokenizer
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.stages import embed

read, tokenised, written = [], [], []
def noting(method, notes, of):
    return lambda self, value, *rest: (notes.append(of(value)), method(self, value, *rest))[1]
Chunks.take = noting(Chunks.take, read, list)
Tokenizer.encode_all = noting(Tokenizer.encode_all, tokenised, len)
StageFolder._write = noting(StageFolder._write, written, str)

output = StageFolder(home)
inputs = {"corpus": StageFolder(corpus), "retriever": StageFolder(retriever)}
facts = embed.run(inputs, output, embed=EmbedConfig(batch_size=4, shard_size=4), mesh=MeshConfig())
output.finish()
print(json.dumps({"facts": facts, "read": read, "tokenised": tokenised, "written": written}))
processes.shutdown()
"""


def test_two_processes_make_shards_of_their_own_and_what_one_makes(inputs, output, tmp_path):
    """Each reads, tokenises and writes its own alone: the first and the last, and the one between."""
    embedded(inputs, output)
    together = Workdir(tmp_path / "together").folder("embed", "e")
    paths = [str(folder) for folder in (inputs["corpus"].home, inputs["retriever"].home, together.home)]
    said = [json.loads(printed.splitlines()[-1]) for printed in run_two(PROGRAM, paths)]
    for process, numbers in zip(said, ([0, 2], [1]), strict=True):
        assert process["facts"] == {"chunks": 10, "width": 16, "shards": 3}
        assert process["written"] == [NAMES[number] for number in numbers]
        rows = [list(range(4 * number, min(4 * number + 4, 10))) for number in numbers]
        assert process["read"] == rows
        assert process["tokenised"] == [len(of_shard) for of_shard in rows]
    for name in NAMES:
        both = [folder.map_arrays([name])[0] for folder in (together, output)]
        np.testing.assert_allclose(*both, rtol=0, atol=1e-6)
