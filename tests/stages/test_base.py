"""What RA-DIT starts from, where an experiment names checkpoints: others' or our own."""

import json
import shutil
from dataclasses import replace

import families
import jax
import numpy as np
import pytest
import small
import transformers
from gguf_files import write_whole_model

import radit_jax
from radit_jax.config import LmConfig, MeshConfig, RetrieverConfig
from radit_jax.retrieval.search import Encoder
from radit_jax.runtime.distributed.mesh import make_mesh
from radit_jax.runtime.pretrained.hf_export import export_hf
from radit_jax.runtime.pretrained.model_io import load_model, save_model
from radit_jax.runtime.pretrained.router import TOWERS, write_router
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.runtime.storage.workdir import Workdir
from radit_jax.stages import base


@pytest.fixture(scope="module")
def checkpoints(lm, tmp_path_factory):
    """A LLaMA and a BERT as others save them, the BERT with its licence."""
    folder = tmp_path_factory.mktemp("checkpoints")
    export_hf(folder / "lm", lm)
    export_hf(folder / "bert", small.encoder())
    (folder / "bert" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder


def test_a_checkpoint_is_the_base_language_model(checkpoints, lm, tmp_path):
    output = Workdir(tmp_path).folder("base", "0" * 12)
    settings = LmConfig(checkpoint=str(checkpoints / "lm"))
    facts = base.run_lm({}, output, lm=settings, seed=0, mesh=MeshConfig())
    model = load_model(output.verified_path("lm"))
    assert model.module.config == lm.module.config
    jax.tree.map(np.testing.assert_array_equal, model.params, lm.params)
    assert facts["origin"] == {
        "role": "language model",
        "name": str(checkpoints / "lm"),
        "licence": "",
        "source": "",
        "hub_id": "",
    }


def test_a_gguf_file_is_the_base_language_model(tmp_path):
    path = str(write_whole_model(tmp_path))
    output = Workdir(tmp_path / "run").folder("base", "0" * 12)
    facts = base.run_lm({}, output, lm=LmConfig(checkpoint=path), seed=0, mesh=MeshConfig())
    module, params, tokenizer = radit_jax.load(path)
    model = load_model(output.verified_path("lm"))
    assert model.module.config == module.config and facts["origin"]["name"] == path
    jax.tree.map(np.testing.assert_array_equal, model.params, params)
    assert model.tokenizer.encode_prompt("ab ab\n") == tokenizer.encode_prompt("ab ab\n") == [1, 8, 8, 3]


def test_checkpoints_are_the_base_towers_with_their_own_pooling_and_the_settings_lengths(
    checkpoints, tmp_path
):
    output = Workdir(tmp_path).folder("base", "0" * 12)
    settings = RetrieverConfig(checkpoint=str(checkpoints / "bert"), query_length=16, chunk_length=32)
    facts = base.run_retriever({}, output, retriever=settings, seed=0, mesh=MeshConfig())
    query, chunk = (load_model(output.verified_path(name)) for name in ("query_encoder", "chunk_encoder"))
    assert query.module.config == chunk.module.config == small.encoder().module.config
    assert facts["query_vectors"] == facts["chunk_vectors"] == "mean, normalised"
    assert (query.tokenizer.hf.model_max_length, chunk.tokenizer.hf.model_max_length) == (16, 32)
    assert facts["origin"]["licence"] == facts["chunk_origin"]["licence"] == "apache-2.0"
    assert facts["chunk_origin"]["role"] == "chunk encoder"


def test_the_router_of_an_export_gives_both_towers(tmp_path):
    query = small.encoder()
    chunk = query._replace(params=jax.tree.map(lambda leaf: leaf * 2, query.params))
    for side, tower in (("query", query), ("chunk", chunk)):
        export_hf(tmp_path / "retriever" / TOWERS[side], tower)
    configs = {"query": query.module.config, "chunk": chunk.module.config}
    write_router(tmp_path / "retriever", configs)
    found = run_retriever(tmp_path / "out", checkpoint=str(tmp_path / "retriever"))
    for tower, expected in zip(found, (query, chunk), strict=True):
        assert_equal_params(tower, expected)


def test_one_checkpoint_for_both_towers_is_stored_once(checkpoints, tmp_path):
    query, chunk = run_retriever(tmp_path, checkpoint=str(checkpoints / "bert"))
    assert_equal_params(query, chunk)
    assert (query.tokenizer.hf.model_max_length, chunk.tokenizer.hf.model_max_length) == (20, 30)
    files = [file for file in (tmp_path / "query_encoder" / "params").rglob("*") if file.is_file()]
    weights = [file for file in files if file.suffix != ".txt"]
    for file in weights:
        assert file.samefile(tmp_path / "chunk_encoder" / file.relative_to(tmp_path / "query_encoder"))
    assert len(weights) > 2


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="checkpoint /nowhere: expected a folder, got none of that name"):
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
        match=r"llama: expected num_layers 2, rope_theta 500000.0 by the experiment's base, got num_layers 1",
    ):
        run_lm(tmp_path / "other", checkpoint=hf_llama, model=other)


