"""Checkpoints in Hugging Face's form, to our parameters and back.

One table for each network pairs Hugging Face's names with our paths, and is walked both ways. `{}` is the
number of a layer: the layers' tensors are stacked on a leading axis. A `kernel` is the transpose, (in, out)
where torch has (out, in). Nothing may be missing and nothing left over, but for what is named as ignored.

Reading, each device is given the part of a tensor that its shard needs, out of a mapped file; writing, one
tensor at a time leaves the devices. So the host holds one tensor beside what the devices hold.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from radit_jax.config import BertConfig, LlamaConfig
from radit_jax.models.bert import Bert
from radit_jax.models.llama import Llama
from radit_jax.runtime.distributed.mesh import tree_shardings
from radit_jax.runtime.pretrained.checkpoint_info import describe_folder
from radit_jax.runtime.pretrained.hf_config import Pooling, llama_config, read_config
from radit_jax.runtime.pretrained.tensor_files import Index, Tensor, open_tensors
from radit_jax.runtime.pretrained.vectors import transformer_folder

Table = tuple[tuple[str, str], ...]

MATRICES = ("/kernel", "/lora_a", "/lora_b")  # (in, out) here, (out, in) in torch


class Entry(NamedTuple):
    """A tensor of a checkpoint, and the part of our parameters that it is."""

    name: str
    shape: tuple[int, ...]
    path: str
    layer: int | None  # None: the whole parameter


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
# PEFT's names of adapters, for those kernels that have one.
LORA: Table = tuple(
    (f"base_model.model.{name.removesuffix('weight')}{theirs}.weight", path.removesuffix("kernel") + ours)
    for name, path in LLAMA
    if path.endswith("_proj/kernel")
    for theirs, ours in (("lora_A", "lora_a"), ("lora_B", "lora_b"))
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
# The pooler serves BERT's next-sentence task, `cls` its two pre-training tasks; the position ids are a
# constant that old versions saved.
BERT_IGNORED = r"pooler\..*|embeddings\.position_ids|cls\..*"
BERT_ROOT = "embeddings.word_embeddings.weight"  # before it stands the prefix of all of a BERT's names
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # of TensorFlow


def load_llama(
    folder: epath.PathLike, *, dtype: str = "float32", mesh: Mesh | None = None
) -> tuple[LlamaConfig, Any]:
    """The LLaMA in `folder`: its config, and its parameters in `dtype` over `mesh` (None: one device)."""
    config = llama_config(read_config(folder), str(folder))
    ignored = LLAMA_IGNORED + (r"|lm_head\.weight" if config.tie_embeddings else "")
    tensors = _drop(open_tensors(folder), ignored)
    return config, _from_hf(tensors, LLAMA, Llama(config), str(folder), dtype, mesh)


def load_bert(
    folder: epath.PathLike,
    num_layers: int | None = None,
    *,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    dtype: str = "float32",
    mesh: Mesh | None = None,
) -> tuple[BertConfig, Any]:
    """The BERT in `folder`, or its first `num_layers` layers: its config and parameters, as `load_llama`.

    Tensor names may begin with `bert.` or as DPR's do, and may be those of TensorFlow. How its vectors are
    made the folder's sentence-transformers layout says, or else the caller (`Vectors.settings`).
    """
    described, _ = describe_folder(folder, "bert", num_layers, pooling, normalize)
    assert isinstance(described, BertConfig)
    folder = transformer_folder(folder)
    saved_layers = read_config(folder)["num_hidden_layers"]
    tensors = _bert_tensors(open_tensors(folder))
    cut = "|".join(rf"encoder\.layer\.{layer}\..*" for layer in range(described.num_layers, saved_layers))
    tensors = _drop(tensors, f"{BERT_IGNORED}|{cut}" if cut else BERT_IGNORED)
    return described, _from_hf(tensors, BERT, Bert(described), str(folder), dtype, mesh)


def _bert_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a BERT without the prefix of their names, and by the names of today."""
    prefix = next((name.removesuffix(BERT_ROOT) for name in tensors if name.endswith(BERT_ROOT)), "")
    found = {}
    for name, tensor in tensors.items():
        name = name.removeprefix(prefix)
        for old, new in OLD_NAMES.items():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        found[name] = tensor
    return found


def to_hf(params: Any) -> dict[str, Tensor]:
    """The parameters of a `Llama` or a `Bert` under Hugging Face's names, in the shapes of their checkpoints.

    Nothing is copied before a tensor is read.
    """
    return _to_hf(params, LLAMA if "model" in params else BERT)


def adapters_to_peft(adapters: Any) -> dict[str, Tensor]:
    """The adapters of a `Llama` (`models/lora.py`) under PEFT's names, in the shapes of its files."""
    return _to_hf(adapters, LORA)


def _to_hf(params: Any, table: Table) -> dict[str, Tensor]:
    arrays: dict[str, Any] = flatten_dict(params, sep="/")
    if strange := sorted(arrays.keys() - {path for _, path in table}):
        raise ValueError(f"to_hf: parameters {strange} have no name in a checkpoint; remove them")
    entries = _walk(table, {path: array.shape for path, array in arrays.items()})
    return {e.name: Tensor(e.shape, partial(_read_array, arrays[e.path], e)) for e in entries}


