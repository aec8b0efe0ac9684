"""GGUF files for tests, written by llama.cpp's own package."""

import gguf


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
