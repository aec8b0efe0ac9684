"""Every family of decoders in files: transformers' form, read and written, and our own."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from exact import assert_exact, in_float64, torch_in_float64
from hf_decoders import GEMMA, LAYERS, SIZES, VARIANTS, decoder_in_float64, draw_vectors, random_decoder
from safetensors.torch import load_file, save_file

from radit_jax.config import TRAITS, DecoderConfig, check_shape
from radit_jax.models.decoder import DecoderLm
from radit_jax.runtime.pretrained.decoder_config import decoder_config, decoder_json
from radit_jax.runtime.pretrained.hf_config import own_config, own_json
from radit_jax.runtime.pretrained.hf_export import export_hf
from radit_jax.runtime.pretrained.hf_weights import load_decoder
from radit_jax.runtime.pretrained.model_io import Model, load_model, save_model

pytestmark = pytest.mark.usefixtures("float64")


def loaded(folder, tokenizer=None):
    config, params = load_decoder(folder)
    return Model(DecoderLm(config), params, tokenizer)


def their_logits(theirs, tokens):
    theirs = decoder_in_float64(theirs)
    with torch_in_float64():
        return theirs(torch.tensor(tokens)).logits.numpy()


def our_logits(model, tokens):
    module = model.module.clone(dtype=jnp.float64)
    return module.apply({"params": in_float64(model.params)}, jnp.asarray(tokens, jnp.int32))


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_export_is_what_transformers_saved(variant, lm, tmp_path):
    """Rows are longer than the window, so that a pattern of layers that was lost would show."""
    first, second = tmp_path / "theirs", tmp_path / "ours"
    theirs = random_decoder(variant, vocab_size=lm.tokenizer.vocab_size)
    theirs.save_pretrained(first)
    assert export_hf(second, loaded(first, lm.tokenizer)) == 0
    again = transformers.AutoModelForCausalLM.from_pretrained(second, attn_implementation="eager")
    assert type(again) is type(theirs)
    tensors = again.state_dict()
    assert tensors.keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensors[name], tensor), name
    tokens = np.random.default_rng(0).integers(1, lm.tokenizer.vocab_size, (2, 20))
    assert_exact(their_logits(again, tokens), their_logits(theirs, tokens))


@pytest.mark.parametrize("variant", VARIANTS)
def test_our_own_form_keeps_every_setting(variant, tmp_path):
    random_decoder(variant).save_pretrained(tmp_path / "theirs")
    model = loaded(tmp_path / "theirs")
    save_model(tmp_path / "ours", model)
    module, params, _ = load_model(tmp_path / "ours")
    assert module.config == model.module.config
    jax.tree.map(np.testing.assert_array_equal, params, model.params)


def test_a_model_of_release_0_1_is_a_llama(lm):
    """Its file has another name for the network, and no field that was added since."""
    values = json.loads(json.dumps(own_json(lm.module.config)))
    added = ("family", *TRAITS["gemma3"].may_set)
    for name in added:
        del values["config"][name]
    assert own_config(values | {"module": "Llama"}, "here") == lm.module.config


# ---- a text model inside a model of text and images ----


def of_text_and_images() -> transformers.Gemma3ForConditionalGeneration:
    text = SIZES | GEMMA | {"layer_types": LAYERS}
    vision = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=60,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    draw_vectors(model)
    return model


def old_name(name: str) -> str:
    """As checkpoints before transformers 4.52 have it, those of Google among them."""
    if name.startswith("model.language_model."):
        return name.replace("model.language_model.", "language_model.model.")
    return name.removeprefix("model.")


@pytest.fixture(params=["new names", "old names"])
def images_folder(request, tmp_path):
    """The folder of such a model, its tensors by the one or the other name; and the torch model."""
    model = of_text_and_images()
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    # transformers saves in the form in which the checkpoint was.
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    del tensors["lm_head.weight"]
    if request.param == "old names":
        tensors = {old_name(name): tensor for name, tensor in tensors.items()}
        assert "language_model.model.norm.weight" in tensors
    else:
        assert "model.language_model.norm.weight" in tensors
    save_file(tensors, path, {"format": "pt"})
    return tmp_path, model


def test_the_text_part_of_a_model_of_text_and_images_is_read(images_folder):
    folder, model = images_folder
    assert any("vision_tower" in name for name in load_file(folder / "model.safetensors"))
    tokens = np.random.default_rng(0).integers(1, 60, (2, 20))
    text = transformers.Gemma3ForCausalLM(model.config.text_config).eval()
    text.model.load_state_dict(model.model.language_model.state_dict())
    text.tie_weights()
    assert_exact(our_logits(loaded(folder), tokens), their_logits(text, tokens))


def test_a_tensor_that_is_neither_of_text_nor_of_images_is_refused(images_folder):
    folder, _ = images_folder
    tensors = load_file(folder / "model.safetensors")
    tensors["audio_tower.weight"] = torch.zeros(2)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"of this network only, got \['audio_tower.weight'\]"):
        load_decoder(folder)


def test_what_a_text_config_leaves_out_is_as_in_transformers():
    """The fields that the published 4B has: the rest is the class's own default."""
    said = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    short = decoder_config({"model_type": "gemma3", "text_config": said}, "here")
    whole = transformers.Gemma3TextConfig(**said).to_dict()
    assert short == decoder_config(whole, "there")
    assert (short.vocab_size, short.num_heads, short.num_kv_heads, short.head_size) == (262_208, 8, 4, 256)
    assert (short.window, short.global_every, short.rope_theta, short.local_rope_theta) == (1024, 6, 1e6, 1e4)
    assert short.is_local.count(False) == 5


