"""The stage's folder is what a searcher opens, whatever index was asked for."""

import numpy as np
import pytest
from small import CHUNKS

from radit_jax.config import IndexConfig, MeshConfig
from radit_jax.retrieval.exact import ExactIndex
from radit_jax.retrieval.index import index_files, neighbour_recall
from radit_jax.retrieval.search import Searcher
from radit_jax.runtime.storage.workdir import Workdir
from radit_jax.stages import index

PASSAGES = [chunk.passage for chunk in CHUNKS]


@pytest.mark.parametrize(("kind", "trees"), [("exact", 0), ("scann", 3)])
def test_the_index_of_the_stage_finds_what_the_embeddings_say(inputs, searcher, tmp_path, kind, trees):
    pytest.importorskip("scann")
    workdir = Workdir(tmp_path)
    embedded, output = (workdir.folder(stage, "0123456789ab") for stage in ("embed", "index"))
    embeddings = np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32)
    for number, part in enumerate(np.array_split(embeddings, 2)):
        embedded.write_array(f"embeddings-{number:05d}-of-00002.npy", part)
    embedded.finish()
    inputs = {**inputs, "embeddings": embedded, "index": output}
    settings = IndexConfig(kind=kind, target_recall=1.0, shard_size=40)
    facts = index.run(inputs, output, index=settings, mesh=MeshConfig())
    output.finish(**facts)
    assert facts["recall@10"] == 1.0 and facts["held_out_queries"] == 2
    names = [f"index/tree-{number:05d}-of-00003" for number in range(trees)]
    assert index_files(output) == ["index/index.json", *names]
    found, _ = Searcher.load(inputs, MeshConfig()).search(PASSAGES, 10)
    wanted, _ = ExactIndex(embeddings).search(searcher.encoder.embed(PASSAGES), 10)
    if kind == "exact":
        np.testing.assert_array_equal(found, wanted)
    assert neighbour_recall(found, wanted) > 0.85
