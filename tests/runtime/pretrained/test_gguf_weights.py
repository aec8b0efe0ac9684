"""Models out of GGUF files, against transformers' own that they were written from."""

import importlib.util

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from gguf_files import (
    converted,
    gemma_file,
    metadata_of,
    tokenizer_metadata,
    write_gguf,
    write_whole_model,
)

import radit_jax
from radit_jax.config import MeshConfig
from radit_jax.runtime.distributed.mesh import make_mesh
from radit_jax.runtime.pretrained import hub
from radit_jax.runtime.pretrained.gguf_file import open_gguf
from radit_jax.runtime.pretrained.gguf_weights import open_gguf_tensors
from radit_jax.runtime.pretrained.hf_export import export_hf
from radit_jax.runtime.pretrained.model_io import open_model

SENTENCE = "The Danube rises in the Black Forest and flows through ten countries to the Black Sea."
SENTENCE_LOG_PROB = -3.6108
IDS = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(0))


def tiny_llama(**changes):
    settings = {
        "vocab_size": 96,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**(settings | changes))
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def llama():
    return tiny_llama()


def write_llama(path, model, **more):
    tensors = converted(model, "llama")
    return write_gguf(path, tensors, **metadata_of(model.config, "llama", **more))


def assert_same_logits(path, model):
    module, params, _ = radit_jax.load(path)
    logits = module.apply({"params": params}, jnp.asarray(IDS.numpy()))
    with torch.no_grad():
        expected = model(IDS).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_a_llama_has_the_logits_of_transformers(llama, tmp_path):
    path = write_llama(tmp_path / "llama.gguf", llama)
    module, params, tokenizer = radit_jax.load(path)
    assert tokenizer is None and module.config.num_kv_heads == 2
    assert_same_logits(path, llama)
    # Weights are copied, not rounded.
    kernel = params["model"]["layers"]["self_attn"]["q_proj"]["kernel"][1]
    np.testing.assert_array_equal(kernel.T, llama.model.layers[1].self_attn.q_proj.weight.detach())


