"""The settings in a GGUF file's metadata, as the `config.json` that transformers has for the same network.

The names begin with the architecture: `llama.block_count`. What llama.cpp fixes for an architecture is not in
the file: Gemma's activation, the θ of its local layers, which layers are local, how queries are scaled.
Names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from radit_jax.runtime.pretrained.fields import Field, read_fields, shown_value
from radit_jax.runtime.pretrained.gguf_file import REMEDY, GgufFile, open_gguf
from radit_jax.runtime.pretrained.gguf_tokenizer import special_ids

SIZE = (1, 1 << 24)  # the range of a width
EMBEDDINGS, HEAD = "token_embd.weight", "output.weight"
ROPE_DIVISORS = "rope_freqs.weight"  # LLaMA 3's scaling of RoPE: what each frequency is divided by
# Metadata after the architecture's name, and transformers' names.
_FIELDS = {
    "block_count": Field("num_hidden_layers", int, 1, 10_000),
    "embedding_length": Field("hidden_size", int, *SIZE),
    "feed_forward_length": Field("intermediate_size", int, *SIZE),
    "attention.head_count": Field("num_attention_heads", int, *SIZE),
    "attention.head_count_kv": Field("num_key_value_heads", int, *SIZE, None),
    "attention.key_length": Field("head_dim", int, *SIZE, None),
    "attention.layer_norm_rms_epsilon": Field("rms_norm_eps", float, 0, 1),
    "context_length": Field("max_position_embeddings", int, 1, 1 << 30),
}
_OTHERS = {
    "attention.value_length": Field("value_length", int, *SIZE, None),
    "attention.sliding_window": Field("sliding_window", int, 0, 1 << 30, 0),
    "attention.sliding_window_pattern": Field("pattern", int, 1, 10_000, None),
    "attn_logit_softcapping": Field("attn_softcapping", float, 0, 1e6, None),
    "final_logit_softcapping": Field("final_softcapping", float, 0, 1e6, None),
    "rope.dimension_count": Field("rope_size", int, *SIZE, None),
    "rope.freq_base": Field("theta", float, 1, 1e15, 10_000.0),
    "rope.freq_base_swa": Field("local_theta", float, 1, 1e15, 10_000.0),
    "rope.scaling.type": Field("scaling", str, default="none"),
    "rope.scaling.factor": Field("factor", float, 1e-3, 1e6, 1.0),
    "expert_count": Field("num_experts", int, default=0),
}
# LLaMA 3.1's, 3.2's and 3.3's scaling of RoPE, which differ in the factor alone.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# The numbers of layers of the two Gemmas whose queries are not scaled by their heads' width.
_GEMMA2_27B, _GEMMA3_27B = 46, 62


def gguf_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The `config.json` of the model in the file at `path`.

    ValueError where its architecture is not known here, or its settings are none that transformers' network
    of that architecture has.
    """
    file = open_gguf(path)
    where = str(file.path)
    # 1) The architecture.
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise ValueError(
            f"{where}: expected general.architecture to be one of {', '.join(ARCHITECTURES)}, got "
            f"{shown_value(architecture)}. Use a model of these."
        )
    # 2) What all of them have.
    prefix = f"{architecture}."
    config = read_fields(file.metadata, _prefixed(_FIELDS, prefix), where, REMEDY)
    others = read_fields(file.metadata, _prefixed(_OTHERS, prefix), where, REMEDY)
    config["head_dim"] = config["head_dim"] or config["hidden_size"] // config["num_attention_heads"]
    _check(config, others, prefix, where)
    if EMBEDDINGS not in file.tensors:
        raise ValueError(f"{where}: expected the tensor {EMBEDDINGS}, got none. {REMEDY}")
    config["vocab_size"] = file.tensors[EMBEDDINGS].shape[0]
    config["tie_word_embeddings"] = HEAD not in file.tensors

    # 3) What is the architecture's own, and the special ids.
    config |= ARCHITECTURES[architecture](file, config, others)
    ids = special_ids(file)
    return config | {f"{name}_id": number for name, number in ids.items() if number is not None}


def _prefixed(table: Mapping[str, Field], prefix: str) -> dict[str, Field]:
    return {prefix + name: field for name, field in table.items()}


