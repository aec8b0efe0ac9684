"""Settings out of GGUF's metadata: the `config.json` of the same network, or one clear error."""

import numpy as np
import pytest
from gguf_files import write_gguf

from radit_jax.runtime.pretrained.checkpoint_info import describe
from radit_jax.runtime.pretrained.gguf_config import gguf_config, llama3_divisors

SIZES = {
    "block_count": 12,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "context_length": 4096,
}
# What transformers calls them.
EXPECTED = {
    "num_hidden_layers": 12,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "head_dim": 16,
    "vocab_size": 8,
    "tie_word_embeddings": True,
}
EMBEDDINGS = {"token_embd.weight": np.zeros((8, 64), np.float32)}


@pytest.fixture
def write(tmp_path):
    """A file of the architecture with SIZES; fields that a test gives replace or add to them."""

    def write_model(architecture="llama", tensors=EMBEDDINGS, ids=None, **fields):
        settings = {f"{architecture}.{name}": value for name, value in (SIZES | fields).items()}
        more = {f"tokenizer.ggml.{name}": value for name, value in (ids or {}).items()}
        return write_gguf(tmp_path / "m.gguf", tensors, architecture, **settings, **more)

    return write_model


def plain(theta):
    return {"rope_type": "default", "rope_theta": theta}


def test_a_llama(write):
    assert gguf_config(write()) == EXPECTED | {"model_type": "llama", "rope_parameters": plain(10_000.0)}
    untied = EMBEDDINGS | {"output.weight": np.zeros((8, 64), np.float32)}
    config = gguf_config(write(tensors=untied, **{"rope.freq_base": 5e5, "attention.key_length": 32}))
    assert config["rope_parameters"] == plain(5e5)
    assert (config["head_dim"], config["tie_word_embeddings"]) == (32, False)


def test_a_mistral_is_a_llama_with_a_window(write):
    config = gguf_config(write(**{"attention.sliding_window": 128}))
    assert (config["model_type"], config["sliding_window"]) == ("mistral", 128)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_a_qwen(write, architecture):
    config = gguf_config(write(architecture, **{"rope.freq_base": 1e6}))
    assert config == EXPECTED | {"model_type": architecture, "rope_parameters": plain(1e6)}


LOCAL, FULL = "sliding_attention", "full_attention"


def test_a_gemma_3_has_what_its_file_leaves_out(write):
    fields = {"rope.freq_base": 1e6, "attention.sliding_window": 512, "attention.key_length": 32}
    config = gguf_config(write("gemma3", **fields))
    assert config == EXPECTED | {
        "model_type": "gemma3_text",
        "head_dim": 32,
        "rope_parameters": {FULL: plain(1e6), LOCAL: plain(1e4)},
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 32,
        "sliding_window": 512,
        "layer_types": [LOCAL] * 5 + [FULL] + [LOCAL] * 5 + [FULL],
    }
    # The larger ones stretch the positions of their global layers.
    fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    rope = gguf_config(write("gemma3", **fields))["rope_parameters"]
    assert rope == {FULL: {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}, LOCAL: plain(1e4)}


def test_the_largest_gemma_scales_queries_by_the_width_for_each_head(write):
    fields = {"block_count": 62, "embedding_length": 5376, "attention.head_count": 32}
    assert (
        gguf_config(write("gemma3", **fields, **{"attention.key_length": 128}))["query_pre_attn_scalar"]
        == 168
    )


def test_a_gemma_2_is_local_in_every_other_layer_and_caps(write):
    fields = {
        "attention.sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    }
    config = gguf_config(write("gemma2", **fields))
    assert config["layer_types"] == [LOCAL, FULL] * 6
    assert (config["attn_logit_softcapping"], config["final_logit_softcapping"]) == (50.0, 30.0)
    assert (config["model_type"], config["query_pre_attn_scalar"]) == ("gemma2", 16)


def test_special_ids_are_those_of_the_tokeniser(write):
    ids = {"model": "llama", "bos_token_id": 2, "eos_token_id": 1, "eot_token_id": 6}
    config = gguf_config(write(ids=ids))
    assert (config["bos_token_id"], config["eos_token_id"]) == (2, [1, 6])
    config = gguf_config(write(ids=ids | {"eot_token_id": 1, "add_bos_token": False}))
    assert "bos_token_id" not in config and config["eos_token_id"] == 1


def test_divisors_of_llama_3_by_hand():
    rope = {
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 2 * np.pi * 250,
    }
    # Wavelengths 2π · (1, 10, 100, 1000): 250, 25, 2.5 and 0.25 turns. At 2.5 the share is half.
    expected = [1, 1, 1 / (0.5 / 8 + 0.5), 8]
    np.testing.assert_allclose(llama3_divisors(rope, 8), expected)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("architecture", "fields", "message"),
    [
        ("mamba", {}, r'general\.architecture to be one of llama, .*gemma3, got "mamba"'),
        ("llama", {"expert_count": 8}, r"llama\.expert_count to be 0, got 8"),
        ("llama", {"rope.dimension_count": 8}, r"llama\.rope\.dimension_count to be 16, got 8"),
        ("llama", {"attention.value_length": 8}, r"llama\.attention\.value_length to be 16, got 8"),
        ("llama", {"attention.head_count": [4, 4]}, r"llama\.attention\.head_count to be a whole number"),
        ("qwen2", {"block_count": 0}, r"qwen2\.block_count to be a whole number from 1"),
        ("llama", {"context_length": "long"}, r'llama\.context_length .*, got "long"'),
    ],
)
def test_what_no_network_has_is_refused_by_name(write, architecture, fields, message):
    path = write(architecture, **fields)
    with pytest.raises(ValueError, match=rf"m\.gguf: expected {message}"):
        gguf_config(path)


def test_a_missing_size_and_missing_embeddings_are_named(tmp_path, write):
    path = write_gguf(tmp_path / "none.gguf", EMBEDDINGS)
    with pytest.raises(ValueError, match=r"none\.gguf: expected llama\.block_count, llama\.embedding"):
        gguf_config(path)
    with pytest.raises(ValueError, match=r"m\.gguf: expected the tensor token_embd\.weight, got none"):
        gguf_config(write(tensors={}))


def test_a_scaling_of_rope_that_the_network_lacks_is_refused(write):
    path = write(**{"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0})
    with pytest.raises(ValueError, match=r'm\.gguf: expected rope type .*"yarn"'):
        describe(str(path))


def test_a_decoder_is_no_encoder(write):
    with pytest.raises(ValueError, match=r'a BERT .*got model_type "llama"'):
        describe(str(write()), expected="bert")