def test_a_chat_model_says_its_form_to_every_later_stage_and_its_export_keeps_the_template(tmp_path, lm):
    tokenizer = families.in_chat(lm.tokenizer)
    export_hf(tmp_path / "hf", lm._replace(tokenizer=tokenizer.plain))
    found = run_lm(tmp_path / "out", checkpoint=str(tmp_path / "hf"), prompt="chat")
    assert found.tokenizer.chat == tokenizer.chat
    # What LM-ft saves, and what is read of an export, is a chat model too.
    save_model(tmp_path / "tuned", found)
    assert load_model(tmp_path / "tuned").tokenizer.encode_prompt("a") == tokenizer.encode_prompt("a")
    export_hf(tmp_path / "again", found)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert theirs.chat_template == tokenizer.hf.chat_template
    assert theirs("a")["input_ids"] == tokenizer.plain.encode_prompt("a")
    again = run_lm(tmp_path / "plain", checkpoint=str(tmp_path / "tuned"), prompt="plain")
    assert again.tokenizer.chat is None


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
    with pytest.raises(ValueError, match="query: expected pooling cls, as was asked for, got pooling mean"):
        run_retriever(tmp_path / "other", **names, pooling="cls")
    run_retriever(tmp_path / "unsaid", **names)


# ---- what a checkpoint says of its vectors ----


@pytest.fixture
def e5(checkpoints, tmp_path):
    """An encoder in the way of E5: prompts before queries and documents, means, normalised."""
    folder = tmp_path / "e5"
    shutil.copytree(checkpoints / "bert", folder)
    said = {"prompts": {"query": "query: ", "document": "passage: "}, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(said))
    return folder


def texts_of(tower, text):
    ids = Encoder(tower, make_mesh(MeshConfig())).token_ids([text])[0]
    return tower.tokenizer.decode(ids)


def test_a_checkpoints_prompts_stand_before_queries_and_chunks(e5, tmp_path):
    query, chunk = run_retriever(tmp_path / "out", checkpoint=str(e5))
    for tower, text in ((query, "queryelm"), (chunk, "passageelm")):
        assert texts_of(tower, "Elm").replace(" ", "") == text  # its vocabulary has no colon
        loaded = load_model(tmp_path / "out" / ("query_encoder" if tower is query else "chunk_encoder"))
        assert loaded.module.config.prompt == tower.module.config.prompt != ""


def test_prompts_of_settings_serve_a_checkpoint_that_says_none(checkpoints, tmp_path):
    prompts = {"query_prompt": "query: ", "chunk_prompt": "passage: "}
    query, chunk = run_retriever(tmp_path / "out", checkpoint=str(checkpoints / "bert"), **prompts)
    assert (query.module.config.prompt, chunk.module.config.prompt) == ("query: ", "passage: ")


