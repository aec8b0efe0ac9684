import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from safetensors.flax import save_file as save_flax
from safetensors.numpy import save_file

from radit_jax.config import BertConfig, DecoderConfig, MeshConfig, RopeScaling
from radit_jax.models.bert import Bert
from radit_jax.models.decoder import DecoderLm
from radit_jax.runtime.distributed.mesh import make_mesh, tree_shardings
from radit_jax.runtime.pretrained import hf_weights
from radit_jax.runtime.pretrained.decoder_config import decoder_config
from radit_jax.runtime.pretrained.hf_weights import load_bert, load_decoder, to_hf
from radit_jax.runtime.pretrained.tensor_files import Tensor, open_tensors, write_tensors

LLAMA = DecoderConfig(
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
    return jax.jit(DecoderLm(LLAMA).init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]


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
    config, params = load_decoder(write(LLAMA_JSON, tensors))
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


PREFIXES = ("", "bert.", "question_encoder.bert_model.", "ctx_encoder.bert_model.")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("old", [False, True], ids=["new", "tensorflow"])
def test_a_bert_loads_as_it_is_published(write, bert_params, prefix, old):
    """bert-base-uncased has pre-training heads and TensorFlow's names, DPR a prefix and a type of its own."""
    tensors = {}
    for name, tensor in saved(bert_params).items():
        if old:
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            )
        tensors[prefix + name] = tensor
    tensors["cls.predictions.bias"] = np.zeros(11, np.float32)
    tensors["cls.predictions.transform.LayerNorm.gamma"] = np.zeros(8, np.float32)
    tensors["cls.seq_relationship.weight"] = np.zeros((2, 8), np.float32)
    kind = {"model_type": "dpr", "projection_dim": 0} if "encoder." in prefix else {}
    config, params = load_bert(write(BERT_JSON | kind, tensors))
    assert config == BERT
    assert_same(params, bert_params)


def test_a_head_that_makes_another_model_of_a_bert_is_refused(write, bert_params):
    tensors = {f"bert.{name}": tensor for name, tensor in saved(bert_params).items()}
    tensors["classifier.weight"] = np.zeros((1, 8), np.float32)  # a reranker's
    with pytest.raises(
        ValueError,
        match=r"expected tensors of this network only, got \['classifier\.weight'\]\. Use a checkpoint",
    ):
        load_bert(write(BERT_JSON, tensors))


def test_quantised_numbers_are_refused(write, llama_params):
    tensors = saved(llama_params)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].astype(np.int8)
    with pytest.raises(
        ValueError, match=r'expected "model.layers.0.mlp.up_proj.weight" in F64, F32, .*, got I8'
    ):
        load_decoder(write(LLAMA_JSON, tensors))


def test_a_bert_can_be_cut_to_its_first_layers(write, bert_params):
    folder = write(BERT_JSON, saved(bert_params))
    config, params = load_bert(folder, num_layers=2)
    assert config.num_layers == 2
    assert_same(params["embeddings"], bert_params["embeddings"])
    assert_same(params["encoder"], jax.tree.map(lambda x: x[:2], bert_params["encoder"]))
    with pytest.raises(ValueError, match="expected num_layers of at most the checkpoint's 3, got 4. Ask for"):
        load_bert(folder, num_layers=4)


def test_a_tied_llama_has_no_head_of_its_own(write, llama_params):
    tied = {"model": llama_params["model"]}
    assert "lm_head.weight" not in saved(tied)
    for tensors in (saved(tied), saved(llama_params)):  # some files repeat the embedding as the head
        config, params = load_decoder(write(LLAMA_JSON | {"tie_word_embeddings": True}, tensors))
        assert config.tie_embeddings
        assert_same(params, tied)


def test_a_checkpoint_may_lie_in_bfloat16_in_several_files(tmp_path, llama_params):
    tensors = {name: jnp.asarray(tensor, jnp.bfloat16) for name, tensor in saved(llama_params).items()}
    names = sorted(tensors)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_JSON))
    for number, part in enumerate((names[:5], names[5:])):
        save_flax({name: tensors[name] for name in part}, tmp_path / f"model-0000{number}-of-2.safetensors")
    params = load_decoder(tmp_path)[1]
    assert_same(params, jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), llama_params))


# ---- there and back ----

SCALED = {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0} | {
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
THEIRS = {
    "mha": {},
    "gqa": {"num_key_value_heads": 2},
    "tied": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "llama3": {"num_key_value_heads": 1, "rope_parameters": SCALED, "head_dim": 6},
}


def their_llama(**settings):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=37,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=96,
        **settings,
    )
    return transformers.LlamaForCausalLM(config)


def their_bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=37, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=24
    )
    return transformers.BertModel(config, add_pooling_layer=False)


def assert_bit_equal(folder, tensors):
    """The files of `folder` hold `tensors`, torch's, and nothing else."""
    read = {}
    for path in folder.glob("*.safetensors"):
        read |= safetensors.torch.load_file(path)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name


