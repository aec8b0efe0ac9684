import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.flax import save_file as save_flax
from safetensors.numpy import save_file

from radit_jax.config import BertConfig, LlamaConfig, RopeScaling
from radit_jax.models.bert import Bert
from radit_jax.models.llama import Llama
from radit_jax.runtime.hf_config import llama_config
from radit_jax.runtime.pretrained import load_bert, load_llama, to_hf

LLAMA = LlamaConfig(
    vocab_size=11, hidden_size=8, num_layers=2, num_heads=2, num_kv_heads=1, head_size=4, ffn_size=12
)
LLAMA_JSON = {
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 12,
    "rms_norm_eps": 1e-5,
}
BERT = BertConfig(vocab_size=11, hidden_size=8, num_layers=3, num_heads=2, ffn_size=12, max_length=6)
BERT_JSON = {
    "model_type": "bert",
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 6,
}


@pytest.fixture(scope="module")
def llama_params():
    return jax.jit(Llama(LLAMA).init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]


@pytest.fixture(scope="module")
def bert_params():
    inputs = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)
    return jax.jit(Bert(BERT).init)(jax.random.key(0), *inputs)["params"]


@pytest.fixture
def write(tmp_path):
    def write(config, tensors):
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file(tensors, tmp_path / "model.safetensors")
        return tmp_path

    return write


def saved(params):
    """The tensors of a checkpoint with these parameters."""
    return {name: np.ascontiguousarray(tensor.whole()) for name, tensor in to_hf(params).items()}


def assert_same(params, expected):
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_a_llama_comes_back_from_its_checkpoint(write, llama_params):
    tensors = saved(llama_params)
    assert tensors["model.layers.1.self_attn.k_proj.weight"].shape == (4, 8)  # (out, in)
    assert len(tensors) == 3 + 2 * 9
    config, params = load_llama(write(LLAMA_JSON, tensors))
    assert config == LLAMA
    assert_same(params, llama_params)


def test_a_bert_comes_back_from_its_checkpoint(write, bert_params):
    tensors = saved(bert_params)
    assert tensors["encoder.layer.2.intermediate.dense.weight"].shape == (12, 8)  # (out, in)
    assert len(tensors) == 5 + 3 * 16
    config, params = load_bert(write(BERT_JSON, tensors), pooling="mean", normalize=True)
    assert config == BertConfig(**(vars(BERT) | {"pooling": "mean", "normalize": True}))
    assert_same(params, bert_params)


def test_a_bert_may_have_prefixed_names_a_pooler_and_position_ids(write, bert_params):
    tensors = {f"bert.{name}": tensor for name, tensor in saved(bert_params).items()}
    tensors["bert.pooler.dense.weight"] = np.zeros((8, 8), np.float32)
    tensors["bert.embeddings.position_ids"] = np.arange(6)[None]
    assert_same(load_bert(write(BERT_JSON, tensors))[1], bert_params)


def test_a_bert_can_be_cut_to_its_first_layers(write, bert_params):
    folder = write(BERT_JSON, saved(bert_params))
    config, params = load_bert(folder, num_layers=2)
    assert config.num_layers == 2
    assert_same(params["embeddings"], bert_params["embeddings"])
    assert_same(params["encoder"], jax.tree.map(lambda x: x[:2], bert_params["encoder"]))
    with pytest.raises(ValueError, match="num_layers is 4, the checkpoint has 3; ask for fewer layers"):
        load_bert(folder, num_layers=4)


def test_a_tied_llama_has_no_head_of_its_own(write, llama_params):
    tied = {"model": llama_params["model"]}
    assert "lm_head.weight" not in saved(tied)
    for tensors in (saved(tied), saved(llama_params)):  # some files repeat the embedding as the head
        config, params = load_llama(write(LLAMA_JSON | {"tie_word_embeddings": True}, tensors))
        assert config.tie_embeddings
        assert_same(params, tied)


def test_a_checkpoint_may_lie_in_bfloat16_in_several_files(tmp_path, llama_params):
    tensors = {name: jnp.asarray(tensor, jnp.bfloat16) for name, tensor in saved(llama_params).items()}
    names = sorted(tensors)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_JSON))
    for number, part in enumerate((names[:5], names[5:])):
        save_flax({name: tensors[name] for name in part}, tmp_path / f"model-0000{number}-of-2.safetensors")
    params = load_llama(tmp_path)[1]
    assert_same(params, jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), llama_params))


def test_a_missing_tensor_is_named(write, llama_params):
    tensors = saved(llama_params)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match=r"no tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        load_llama(write(LLAMA_JSON, tensors))


def test_a_left_over_tensor_is_named(write, bert_params):
    tensors = saved(bert_params) | {"encoder.layer.3.output.dense.bias": np.zeros(8, np.float32)}
    with pytest.raises(
        ValueError, match=r"tensors \['encoder\.layer\.3\.output\.dense\.bias'\] have no place"
    ):
        load_bert(write(BERT_JSON, tensors))


def test_a_tensor_of_another_shape_than_the_config_says_is_named(write, llama_params):
    with pytest.raises(ValueError, match=r"k_proj\.weight gives shape .* but config\.json asks for"):
        load_llama(write(LLAMA_JSON | {"num_key_value_heads": 2}, saved(llama_params)))


def test_a_parameter_without_a_name_is_named(llama_params):
    with pytest.raises(ValueError, match=r"to_hf: parameters \['extra/kernel'\]"):
        to_hf(llama_params | {"extra": {"kernel": jnp.zeros(2)}})


def test_a_folder_without_a_checkpoint_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json; name a folder"):
        load_bert(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(BERT_JSON))
    with pytest.raises(ValueError, match=r"no \*\.safetensors and no pytorch_model\.bin; name a folder"):
        load_bert(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json: no 'vocab_size'"):
        load_bert(tmp_path)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, {"rope_theta": 10_000.0, "rope_scaling": None, "head_size": 4, "num_kv_heads": 2}),
        ({"rope_theta": 5e5, "rope_scaling": None, "head_dim": 6}, {"rope_theta": 5e5, "head_size": 6}),
        (
            {"rope_theta": 5e5, "rope_scaling": LLAMA3},
            {"rope_theta": 5e5, "rope_scaling": RopeScaling(32.0, 1.0, 4.0, 8192)},
        ),
        (
            {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}},
            {"rope_theta": 5e5, "rope_scaling": RopeScaling(32.0, 1.0, 4.0, 8192)},
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 2e4}},
            {"rope_theta": 2e4, "rope_scaling": None},
        ),
    ],
    ids=["oldest", "old", "old_llama3", "new_llama3", "new"],
)
def test_every_form_of_a_llamas_config_is_read(extra, expected):
    values = {name: value for name, value in LLAMA_JSON.items() if name != "num_key_value_heads"}
    config = llama_config(values | extra, "here")
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    "extra",
    [{"model_type": "gpt2"}, {"attention_bias": True}, {"rope_scaling": {"type": "linear", "factor": 2.0}}],
)
def test_another_network_is_refused(extra):
    with pytest.raises(ValueError, match=r"here/config\.json: .* is .*, needed is .*; use such a checkpoint"):
        llama_config(LLAMA_JSON | extra, "here")