@pytest.mark.parametrize("prompt", ["search: ", ""])
def test_a_prompt_that_the_checkpoint_does_not_say_is_refused(e5, tmp_path, prompt):
    with pytest.raises(
        ValueError, match=r'e5: expected query_prompt ".*", as the experiment says, got "query: "'
    ):
        run_retriever(tmp_path / "out", checkpoint=str(e5), query_prompt=prompt)


def test_a_checkpoint_that_does_not_say_how_its_vectors_are_made_is_named(checkpoints, tmp_path, capsys):
    shutil.copytree(checkpoints / "bert", tmp_path / "plain")
    (tmp_path / "plain" / "modules.json").unlink()
    query, _ = run_retriever(tmp_path / "out", checkpoint=str(tmp_path / "plain"))
    assert (query.module.config.pooling, query.module.config.normalize) == ("cls", False)
    assert capsys.readouterr().out.count("plain does not say how its vectors are made") == 1
    query, _ = run_retriever(tmp_path / "mean", checkpoint=str(tmp_path / "plain"), pooling="mean")
    assert query.module.config.pooling == "mean" and not capsys.readouterr().out


def test_a_separator_in_a_query_is_the_token_and_in_a_passage_text(checkpoints, tmp_path):
    query, chunk = run_retriever(tmp_path / "out", checkpoint=str(checkpoints / "bert"))
    text = "Elm Tower [SEP] builder"
    query, chunk = (load_model(tmp_path / "out" / f"{side}_encoder") for side in ("query", "chunk"))
    for tower, marks in ((query, 2), (chunk, 1)):
        ids = Encoder(tower, make_mesh(MeshConfig())).token_ids([text])[0]
        assert ids.count(tower.tokenizer.sep_id) == marks
        export_hf(tmp_path / "hf" / str(marks), tower)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf" / str(marks))
        assert theirs(text)["input_ids"] == ids


# ---- what cannot be, before anything is embedded or trained ----


def test_a_network_of_another_kind_is_named(checkpoints, tmp_path):
    for model_type in ("electra", ["bert"], None):
        shutil.copytree(checkpoints / "bert", tmp_path / "other", dirs_exist_ok=True)
        values = json.loads((tmp_path / "other" / "config.json").read_text()) | {"model_type": model_type}
        (tmp_path / "other" / "config.json").write_text(json.dumps(values))
        with pytest.raises(
            ValueError, match=r"expected .* or a BERT \(model_type bert, .*\), got model_type"
        ):
            run_retriever(tmp_path / "out", checkpoint=str(tmp_path / "other"))
    with pytest.raises(
        ValueError, match=r"expected a decoder \(model_type llama, .*\), got model_type \"bert\""
    ):
        run_lm(tmp_path / "lm", checkpoint=str(checkpoints / "bert"))


def test_a_checkpoint_without_a_tokeniser_is_refused_by_base_and_loads_elsewhere(checkpoints, tmp_path):
    shutil.copytree(checkpoints / "lm", tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    assert radit_jax.load(str(tmp_path / "bare"))[2] is None
    with pytest.raises(ValueError, match=r"bare: expected a tokenizer\.json, .* Put its tokeniser into"):
        run_lm(tmp_path / "out", checkpoint=str(tmp_path / "bare"))


def test_encoders_of_different_widths_are_refused_with_both(checkpoints, tmp_path):
    wide = small.encoder()
    config = replace(wide.module.config, truncate_dim=8)
    export_hf(tmp_path / "narrow", wide._replace(module=wide.module.clone(config=config)))
    with pytest.raises(
        ValueError, match="equally wide, got 16 numbers of .*bert and 8 of .*narrow. Name two"
    ):
        run_retriever(
            tmp_path / "out",
            checkpoint=str(checkpoints / "bert"),
            chunk_checkpoint=str(tmp_path / "narrow"),
        )
