"""Checkpoints in Hugging Face's form, to our parameters and back.

One table for each network pairs Hugging Face's names with our paths, and is walked both ways. `{}` is the
number of a layer: the layers' tensors are stacked on a leading axis. A `kernel` is the transpose, (in, out)
where torch has (out, in). Nothing may be missing and nothing left over, but for what is named as ignored.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from radit_jax.config import BertConfig, LlamaConfig, RopeScaling
from radit_jax.models.bert import Bert
from radit_jax.models.llama import Llama

Table = tuple[tuple[str, str], ...]
Tensors = dict[str, np.ndarray]

LLAMA: Table = (
    ("model.embed_tokens.weight", "model/embed_tokens/embedding"),
    ("model.layers.{}.input_layernorm.weight", "model/layers/input_layernorm/weight"),
    ("model.layers.{}.self_attn.q_proj.weight", "model/layers/self_attn/q_proj/kernel"),
    ("model.layers.{}.self_attn.k_proj.weight", "model/layers/self_attn/k_proj/kernel"),
    ("model.layers.{}.self_attn.v_proj.weight", "model/layers/self_attn/v_proj/kernel"),
    ("model.layers.{}.self_attn.o_proj.weight", "model/layers/self_attn/o_proj/kernel"),
    ("model.layers.{}.post_attention_layernorm.weight", "model/layers/post_attention_layernorm/weight"),
    ("model.layers.{}.mlp.gate_proj.weight", "model/layers/mlp/gate_proj/kernel"),
    ("model.layers.{}.mlp.up_proj.weight", "model/layers/mlp/up_proj/kernel"),
    ("model.layers.{}.mlp.down_proj.weight", "model/layers/mlp/down_proj/kernel"),
    ("model.norm.weight", "model/norm/weight"),
    ("lm_head.weight", "lm_head/kernel"),  # absent when tied
)
LLAMA_IGNORED = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"

BERT: Table = (
    ("embeddings.word_embeddings.weight", "embeddings/word_embeddings/embedding"),
    ("embeddings.position_embeddings.weight", "embeddings/position_embeddings/embedding"),
    ("embeddings.token_type_embeddings.weight", "embeddings/token_type_embeddings/embedding"),
    ("embeddings.LayerNorm.weight", "embeddings/LayerNorm/scale"),
    ("embeddings.LayerNorm.bias", "embeddings/LayerNorm/bias"),
    ("encoder.layer.{}.attention.self.query.weight", "encoder/layer/attention/self/query/kernel"),
    ("encoder.layer.{}.attention.self.query.bias", "encoder/layer/attention/self/query/bias"),
    ("encoder.layer.{}.attention.self.key.weight", "encoder/layer/attention/self/key/kernel"),
    ("encoder.layer.{}.attention.self.key.bias", "encoder/layer/attention/self/key/bias"),
    ("encoder.layer.{}.attention.self.value.weight", "encoder/layer/attention/self/value/kernel"),
    ("encoder.layer.{}.attention.self.value.bias", "encoder/layer/attention/self/value/bias"),
    ("encoder.layer.{}.attention.output.dense.weight", "encoder/layer/attention/output/dense/kernel"),
    ("encoder.layer.{}.attention.output.dense.bias", "encoder/layer/attention/output/dense/bias"),
    ("encoder.layer.{}.attention.output.LayerNorm.weight", "encoder/layer/attention/output/LayerNorm/scale"),
    ("encoder.layer.{}.attention.output.LayerNorm.bias", "encoder/layer/attention/output/LayerNorm/bias"),
    ("encoder.layer.{}.intermediate.dense.weight", "encoder/layer/intermediate/dense/kernel"),
    ("encoder.layer.{}.intermediate.dense.bias", "encoder/layer/intermediate/dense/bias"),
    ("encoder.layer.{}.output.dense.weight", "encoder/layer/output/dense/kernel"),
    ("encoder.layer.{}.output.dense.bias", "encoder/layer/output/dense/bias"),
    ("encoder.layer.{}.output.LayerNorm.weight", "encoder/layer/output/LayerNorm/scale"),
    ("encoder.layer.{}.output.LayerNorm.bias", "encoder/layer/output/LayerNorm/bias"),
)
# The pooler serves BERT's next-sentence task; the position ids are a constant that old versions saved.
BERT_IGNORED = r"pooler\..*|embeddings\.position_ids"


def load_llama(folder: epath.PathLike) -> tuple[LlamaConfig, Any]:
    """The LLaMA in `folder` (`config.json` and `*.safetensors`): its config and float32 parameters."""
    config = llama_config(_read_config(folder), str(folder))
    ignored = LLAMA_IGNORED + (r"|lm_head\.weight" if config.tie_embeddings else "")
    tensors = _drop(_read_tensors(folder), ignored)
    return config, _from_hf(tensors, LLAMA, Llama(config), str(folder))


def load_bert(
    folder: epath.PathLike,
    num_layers: int | None = None,
    *,
    pooling: Literal["cls", "mean"] = "cls",
    normalize: bool = False,
) -> tuple[BertConfig, Any]:
    """The BERT in `folder`, or its first `num_layers` layers: its config and float32 parameters.

    Tensor names may begin with `bert.`. How its vectors are made no config says: the caller does.
    """
    values = _read_config(folder)
    saved_layers = values.get("num_hidden_layers", 0)
    if num_layers and num_layers > saved_layers:
        raise ValueError(
            f"{folder}: num_layers is {num_layers}, the checkpoint has {saved_layers}; ask for fewer layers"
        )
    values = values | {"num_hidden_layers": num_layers or saved_layers}
    config = bert_config(values, pooling, normalize, str(folder))
    tensors = {name.removeprefix("bert."): tensor for name, tensor in _read_tensors(folder).items()}
    cut = "|".join(rf"encoder\.layer\.{layer}\..*" for layer in range(config.num_layers, saved_layers))
    tensors = _drop(tensors, f"{BERT_IGNORED}|{cut}" if cut else BERT_IGNORED)
    return config, _from_hf(tensors, BERT, Bert(config), str(folder))


def to_hf(params: Any) -> Tensors:
    """The parameters of a `Llama` or a `Bert` under Hugging Face's names, as their checkpoints have them."""
    arrays = flatten_dict(params, sep="/")
    tensors = {}
    for name, path in LLAMA if "model" in params else BERT:
        if path == "lm_head/kernel" and path not in arrays:
            continue
        array = np.asarray(arrays.pop(path))
        array = np.ascontiguousarray(array.swapaxes(-1, -2)) if path.endswith("/kernel") else array
        layers = enumerate(array) if "{}" in name else [(0, array)]
        tensors |= {name.format(number): layer for number, layer in layers}
    if arrays:
        raise ValueError(f"to_hf: parameters {sorted(arrays)} have no name in a checkpoint; remove them")
    return tensors


