"""Tensors of a GGUF file by Hugging Face's names, and as transformers' networks have them.

llama.cpp's converter changes two things, which are undone here when a tensor is read. It turns the rows of
LLaMA's queries and keys from halves into pairs. It adds 1 to the norms of a Gemma, which scale by 1 + w.
"""

import os
import re
from functools import partial
from typing import Any

import numpy as np

from radit_jax.runtime.pretrained.gguf_config import ROPE_DIVISORS, gguf_config
from radit_jax.runtime.pretrained.gguf_file import GgufFile, open_gguf
from radit_jax.runtime.pretrained.tensor_files import Index, Tensor

_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
# Of a layer, `blk.{}` there and `model.layers.{}` here.
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Gemma has a norm after the attention too, so its names shift.
_GEMMA_LAYER_NAMES = _LAYER_NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GEMMAS = ("gemma2", "gemma3")
_LAYER = re.compile(r"blk\.(?P<layer>\d+)\.(?P<module>\w+)\.(?P<kind>weight|bias)")


def open_gguf_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of the model in the file at `path`, by Hugging Face's names; nothing is read yet.

    A tensor that has no name there keeps its own.
    """
    file = open_gguf(path)
    architecture = file.metadata["general.architecture"]
    config = gguf_config(path)
    tensors = {}
    for name, entry in file.tensors.items():
        # The settings have them.
        if name == ROPE_DIVISORS:
            continue
        rows = None
        if architecture == "llama":
            rows = _rows_by_halves(name, config)
        added = 1.0 if architecture in _GEMMAS and name.endswith("norm.weight") else 0.0
        read = partial(_read, file, name, rows, added)
        tensors[_hf_name(name, architecture)] = Tensor(entry.shape, read)
    return tensors


def _hf_name(name: str, architecture: str) -> str:
    """Hugging Face's name of a tensor, or its own.

    >>> _hf_name("blk.3.ffn_norm.weight", "llama"), _hf_name("blk.3.ffn_norm.weight", "gemma3")
    ('model.layers.3.post_attention_layernorm.weight', 'model.layers.3.pre_feedforward_layernorm.weight')
    """
    module, _, kind = name.rpartition(".")
    if module in _NAMES:
        return f"{_NAMES[module]}.{kind}"
    # The same name means another norm in a Gemma.
    names = _GEMMA_LAYER_NAMES if architecture in _GEMMAS else _LAYER_NAMES
    match = _LAYER.fullmatch(name)
    if match is None or match["module"] not in names:
        return name
    return f"model.layers.{match['layer']}.{names[match['module']]}.{match['kind']}"


def _rows_by_halves(name: str, config: dict[str, Any]) -> np.ndarray | None:
    """The file's row for each of transformers' rows of a LLaMA's queries or keys; None for other tensors.

    RoPE turns number i of a head together with number i + 1 there, and with i + size / 2 here.
    """
    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"] or config["num_attention_heads"],
    }
    match = _LAYER.fullmatch(name)
    if match is None or match["module"] not in heads:
        return None
    # The inverse of what the converter does to each head.
    num_heads, size = heads[match["module"]], config["head_dim"]
    in_pairs = np.arange(num_heads * size).reshape(num_heads, size // 2, 2)
    return in_pairs.swapaxes(1, 2).reshape(-1)


def _read(
    file: GgufFile,
    name: str,
    rows: np.ndarray | None,
    added: float,
    index: Index,
) -> np.ndarray:
    """The part `index` of a tensor, with its rows in the order `rows`, and less what was added to it."""
    # Rows are chosen before they are dequantised, columns after it.
    first, *others = index
    part = file.read(name, first if rows is None else rows[first])
    part = part[(slice(None), *others)]
    return part.astype(np.float32) - np.float32(added) if added else part
