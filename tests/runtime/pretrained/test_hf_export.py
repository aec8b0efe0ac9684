"""What export writes, read by those that it is written for."""

import dataclasses
import json
import shutil

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
import torch
import transformers
from exact import (
    assert_exact,
    assert_stored,
    in_float64,
    model_in_float64,
    torch_in_float64,
    torch_model_in_float64,
)

import radit_jax
from radit_jax.config import PROJECTIONS, LoraConfig, MeshConfig, RopeScaling
from radit_jax.models.decoder import DecoderLm
from radit_jax.models.lora import adapted, init_adapters, merge_adapters
from radit_jax.retrieval.search import Encoder
from radit_jax.runtime.distributed.mesh import make_mesh
from radit_jax.runtime.pretrained import hf_export as publishing
from radit_jax.runtime.pretrained.hf_export import export_hf, export_peft
from radit_jax.runtime.pretrained.model_io import Model, load_model, save_model
from radit_jax.runtime.pretrained.tokenizers import Tokenizer
from radit_jax.selfcheck.tiny_models import random_params

pytestmark = pytest.mark.usefixtures("float64")
TEXTS = ["Who built Dray Tower?", "Elm Tower stands in Ostley.", "tower " * 60]


class GivesSeven:
    def encode(self, text):
        return [7]


VARIANTS = {
    "gqa": {},
    "tied": {"tie_embeddings": True},
    "gemma3": {
        "family": "gemma3",
        "tie_embeddings": True,
        "window": 7,
        "global_every": 2,
        "local_rope_theta": 100.0,
        "query_divisor": 8,
    },
    "llama3": {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 32), "rope_theta": 5e5},
}


@pytest.fixture(scope="module", params=VARIANTS)
def language_model(request, lm):
    config = dataclasses.replace(lm.module.config, num_kv_heads=1, num_layers=2, **VARIANTS[request.param])
    module = DecoderLm(config)
    return Model(module, random_params(module, jnp.zeros((1, 4), jnp.int32)), lm.tokenizer)


def logits_of(model, ids):
    module, params, _ = model_in_float64(model)
    return module.apply({"params": params}, jnp.asarray(ids.numpy(), jnp.int32))


def test_a_language_model_in_transformers_has_our_logits(language_model, tmp_path):
    assert export_hf(tmp_path, language_model, shard_bytes=20_000) == 0
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (
        type(theirs).__name__ in ("LlamaForCausalLM", "Gemma3ForCausalLM") and theirs.dtype == torch.float32
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("Background: Elm Tower.\n\nQ: Who built it?\nA:", return_tensors="pt")["input_ids"]
    ours = language_model.tokenizer
    assert ids[0].tolist() == [
        ours.bos_id,
        *ours.encode(ours.opening + "Background: Elm Tower.\n\nQ: Who built it?\nA:"),
    ]
    with torch_in_float64():
        expected = torch_model_in_float64(theirs)(ids).logits.numpy()
    assert_exact(logits_of(language_model, ids), expected)


@pytest.mark.parametrize("family", ["gemma", "qwen", "smollm", "llama3"])
def test_an_exported_tokeniser_begins_a_text_as_ours_does(lm, tmp_path, family):
    tokenizer = Tokenizer(getattr(families, family)())
    module = DecoderLm(dataclasses.replace(lm.module.config, vocab_size=tokenizer.vocab_size))
    model = Model(module, random_params(module, jnp.zeros((1, 4), jnp.int32)), tokenizer)
    export_hf(tmp_path, model)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("Q: Where?\nA:")["input_ids"] == tokenizer.encode_prompt("Q: Where?\nA:")
    assert radit_jax.load(str(tmp_path))[2].start_ids == tokenizer.start_ids


def test_a_language_model_in_transformers_continues_as_ours_does(lm, lm64, tmp_path):
    export_hf(tmp_path, lm)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = np.array([[lm.tokenizer.bos_id, *lm.tokenizer.encode("Q: Who built Elm Tower?\nA:")]])
    with torch_in_float64():
        theirs = torch_model_in_float64(theirs)
        continued = theirs.generate(torch.tensor(ids), do_sample=False, max_new_tokens=12, eos_token_id=-1)
    answer = radit_jax.generate(*lm64[:2], ids, max_new_tokens=12)
    assert answer[0].tolist() == continued[0, ids.shape[1] :].tolist()


def test_a_language_models_config_is_what_vllm_looks_for(language_model, tmp_path):
    export_hf(tmp_path, language_model, dtype="bfloat16", shard_bytes=20_000)
    values = json.loads((tmp_path / "config.json").read_text())
    named = {"llama": ("llama", "LlamaForCausalLM"), "gemma3": ("gemma3_text", "Gemma3ForCausalLM")}
    family = language_model.module.config.family
    assert (values["model_type"], *values["architectures"]) == named[family]
    assert values["torch_dtype"] == "bfloat16" and values["bos_token_id"] == 1 and values["eos_token_id"] == 2
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in tmp_path.glob("*.safetensors")}
    # Of a class that every release of transformers has.
    tokenizer = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_what_was_published_is_ours_again(language_model, tmp_path):
    export_hf(tmp_path, language_model)
    module, params, tokenizer = radit_jax.load(str(tmp_path))
    assert module.config == language_model.module.config
    jax.tree.map(np.testing.assert_array_equal, params, language_model.params)
    assert tokenizer.encode("Tower?") == language_model.tokenizer.encode("Tower?")


