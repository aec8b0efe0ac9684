"""Base models that are checkpoints: others' or our own, and what the settings say of them."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import transformers

from radit_jax.config import LmConfig, MeshConfig, RetrieverConfig
from radit_jax.runtime.models import load_model, save_model
from radit_jax.runtime.store import StageFolder
from radit_jax.runtime.tokenizers import save_tokenizer
from radit_jax.stages import base


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


@pytest.fixture
def llama(tmp_path, lm):
    config = transformers.LlamaConfig(
        vocab_size=lm.tokenizer.vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    save_tokenizer(tmp_path / "llama", lm.tokenizer)
    return str(tmp_path / "llama")


def test_a_language_model_of_ours_is_a_checkpoint_too(tmp_path, lm):
    save_model(tmp_path / "export", lm)
    found = run_lm(tmp_path / "out", checkpoint=str(tmp_path / "export"), model=lm.module.config)
    assert_equal_params(found, lm)


def test_a_checkpoint_is_what_the_settings_say_of_it(tmp_path, llama):
    found = run_lm(tmp_path / "out", checkpoint=llama)
    run_lm(tmp_path / "again", checkpoint=llama, model=found.module.config)
    other = replace(found.module.config, num_layers=2, rope_theta=5e5)
    with pytest.raises(
        ValueError,
        match=r"llama: num_layers 1, rope_theta 10000.0 came, needed is num_layers 2, rope_theta 5",
    ):
        run_lm(tmp_path / "other", checkpoint=llama, model=other)


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