def llama_config(values: Mapping[str, Any], where: str) -> LlamaConfig:
    """A LLaMA's `config.json`, in its old forms (RoPE at the top, fields absent) and the newest."""
    _demand(values, where, model_type="llama", hidden_act="silu", attention_bias=False, mlp_bias=False)
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    heads, size = _get(values, "num_attention_heads", where), _get(values, "hidden_size", where)
    return LlamaConfig(
        vocab_size=_get(values, "vocab_size", where),
        hidden_size=size,
        num_layers=_get(values, "num_hidden_layers", where),
        num_heads=heads,
        num_kv_heads=values.get("num_key_value_heads") or heads,
        head_size=values.get("head_dim") or size // heads,
        ffn_size=_get(values, "intermediate_size", where),
        max_length=values.get("max_position_embeddings", 2048),
        rms_norm_eps=values.get("rms_norm_eps", 1e-6),
        rope_theta=float(rope.get("rope_theta") or values.get("rope_theta") or 10_000.0),
        rope_scaling=_rope_scaling(rope, where),
        tie_embeddings=values.get("tie_word_embeddings", False),
    )


def bert_config(
    values: Mapping[str, Any], pooling: Literal["cls", "mean"], normalize: bool, where: str
) -> BertConfig:
    """A BERT's `config.json`, with how its vectors are made."""
    _demand(values, where, model_type="bert", hidden_act="gelu", position_embedding_type="absolute")
    return BertConfig(
        vocab_size=_get(values, "vocab_size", where),
        hidden_size=_get(values, "hidden_size", where),
        num_layers=_get(values, "num_hidden_layers", where),
        num_heads=_get(values, "num_attention_heads", where),
        ffn_size=_get(values, "intermediate_size", where),
        max_length=values.get("max_position_embeddings", 512),
        type_vocab_size=values.get("type_vocab_size", 2),
        layer_norm_eps=values.get("layer_norm_eps", 1e-12),
        pooling=pooling,
        normalize=normalize,
    )