def test_a_tokeniser_or_a_config_that_is_not_the_models_own_when_read_back_is_refused(
    lm, tmp_path, monkeypatch
):
    monkeypatch.setattr(publishing, "load_tokenizer", lambda folder, size: GivesSeven())
    with pytest.raises(ValueError, match=r"tokenizer\.json, .* got \[7\]\. This checkpoint .*hf=false"):
        export_hf(tmp_path, lm)
    other = dataclasses.replace(lm.module.config, rms_norm_eps=1e-3)
    monkeypatch.setattr(publishing, "describe_folder", lambda folder: (other, None))
    with pytest.raises(ValueError, match=r"config\.json: expected DecoderConfig.*hf=false"):
        export_hf(tmp_path, lm)


def test_the_largest_error_of_bfloat16_is_its_rounding(lm, tmp_path):
    error = export_hf(tmp_path, lm, dtype="bfloat16")
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(lm.params))
    assert 0 < error <= largest / 2**8


@pytest.mark.filterwarnings("ignore")  # of peft and what it imports
@pytest.mark.parametrize("targets", [PROJECTIONS, ("q_proj", "v_proj")], ids=["all", "two"])
def test_adapters_in_peft_have_our_logits(language_model, tmp_path, targets):
    peft = pytest.importorskip("peft")
    module, params, tokenizer = language_model
    lora, rng = LoraConfig(rank=3, alpha=5.0, targets=targets), np.random.default_rng(0)
    adapters = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32),
        init_adapters(params, lora, jax.random.key(0)),
    )
    export_hf(tmp_path / "base", language_model)
    assert export_peft(tmp_path / "adapter", adapters, lora, base="org/base") == 0
    plain = Model(module, merge_adapters(params, adapters, lora), tokenizer)
    export_hf(tmp_path / "merged", plain)

    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    ids = torch.tensor([[1, *tokenizer.encode("Elm Tower stands in Ostley.")]])
    logits = logits_of(Model(module, adapted(*in_float64((params, adapters)), lora), tokenizer), ids)
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch_in_float64():
        untuned = torch_model_in_float64(base)(ids).logits.numpy()
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    assert theirs.peft_config["default"].base_model_name_or_path == "org/base"
    with torch_in_float64():
        assert_exact(logits, theirs.double()(ids).logits.numpy())
        assert_exact(logits_of(plain, ids), torch_model_in_float64(whole)(ids).logits.numpy())
    assert np.abs(untuned - np.asarray(logits)).max() > 0.1


def declared(folder, name):
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize(
    ("config", "generation"),
    [
        ({"bos_token_id": 1, "eos_token_id": [2, 5], "pad_token_id": None}, {}),
        ({"eos_token_id": 2}, {"eos_token_id": [2, 5], "temperature": 0.6, "do_sample": True}),
        ({"pad_token_id": -1, "eos_token_id": 2}, {}),
    ],
)
def test_special_ids_are_exported_as_they_came(hf_llama, tmp_path, config, generation):
    shutil.copytree(hf_llama, tmp_path / "in")
    values = declared(tmp_path / "in", "config.json")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        values.pop(name, None)
    (tmp_path / "in" / "config.json").write_text(json.dumps(values | config))
    (tmp_path / "in" / "generation_config.json").unlink(missing_ok=True)
    if generation:
        (tmp_path / "in" / "generation_config.json").write_text(json.dumps(generation))
    save_model(tmp_path / "ours", Model(*radit_jax.load(str(tmp_path / "in"))))  # as a run keeps it
    export_hf(tmp_path / "out", load_model(tmp_path / "ours"))
    written = declared(tmp_path / "out", "config.json")
    assert {name: written[name] for name in config} == config
    assert (tmp_path / "out" / "generation_config.json").exists() == bool(generation)
    if generation:
        assert declared(tmp_path / "out", "generation_config.json") == generation