@pytest.mark.parametrize(
    ("dtype", "kept"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")]
)
@pytest.mark.parametrize("variant", THEIRS)
def test_a_llama_of_transformers_comes_back_bit_by_bit(tmp_path, variant, dtype, kept):
    """As it was saved; from bfloat16 also by way of float32, which holds all of its numbers."""
    theirs = their_llama(**THEIRS[variant]).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "in", max_shard_size="8KB")
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 1
    params = load_decoder(tmp_path / "in", dtype=kept)[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(kept)}
    (tmp_path / "out").mkdir()
    write_tensors(tmp_path / "out", to_hf(params), dtype=dtype, shard_bytes=5000)
    expected = theirs.state_dict()
    if variant == "tied":
        del expected["lm_head.weight"]  # which transformers does not save either
    assert_bit_equal(tmp_path / "out", expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_a_bert_of_transformers_comes_back_bit_by_bit(tmp_path, prefix, dtype):
    theirs = their_bert().to(getattr(torch, dtype))
    theirs.config.save_pretrained(tmp_path)
    prefixed = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    safetensors.torch.save_file(prefixed, tmp_path / "model.safetensors")
    params = load_bert(tmp_path, dtype=dtype)[1]
    (tmp_path / "out").mkdir()
    write_tensors(tmp_path / "out", to_hf(params), dtype=dtype)
    assert_bit_equal(tmp_path / "out", theirs.state_dict())


def test_a_bert_that_has_only_a_pickle_is_read(tmp_path):
    theirs = their_bert()
    theirs.config.save_pretrained(tmp_path)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    expected = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    assert_same(saved(load_bert(tmp_path)[1]), expected)


# ---- over devices ----


def test_every_parameter_goes_straight_to_its_shards(tmp_path, monkeypatch):
    theirs = their_llama(num_key_value_heads=2)
    theirs.save_pretrained(tmp_path)
    sizes = []

    def recorded(tensor):
        def read(index):
            part = tensor.read(index)
            sizes.append((part.size, tensor.shape))
            return part

        return Tensor(tensor.shape, read)

    everything = open_tensors(tmp_path)
    monkeypatch.setattr(
        hf_weights, "open_tensors", lambda _: {name: recorded(t) for name, t in everything.items()}
    )
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    _, params = load_decoder(tmp_path, mesh=mesh)
    shardings = tree_shardings(params, mesh)
    jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding or pytest.fail(), params, shardings)
    kernel = params["model"]["layers"]["mlp"]["up_proj"]["kernel"]  # 3 layers of 16 x 24
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 4, 12)}
    # Of a matrix whose axes both divide no reading took more than a device's eighth.
    assert {size for size, shape in sizes if shape in ((24, 16), (16, 24))} == {48}
    assert_same(params, load_decoder(tmp_path)[1])
    expected = {name: t.numpy() for name, t in theirs.state_dict().items()}
    assert_same(saved(params), expected)


# ---- what does not fit ----


def test_a_missing_tensor_is_named(write, llama_params):
    tensors = saved(llama_params)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match=r"expected the tensor 'model\.layers\.1\.mlp\.up_proj\.weight' by"):
        load_decoder(write(LLAMA_JSON, tensors))


def test_a_left_over_tensor_is_named(write, bert_params):
    tensors = saved(bert_params) | {"encoder.layer.3.output.dense.bias": np.zeros(8, np.float32)}
    with pytest.raises(
        ValueError, match=r"of this network only, got \['encoder\.layer\.3\.output\.dense\.bias'\]"
    ):
        load_bert(write(BERT_JSON, tensors))


def test_a_tensor_of_another_shape_than_the_config_says_is_named(write, llama_params):
    with pytest.raises(ValueError, match=r"k_proj\.weight of shape .* by its settings, got \(.*\. Take both"):
        load_decoder(write(LLAMA_JSON | {"num_key_value_heads": 2}, saved(llama_params)))


def test_a_parameter_without_a_name_is_named(llama_params):
    with pytest.raises(ValueError, match=r"to_hf: expected parameters .*, got \['extra/kernel'\]"):
        to_hf(llama_params | {"extra": {"kernel": jnp.zeros(2)}})


def test_a_folder_without_a_checkpoint_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"expected a config\.json, got none\. Name a folder"):
        load_bert(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(BERT_JSON))
    with pytest.raises(ValueError, match=r"expected \*\.safetensors or a pytorch_model\.bin, got neither"):
        load_bert(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 8}')
    with pytest.raises(
        ValueError, match=r"config\.json: expected vocab_size, num_hidden_layers, num_attention_"
    ):
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
    config = decoder_config(values | extra, "here")
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    "extra",
    [
        {"model_type": "gpt2"},
        {"model_type": ["llama"]},
        {"attention_bias": True},
        {"rope_scaling": {"type": "yarn", "factor": 2.0}},
        {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1},
        {"model_type": "qwen3", "use_sliding_window": True, "layer_types": "full_attention"},
        {"model_type": "gemma2", "hidden_activation": "gelu"},
        {"model_type": "gemma3_text", "use_bidirectional_attention": True},
        {"model_type": "gemma3_text", "layer_types": ["sliding_attention", "chunked_attention"]},
    ],
    ids=str,
)
def test_another_network_is_refused(extra):
    with pytest.raises(ValueError, match=r"here/config\.json.*: expected .*, got .*\. (Use|Name) "):
        decoder_config(LLAMA_JSON | extra, "here")
