"""What RA-DIT starts from, where an experiment names checkpoints: others' or our own."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import small

from radit_jax.config import LmConfig, MeshConfig, RetrieverConfig
from radit_jax.runtime.models import load_model, save_model
from radit_jax.runtime.publish import publish
from radit_jax.runtime.store import StageFolder, Workdir
from radit_jax.stages import base


@pytest.fixture(scope="module")
def checkpoints(lm, tmp_path_factory):
    """A LLaMA and a BERT as others save them, the BERT with its licence."""
    folder = tmp_path_factory.mktemp("checkpoints")
    publish(folder / "lm", lm)
    publish(folder / "bert", small.encoder())
    (folder / "bert" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder


def test_a_checkpoint_is_the_base_language_model(checkpoints, lm, tmp_path):
    output = Workdir(tmp_path).folder("base", "0" * 12)
    settings = LmConfig(checkpoint=str(checkpoints / "lm"))
    facts = base.run_lm({}, output, lm=settings, seed=0, mesh=MeshConfig())
    model = load_model(output.check("lm"))
    assert model.module.config == lm.module.config
    jax.tree.map(np.testing.assert_array_equal, model.params, lm.params)
    assert facts["origin"] == {
        "role": "language model",
        "name": str(checkpoints / "lm"),
        "licence": "",
        "source": "",
    }


def test_checkpoints_are_the_base_towers_with_the_settings_lengths_and_pooling(checkpoints, tmp_path):
    output = Workdir(tmp_path).folder("base", "0" * 12)
    settings = RetrieverConfig(
        checkpoint=str(checkpoints / "bert"), pooling="cls", query_length=16, chunk_length=32
    )
    facts = base.run_retriever({}, output, retriever=settings, seed=0, mesh=MeshConfig())
    query, chunk = (load_model(output.check(name)) for name in ("query_encoder", "chunk_encoder"))
    expected = replace(small.encoder().module.config, pooling="cls", normalize=False)
    assert query.module.config == chunk.module.config == expected
    assert (query.tokenizer.hf.model_max_length, chunk.tokenizer.hf.model_max_length) == (16, 32)
    assert facts["origin"]["licence"] == facts["chunk_origin"]["licence"] == "apache-2.0"
    assert facts["chunk_origin"]["role"] == "chunk encoder"


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="checkpoint /nowhere: no such folder; correct the path"):
        base.run_lm(
            {}, Workdir(tmp_path).folder("base", "0" * 12), lm=LmConfig("/nowhere"), seed=0, mesh=MeshConfig()
        )


def run_lm(folder, **settings):
    output = StageFolder(folder)
    base.run_lm({}, output, lm=LmConfig(**settings), seed=0, mesh=MeshConfig())
    return load_model(output.path / "lm")


def run_retriever(folder, **settings):
    output = StageFolder(folder)
    config = RetrieverConfig(query_length=20, chunk_length=30, **settings)
    base.run_retriever({}, output, retriever=config, seed=0, mesh=MeshConfig())
    return load_model(output.path / "query_encoder"), load_model(output.path / "chunk_encoder")


def assert_equal_params(one, other):
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def test_a_language_model_of_ours_is_a_checkpoint_too(tmp_path, lm):
    save_model(tmp_path / "export", lm)
    found = run_lm(tmp_path / "out", checkpoint=str(tmp_path / "export"), model=lm.module.config)
    assert_equal_params(found, lm)


def test_a_checkpoint_is_what_the_settings_say_of_it(tmp_path, hf_llama):
    found = run_lm(tmp_path / "out", checkpoint=hf_llama)
    run_lm(tmp_path / "again", checkpoint=hf_llama, model=found.module.config)
    other = replace(found.module.config, num_layers=2, rope_theta=5e5)
    with pytest.raises(
        ValueError,
        match=r"llama: num_layers 1, rope_theta 10000.0 came, needed is num_layers 2, rope_theta 5",
    ):
        run_lm(tmp_path / "other", checkpoint=hf_llama, model=other)


def test_the_encoders_of_an_export_are_checkpoints_too(tmp_path, searcher):
    query = searcher.encoder.model
    chunk = query._replace(params=jax.tree.map(lambda leaf: leaf * 2, query.params))
    for name, tower in (("query", query), ("chunk", chunk)):
        save_model(tmp_path / name, tower)
    names = {"checkpoint": str(tmp_path / "query"), "chunk_checkpoint": str(tmp_path / "chunk")}
    found = run_retriever(tmp_path / "out", **names, pooling="mean", normalize=True)
    for tower, wanted, length in zip(found, (query, chunk), (20, 30), strict=True):
        assert_equal_params(tower, wanted)
        assert tower.tokenizer.hf.model_max_length == length
    with pytest.raises(ValueError, match="query: pooling mean, normalize True came, needed is pooling cls"):
        run_retriever(tmp_path / "other", **names)