def test_a_tokeniser_without_a_pad_is_exported_without_one(lm, tmp_path):
    bare = lm.tokenizer.reading_marks(False)
    bare.hf.pad_token = None
    export_hf(tmp_path, lm._replace(tokenizer=Tokenizer(bare.hf)))
    assert declared(tmp_path, "config.json")["pad_token_id"] is None
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).pad_token is None


@pytest.mark.filterwarnings("ignore")  # of sentence-transformers and what it imports
def test_an_encoders_prompts_and_width_are_exported_as_they_came(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = small.encoder()
    export_hf(tmp_path / "in", model)
    said = {"prompts": {"query": "tower ", "document": "builder "}, "default_prompt_name": "query"}
    path = tmp_path / "in" / "config_sentence_transformers.json"
    path.write_text(json.dumps(declared(tmp_path / "in", path.name) | said | {"truncate_dim": 8}))
    (tmp_path / "in" / "sentence_bert_config.json").write_text(
        '{"max_seq_length": 20, "do_lower_case": true}'
    )
    save_model(tmp_path / "ours", Model(*radit_jax.load(str(tmp_path / "in"))))
    model = load_model(tmp_path / "ours", mesh=make_mesh(MeshConfig()))
    export_hf(tmp_path / "out", model)
    written = declared(tmp_path / "out", "config_sentence_transformers.json")
    assert {name: written[name] for name in said} == said and written["truncate_dim"] == 8
    transformer = declared(tmp_path / "out", "sentence_bert_config.json")
    assert transformer["max_seq_length"] == 20 and transformer["do_lower_case"]
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    vectors = theirs.encode(TEXTS)
    assert vectors.shape == (3, 8)
    np.testing.assert_allclose(vectors, embed(model), atol=1e-5)
    np.testing.assert_allclose(theirs.encode_query(TEXTS), embed(model), atol=1e-5)


@pytest.fixture(scope="module", params=[("mean", True), ("cls", False), ("mean", False)], ids=str)
def encoder(request):
    model = small.encoder()
    pooling, normalize = request.param
    config = dataclasses.replace(model.module.config, pooling=pooling, normalize=normalize)
    return model._replace(module=type(model.module)(config))


def embed(model):
    return Encoder(model, make_mesh(MeshConfig())).embed(TEXTS)


def cosines(ours, theirs):
    return (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)


def test_an_encoder_in_transformers_has_our_vectors(encoder, tmp_path):
    assert export_hf(tmp_path, encoder) == 0
    theirs = transformers.AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text, ours in zip(TEXTS, embed(encoder), strict=True):
        inputs = tokenizer(text, return_tensors="pt", truncation=True)
        with torch.no_grad():
            hidden = theirs(**inputs).last_hidden_state[0].numpy()
        vector = hidden[0] if encoder.module.config.pooling == "cls" else hidden.mean(0)
        assert cosines(ours[None], vector[None])[0] >= 0.9999
    assert len(tokenizer(TEXTS[2], truncation=True)["input_ids"]) == 48  # the encoder's length


@pytest.mark.filterwarnings("ignore")  # of sentence-transformers and what it imports
def test_an_encoder_in_sentence_transformers_has_our_vectors(encoder, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    export_hf(tmp_path, encoder)
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    with torch_in_float64():
        vectors = theirs.double().encode(TEXTS)
    assert_stored(embed(model_in_float64(encoder)), vectors)
    assert cosines(embed(encoder), vectors).min() >= 0.9999
    config = encoder.module.config
    assert theirs.similarity_fn_name == ("cosine" if config.normalize else "dot")
    assert theirs.max_seq_length == 48


def test_an_encoder_is_ours_again_with_its_pooling_and_length(encoder, tmp_path):
    export_hf(tmp_path, encoder)
    module, params, tokenizer = radit_jax.load(str(tmp_path))
    assert module.config == encoder.module.config
    assert tokenizer.hf.model_max_length == 48
    jax.tree.map(np.testing.assert_array_equal, params, encoder.params)
