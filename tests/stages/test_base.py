"""What RA-DIT starts from, where an experiment names checkpoints."""

import dataclasses

import jax
import numpy as np
import pytest
import small

from radit_jax.config import LmConfig, MeshConfig, RetrieverConfig
from radit_jax.runtime.models import load_model
from radit_jax.runtime.publish import publish
from radit_jax.runtime.store import Workdir
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
    expected = dataclasses.replace(small.encoder().module.config, pooling="cls", normalize=False)
    assert query.module.config == chunk.module.config == expected
    assert (query.tokenizer.hf.model_max_length, chunk.tokenizer.hf.model_max_length) == (16, 32)
    assert facts["origin"]["licence"] == facts["chunk_origin"]["licence"] == "apache-2.0"
    assert facts["chunk_origin"]["role"] == "chunk encoder"


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="checkpoint /nowhere: no such folder; correct the path"):
        base.run_lm(
            {}, Workdir(tmp_path).folder("base", "0" * 12), lm=LmConfig("/nowhere"), seed=0, mesh=MeshConfig()
        )