def _rope_scaling(rope: Mapping[str, Any], where: str) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(
            f"{where}/config.json: rope type is {kind!r}, needed is default or llama3; use such a checkpoint"
        )
    return RopeScaling(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_length=rope["original_max_position_embeddings"],
    )


def _from_hf(tensors: Tensors, table: Table, module: Llama | Bert, where: str) -> Any:
    """The parameters of `module`, in the shapes that its config gives them; all tensors are used."""
    shapes = _parameter_shapes(module)
    arrays = {}
    for name, path in table:
        if path not in shapes:
            continue
        array = _take(tensors, name, module.config.num_layers, where)
        arrays[path] = array.swapaxes(-1, -2) if path.endswith("/kernel") else array
        if arrays[path].shape != shapes[path]:
            raise ValueError(
                f"{where}: {name} gives shape {arrays[path].shape} for {path}, but config.json asks for "
                f"{shapes[path]}; take both files from one model"
            )
    if tensors:
        raise ValueError(
            f"{where}: tensors {sorted(tensors)} have no place in this network; use a checkpoint without them"
        )
    return unflatten_dict(arrays, sep="/")


def _take(tensors: Tensors, name: str, num_layers: int, where: str) -> np.ndarray:
    """Remove a tensor, or the stack of all layers' tensors, from `tensors`."""
    names = [name.format(i) for i in range(num_layers)] if "{}" in name else [name]
    if missing := [name for name in names if name not in tensors]:
        raise ValueError(
            f"{where}: no tensor {missing[0]!r}, which config.json asks for; fetch it again, whole"
        )
    taken = [tensors.pop(name).astype(np.float32) for name in names]
    return np.stack(taken) if "{}" in name else taken[0]


def _parameter_shapes(module: Llama | Bert) -> dict[str, tuple[int, ...]]:
    inputs = [jnp.zeros((1, 1), jnp.int32)] + [jnp.ones((1, 1), bool)] * isinstance(module, Bert)
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    leaves: dict[str, Any] = flatten_dict(variables["params"], sep="/")
    return {path: leaf.shape for path, leaf in leaves.items()}


def _read_config(folder: epath.PathLike) -> dict[str, Any]:
    path = epath.Path(folder) / "config.json"
    if not path.exists():
        raise ValueError(f"{folder}: no config.json; name a folder with a checkpoint in Hugging Face's form")
    return json.loads(path.read_text())


def _read_tensors(folder: epath.PathLike) -> Tensors:
    paths = sorted(epath.Path(folder).glob("*.safetensors"))
    if not paths:
        raise ValueError(
            f"{folder}: no *.safetensors; name a folder with a checkpoint in Hugging Face's form"
        )
    return {
        name: _to_numpy(raw) for path in paths for name, raw in safetensors.deserialize(path.read_bytes())
    }


def _to_numpy(raw: Mapping[str, Any]) -> np.ndarray:
    # The package's own reader for numpy knows no bfloat16, in which most LLaMAs are saved.
    dtype = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "I64": np.int64}[raw["dtype"]]
    return np.frombuffer(raw["data"], dtype).reshape(raw["shape"])


def _drop(tensors: Tensors, ignored: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not re.fullmatch(ignored, name)}


def _get(values: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in values:
        raise ValueError(f"{where}/config.json: no {name!r}; get the checkpoint's own config.json")
    return values[name]


def _demand(values: Mapping[str, Any], where: str, **needed: Any) -> None:
    """An error where the config has a field that says that this is another network than ours."""
    for name, value in needed.items():
        if values.get(name, value) != value:
            raise ValueError(
                f"{where}/config.json: {name} is {values[name]!r}, needed is {value!r}; use such a checkpoint"
            )