def _walk(table: Table, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Entry]:
    """The tensors that make parameters of these shapes; a path that `shapes` lacks is passed over."""
    for name, path in table:
        if path not in shapes:
            continue
        shape, stacked = shapes[path], "{}" in name
        single = shape[1:] if stacked else shape
        for layer in range(shape[0]) if stacked else (None,):
            yield Entry(name.format(layer), _turned(path, single), path, layer)


def _turned(path: str, axes: tuple[Any, ...]) -> tuple[Any, ...]:
    """A tensor's axes in torch's order from ours, and ours from torch's."""
    return axes[::-1] if path.endswith(MATRICES) else axes


def _from_hf(
    tensors: dict[str, Tensor], table: Table, module: Llama | Bert, where: str, dtype: str, mesh: Mesh | None
) -> Any:
    """The parameters of `module`, in the shapes that its config gives them; all tensors are used."""
    shapes = parameter_shapes(module)
    places: dict[str, list[Tensor]] = {path: [] for path in shapes}
    for entry in _walk(table, {path: shape.shape for path, shape in shapes.items()}):
        places[entry.path].append(_take(tensors, entry, where))
    if tensors:
        raise ValueError(
            f"{where}: tensors {sorted(tensors)} have no place in this network; use a checkpoint without them"
        )
    shardings = _shardings(shapes, mesh)
    arrays = {
        path: _array(path, parts, jax.ShapeDtypeStruct(shapes[path].shape, dtype, sharding=shardings[path]))
        for path, parts in places.items()
    }
    return unflatten_dict(arrays, sep="/")


def _take(tensors: dict[str, Tensor], entry: Entry, where: str) -> Tensor:
    """Remove a tensor from `tensors`, in the shape that its network needs."""
    if entry.name not in tensors:
        raise ValueError(
            f"{where}: no tensor {entry.name!r}, which config.json asks for; fetch it again, whole"
        )
    tensor = tensors.pop(entry.name)
    if tensor.shape != entry.shape:
        raise ValueError(
            f"{where}: {entry.name} gives shape {tensor.shape}, but config.json asks for {entry.shape}; "
            "take both files from one model"
        )
    return tensor


def _array(path: str, parts: list[Tensor], wanted: jax.ShapeDtypeStruct) -> jax.Array:
    """The parameter `wanted`, which `parts`, its layers or itself, make; a layer at a time."""
    if len(parts[0].shape) == len(wanted.shape):
        return _single(path, parts[0], wanted)
    layer = jax.ShapeDtypeStruct(wanted.shape[1:], wanted.dtype, sharding=_of_layer(wanted.sharding))
    stack = jnp.zeros(wanted.shape, wanted.dtype, device=wanted.sharding)
    for number, part in enumerate(parts):
        stack = _place(stack, _single(path, part, layer), np.int32(number))
        stack.block_until_ready()  # else layers that were read ahead would add up
    return stack


def _single(path: str, tensor: Tensor, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    def shard(index: Index | None) -> np.ndarray:
        assert index is not None
        part = tensor.read(_turned(path, index))
        part = part.T if path.endswith(MATRICES) else part
        return np.ascontiguousarray(part, wanted.dtype)

    return jax.make_array_from_callback(wanted.shape, wanted.sharding, shard)


@partial(jax.jit, donate_argnums=0)
def _place(stack: Any, layer: Any, number: Any) -> Any:
    return jax.lax.dynamic_update_index_in_dim(stack, layer, number, axis=0)


def _of_layer(sharding: Any) -> Any:
    """How one layer lies where a stack lies as `sharding` says, which cuts no stack between its layers."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    layers, *axes = [*sharding.spec, None]
    assert layers is None
    return NamedSharding(sharding.mesh, PartitionSpec(*axes[: len(sharding.spec) - 1]))


def _read_array(array: Any, entry: Entry, index: Index) -> np.ndarray:
    """The part `index`, in torch's axes, of the tensor `entry`, out of a parameter."""
    if entry.layer is not None:
        array = array[entry.layer] if isinstance(array, np.ndarray) else _layer(array, entry.layer)
    part = np.asarray(array)[_turned(entry.path, index)]
    return part.T if entry.path.endswith(MATRICES) else part


@jax.jit
def _layer(stack: Any, number: Any) -> Any:
    return jax.lax.dynamic_index_in_dim(stack, number, keepdims=False)


def _shardings(shapes: Mapping[str, Any], mesh: Mesh | None) -> dict[str, Any]:
    if mesh is None:
        return dict.fromkeys(shapes, SingleDeviceSharding(jax.local_devices()[0]))
    return flatten_dict(tree_shardings(unflatten_dict(shapes, sep="/"), mesh), sep="/")


def parameter_shapes(module: Llama | Bert) -> dict[str, Any]:
    """The shapes of the module's parameters by their paths."""
    inputs = [jnp.zeros((1, 1), jnp.int32)] + [jnp.ones((1, 1), bool)] * isinstance(module, Bert)
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return flatten_dict(variables["params"], sep="/")


def _drop(tensors: Mapping[str, Tensor], ignored: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not re.fullmatch(ignored, name)}