# ---- settings that no file can say ----

GEMMA3 = DecoderConfig(
    vocab_size=8,
    hidden_size=8,
    num_layers=4,
    num_heads=2,
    num_kv_heads=1,
    head_size=4,
    ffn_size=8,
    family="gemma3",
    window=3,
    global_every=2,
    local_rope_theta=100.0,
    query_divisor=4,
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "gemma2"}, "local_rope_theta: expected None with family gemma2, got 100.0"),
        ({"local_rope_theta": None}, "local_rope_theta: expected a number with family gemma3, got None"),
        ({"query_divisor": None}, "query_divisor: expected a number with family gemma3, got None"),
        ({"window": None}, "global_every: expected at most 0, with 4 layers and window None, got 2"),
        ({"global_every": 5}, "global_every: expected at most 4, with 4 layers and window 3, got 5"),
        ({"num_heads": 3, "num_kv_heads": 2}, "num_kv_heads: expected a divisor of num_heads 3, got 2"),
    ],
)
def test_what_no_file_of_the_family_says_is_refused_wherever_it_is_read(changes, message):
    config = dataclasses.replace(GEMMA3, **changes)
    with pytest.raises(ValueError, match=f"^base.lm.model.{message}"):
        check_shape(config, "base.lm.model")
    with pytest.raises(ValueError, match=f"^here: {message}. Fetch the checkpoint again"):
        own_config(json.loads(json.dumps(own_json(config))), "here")


def test_a_family_that_is_not_known_is_refused():
    values = json.loads(json.dumps(own_json(GEMMA3)))
    values["config"]["family"] = "gpt2"
    with pytest.raises(ValueError, match='^here: expected family llama, .* or olmo2, got "gpt2"'):
        own_config(values, "here")


@pytest.mark.parametrize("family", TRAITS)
def test_what_a_family_may_set_comes_back_from_its_own_file(family):
    values = {
        "window": 3,
        "global_every": 2,
        "local_rope_theta": 100.0,
        "query_divisor": 4,
        "score_cap": 2.0,
        "logit_cap": 3.0,
    }
    plain = {name: field.default for name, field in DecoderConfig.__dataclass_fields__.items()}
    for name in values.keys() - set(TRAITS[family].may_set):
        values[name] = plain[name]
    config = dataclasses.replace(GEMMA3, family=family, **values)
    check_shape(config, "here")
    assert decoder_config(json.loads(json.dumps(decoder_json(config, "float32"))), "here") == config