def _check(config: Mapping[str, Any], others: Mapping[str, Any], prefix: str, where: str) -> None:
    """Refuse what none of the networks does."""
    width = config["head_dim"]
    # The value, and what is allowed; None is that the file does not say it.
    expected = {
        "attention.value_length": (others["value_length"], (None, width)),
        "rope.dimension_count": (others["rope_size"], (None, width)),
        "expert_count": (others["num_experts"], (0,)),
    }
    for name, (value, allowed) in expected.items():
        if value not in allowed:
            raise ValueError(
                f"{where}: expected {prefix}{name} to be {allowed[-1]}, got {value}. Use a model whose heads "
                "are all alike, without experts."
            )


def _rope(others: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE's settings in transformers' newest form."""
    if others["scaling"] == "none":
        return {"rope_type": "default", "rope_theta": others["theta"]}
    return {"rope_type": others["scaling"], "rope_theta": others["theta"], "factor": others["factor"]}


# ---- architectures ----


def _llama(file: GgufFile, config: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """LLaMA, and Mistral, which is called so too."""
    rope = _rope(others)
    if ROPE_DIVISORS in file.tensors:
        rope = _llama3_rope(file, config["head_dim"], others["theta"])
    # No LLaMA has a window.
    if others["sliding_window"]:
        return {
            "model_type": "mistral",
            "rope_parameters": rope,
            "sliding_window": others["sliding_window"],
        }
    return {"model_type": "llama", "rope_parameters": rope}


def _llama3_rope(file: GgufFile, head_size: int, theta: float) -> dict[str, Any]:
    """LLaMA 3's scaling of RoPE, by the divisors of the frequencies in the file."""
    divisors = file.read(ROPE_DIVISORS)
    rope = {"rope_type": "llama3", "rope_theta": theta, "factor": float(divisors.max()), **_LLAMA3}
    expected = llama3_divisors(rope, head_size)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-3):
        raise ValueError(
            f"{file.path}: expected {ROPE_DIVISORS} to be LLaMA 3's scaling of RoPE from 8,192 positions, "
            "got other numbers. Use a checkpoint in Hugging Face's form."
        )
    return rope


def llama3_divisors(rope: Mapping[str, Any], head_size: int) -> np.ndarray:
    """What LLaMA 3 divides RoPE's frequencies by: `factor` for the low ones, 1 for the high ones.

    Between them it interpolates the inverse.
    """
    # How often each frequency turns within the positions that the model was first trained on.
    exponents = np.arange(0, head_size, 2) / head_size
    wavelengths = 2 * math.pi * rope["rope_theta"] ** exponents
    turns = rope["original_max_position_embeddings"] / wavelengths
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - share) / rope["factor"] + share)


def _qwen(model_type: str) -> Callable[..., dict[str, Any]]:
    def settings(file: GgufFile, config: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
        return {"model_type": model_type, "rope_parameters": _rope(others)}

    return settings


def _gemma2(file: GgufFile, config: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Gemma 2: every second layer is global."""
    is_largest = config["num_hidden_layers"] == _GEMMA2_27B
    return {
        "model_type": "gemma2",
        "rope_parameters": _rope(others),
        "attn_logit_softcapping": others["attn_softcapping"],
        "final_logit_softcapping": others["final_softcapping"],
        **_gemma(config, others, others["pattern"] or 2, is_largest),
    }


def _gemma3(file: GgufFile, config: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """The text model of Gemma 3: every sixth layer is global, and the others have a θ of their own."""
    is_largest = config["num_hidden_layers"] == _GEMMA3_27B
    return {
        "model_type": "gemma3_text",
        "rope_parameters": {
            "full_attention": _rope(others),
            "sliding_attention": {"rope_type": "default", "rope_theta": others["local_theta"]},
        },
        **_gemma(config, others, others["pattern"] or 6, is_largest),
    }


def _gemma(
    config: Mapping[str, Any], others: Mapping[str, Any], pattern: int, is_largest: bool
) -> dict[str, Any]:
    """What Gemma 2 and 3 share. Every layer whose number is a multiple of `pattern` is global."""
    layer_types = []
    for number in range(1, config["num_hidden_layers"] + 1):
        layer_types.append("sliding_attention" if number % pattern else "full_attention")
    # The largest model's queries are scaled by the width of the embeddings for each head.
    scale = config["hidden_size"] // config["num_attention_heads"] if is_largest else config["head_dim"]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scale,
        "sliding_window": others["sliding_window"],
        "layer_types": layer_types,
    }


ARCHITECTURES: dict[str, Callable[..., dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen("qwen2"),
    "qwen3": _qwen("qwen3"),
    "gemma2": _gemma2,
    "gemma3": _gemma3,
}