# ---- other families ----

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
LOCAL = ["sliding_attention"]
GEMMA = {"sliding_window": 5, "tie_word_embeddings": True, "query_pre_attn_scalar": 16}
ROPE = {"rope_type": "default", "rope_theta": 1e6}
# transformers' name of a model; its settings; llama.cpp's architecture, and the metadata that it adds.
FAMILIES = {
    "Qwen2": ({"num_hidden_layers": 2, "head_dim": 8, "rope_parameters": ROPE}, "qwen2", {}),
    "Qwen3": ({"num_hidden_layers": 2, "rope_parameters": ROPE}, "qwen3", {}),
    "Mistral": (
        {"num_hidden_layers": 2, "sliding_window": 5, "rope_parameters": ROPE},
        "llama",
        {"attention.sliding_window": 5},
    ),
    "Gemma2": (
        GEMMA
        | {
            "layer_types": [*LOCAL, "full_attention"] * 3 + LOCAL,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 2.0,
            "rope_parameters": ROPE,
        },
        "gemma2",
        {
            "attention.sliding_window": 5,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 2.0,
        },
    ),
    "Gemma3": (
        GEMMA
        | {
            "layer_types": LOCAL * 5 + ["full_attention"] + LOCAL,
            "rope_parameters": {
                "full_attention": ROPE,
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        "gemma3",
        {"attention.sliding_window": 5},
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_has_the_logits_of_transformers(name, tmp_path):
    changes, architecture, metadata = FAMILIES[name]
    config_name = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    torch.manual_seed(0)
    config = getattr(transformers, config_name)(**(SIZES | changes), attn_implementation="eager")
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    # Biases and norms are drawn, too: at first they are all alike.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 8)
    settings = metadata_of(config, architecture, **{"rope.freq_base": 1e6}, **metadata)
    settings |= tokenizer_metadata(96)
    path = write_gguf(tmp_path / "model.gguf", converted(model, architecture), architecture, **settings)
    assert_same_logits(path, model)
    # It goes out again as it was before it was converted.
    export_hf(tmp_path / "hf", open_model(str(path)))
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert type(exported) is type(model)
    for name_of_tensor, weight in model.state_dict().items():
        difference = exported.state_dict()[name_of_tensor] - weight
        assert difference.abs().max() <= 2**-22, name_of_tensor  # a Gemma's norms are 1 + w in the file


def test_tied_embeddings_and_half_precision(tmp_path):
    model = tiny_llama(tie_word_embeddings=True)
    tensors = converted(model, "llama")
    halved = {name: array.astype(np.float16) for name, array in tensors.items() if array.ndim == 2}
    path = write_gguf(tmp_path / "half.gguf", tensors | halved, **metadata_of(model.config, "llama"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(parameter.half().float())
    assert_same_logits(path, model)


def test_llama_3s_scaling_of_rope_is_known_by_its_divisors(tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = tiny_llama(rope_parameters=rope, head_dim=64)
    plain = tiny_llama(rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}, head_dim=64)
    # What the converter writes: by how much the frequencies are lowered.
    divisors = (plain.model.rotary_emb.inv_freq / model.model.rotary_emb.inv_freq).numpy()
    settings = metadata_of(model.config, "llama", **{"rope.freq_base": 500_000.0})
    tensors = converted(model, "llama") | {"rope_freqs.weight": divisors}
    path = write_gguf(tmp_path / "llama3.gguf", tensors, **settings)
    scaling = radit_jax.load(path)[0].config.rope_scaling
    assert (scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor) == (8.0, 1.0, 4.0)
    assert scaling.original_max_length == 8192
    assert_same_logits(path, model)
    # Another scaling is no LLaMA's.
    wrong = write_gguf(tmp_path / "other.gguf", tensors | {"rope_freqs.weight": divisors**2}, **settings)
    with pytest.raises(ValueError, match=r"other\.gguf: expected rope_freqs\.weight to be LLaMA 3's"):
        radit_jax.load(wrong)


def test_quantised_rows_are_read_in_the_order_of_transformers(llama, tmp_path):
    tensors = converted(llama, "llama")
    kind = gguf.GGMLQuantizationType.Q8_0
    quantised = {}
    for name, array in tensors.items():
        quantised[name] = (gguf.quants.quantize(array, kind), kind) if array.ndim == 2 else array
    path = write_gguf(tmp_path / "q8.gguf", quantised, **metadata_of(llama.config, "llama"))
    opened = open_gguf_tensors(path)
    weights = llama.state_dict()
    assert opened.keys() == weights.keys()
    for name, tensor in opened.items():
        expected = weights[name].numpy()
        np.testing.assert_allclose(tensor.whole(), expected, atol=np.abs(expected).max() / 127)
    # A part is what it is of the whole.
    part = (slice(5, 40, 3), slice(2, 30))
    tensor = opened["model.layers.0.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(tensor.read(part), tensor.whole()[part])


@pytest.mark.slow
def test_gemma_3_gives_a_passage_the_probability_that_transformers_gives_it():
    """The mean over the tokens of a sentence, from transformers 5.23 and the same file in float32."""
    module, params, tokenizer = radit_jax.load(gemma_file())
    ids = jnp.asarray([tokenizer.encode_prompt(SENTENCE)])
    logits = jax.jit(module.apply)({"params": params}, ids)
    log_probs = jax.nn.log_softmax(logits[0, :-1])
    mean = jnp.take_along_axis(log_probs, ids[0, 1:, None], axis=1).mean()
    np.testing.assert_allclose(mean, SENTENCE_LOG_PROB, atol=1e-3)


def test_devices_read_their_parts_of_a_quantised_model(tmp_path):
    path = str(write_whole_model(tmp_path))
    alone = open_model(path).params
    spread = open_model(path, mesh=make_mesh(MeshConfig(fsdp=4, tensor=2))).params
    jax.tree.map(np.testing.assert_array_equal, spread, alone)
    kernel = spread["model"]["layers"]["mlp"]["up_proj"]["kernel"]
    assert len({str(shard.index) for shard in kernel.addressable_shards}) == 8


def test_the_norms_of_a_gemma_hold_one_less(tmp_path):
    norm, matrix = np.float32([1.5, 0.25]), np.ones((4, 2), np.float32)
    tensors = {
        "blk.0.ffn_norm.weight": norm,
        "blk.0.attn_q_norm.weight": norm,
        "blk.0.attn_q.weight": matrix,
        "token_embd.weight": matrix,
        "mystery.weight": matrix,
    }
    config = transformers.LlamaConfig(num_hidden_layers=1, hidden_size=2, num_attention_heads=1)
    settings = metadata_of(config, "gemma3")
    opened = open_gguf_tensors(write_gguf(tmp_path / "g.gguf", tensors, "gemma3", **settings))
    for name in ("pre_feedforward_layernorm", "self_attn.q_norm"):
        np.testing.assert_array_equal(opened[f"model.layers.0.{name}.weight"].whole(), [0.5, -0.75])
    np.testing.assert_array_equal(opened["model.layers.0.self_attn.q_proj.weight"].whole(), matrix)
    assert "mystery.weight" in opened


# ---- files ----


def test_a_model_in_parts_is_one_model(llama, tmp_path):
    tensors = converted(llama, "llama")
    names = sorted(tensors)
    first = {name: tensors[name] for name in names[:5]}
    rest = {name: tensors[name] for name in names[5:]}
    settings = metadata_of(llama.config, "llama")
    write_gguf(tmp_path / "m-00001-of-00002.gguf", first, **settings)
    write_gguf(tmp_path / "m-00002-of-00002.gguf", rest)
    # By its first file, and by the folder.
    assert_same_logits(tmp_path / "m-00001-of-00002.gguf", llama)
    assert_same_logits(tmp_path, llama)
    write_gguf(tmp_path / "m-00002-of-00002.gguf", tensors)
    with pytest.raises(ValueError, match=r"m-00002-of-00002\.gguf: expected each tensor once"):
        radit_jax.load(tmp_path)


def test_a_folder_of_two_models_asks_for_one(llama, tmp_path):
    write_llama(tmp_path / "a.gguf", llama)
    assert_same_logits(tmp_path, llama)
    write_llama(tmp_path / "b.gguf", llama)
    with pytest.raises(ValueError, match=r"expected one \.gguf file, got a\.gguf, b\.gguf"):
        radit_jax.load(tmp_path)


# ---- what is refused ----


def test_a_tensor_that_is_missing_or_left_over_is_named(llama, tmp_path):
    tensors = converted(llama, "llama")
    settings = metadata_of(llama.config, "llama")
    more = write_gguf(tmp_path / "more.gguf", tensors | {"blk.0.attn_q.bias": np.ones(64, "f4")}, **settings)
    with pytest.raises(ValueError, match=r"more\.gguf: .*layers\.0\.self_attn\.q_proj\.bias"):
        radit_jax.load(more)
    del tensors["blk.1.ffn_up.weight"]
    less = write_gguf(tmp_path / "less.gguf", tensors, **settings)
    with pytest.raises(ValueError, match=r"less\.gguf: expected the tensor .*layers\.1\.mlp\.up_proj"):
        radit_jax.load(less)


def test_a_tokeniser_of_another_vocabulary_is_refused(tmp_path):
    path = write_whole_model(tmp_path)
    assert radit_jax.load(path)[2].encode_prompt("ab") == [1, 8]
    file = open_gguf(path)
    tensors = {name: file.read(name) for name in file.tensors}
    tensors["token_embd.weight"] = tensors["token_embd.weight"][:8]
    tensors["output.weight"] = tensors["output.weight"][:8]
    metadata = {name: value for name, value in file.metadata.items() if name != "general.architecture"}
    for name, value in metadata.items():
        metadata[name] = value.tolist() if isinstance(value, np.ndarray) else value
    smaller = write_gguf(tmp_path / "smaller.gguf", tensors, **metadata)
    with pytest.raises(ValueError, match=r"smaller\.gguf: expected at most 8 ids.*a tokeniser of 9"):
        radit_jax.load(smaller)


def test_a_missing_reader_is_named_before_anything_runs(tmp_path, monkeypatch):
    path = str(write_whole_model(tmp_path))
    hub.check_weights(path)
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gguf" else find(name))
    with pytest.raises(ValueError, match=r"model\.gguf: expected the package gguf.*type Q8_0"):
        hub.check_weights(path)
