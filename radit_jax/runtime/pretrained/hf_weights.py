"""Weights in Hugging Face's form, to our parameters and back.

The tables of `tensor_names.py` serve both directions. The layers' tensors are stacked on a leading axis. A
`kernel` is the transpose, (in, out) where torch has (out, in). No tensor may be missing and none left over,
except those that are ignored by name.

When weights are read, each device gets the part of a tensor for its shard, out of a mapped file. When they
are written, one tensor at a time leaves the devices. So the host holds one tensor besides the devices' own.
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

from radit_jax.config import BertConfig, DecoderConfig, EncoderConfig, LastTokenConfig, Pooling
from radit_jax.models.bert import Bert
from radit_jax.models.decoder import DecoderLm
from radit_jax.models.last_token import LastTokenEncoder, TextEncoder
from radit_jax.runtime.distributed.mesh import tree_shardings
from radit_jax.runtime.pretrained.checkpoint_info import describe_folder
from radit_jax.runtime.pretrained.decoder_config import NESTED, decoder_config
from radit_jax.runtime.pretrained.gguf_file import is_gguf
from radit_jax.runtime.pretrained.gguf_weights import open_gguf_tensors
from radit_jax.runtime.pretrained.hf_config import bert_config, read_config
from radit_jax.runtime.pretrained.tensor_files import Index, Tensor, open_tensors
from radit_jax.runtime.pretrained.tensor_names import (
    BERT,
    BERT_IGNORED,
    BERT_ROOT,
    DECODER,
    DECODER_IGNORED,
    DISTILBERT,
    IMAGE_PARTS,
    LORA,
    MPNET,
    NESTED_PREFIXES,
    OLD_NAMES,
    Table,
)
from radit_jax.runtime.pretrained.vectors import transformer_folder

BERT_TABLES = {"mpnet": MPNET, "distilbert": DISTILBERT}  # of the families with names of their own
MATRICES = ("/kernel", "/lora_a", "/lora_b")  # (in, out) here, (out, in) in torch


class Entry(NamedTuple):
    """A tensor of a checkpoint, and its place in our parameters."""

    name: str  # Hugging Face's
    shape: tuple[int, ...]  # torch's
    path: str  # of our parameter
    layer: int | None  # its index on the leading axis; None: the whole parameter


class Matched(NamedTuple):
    """A network with the tensors of each of its parameters, of which nothing but the shapes has been read."""

    config: DecoderConfig | EncoderConfig
    parts: dict[str, list[Tensor]]  # by our path: one for each layer, or a single one
    targets: dict[str, Any]  # the parameters' shapes by their paths


# ---- read ----


def load_decoder(
    folder: epath.PathLike, *, dtype: str = "float32", mesh: Mesh | None = None
) -> tuple[DecoderConfig, Any]:
    """The decoder in `folder`: its config, and its parameters in `dtype` over `mesh` (None: one device).

    Of a model of text and images it is the text's.
    """
    matched = match_decoder(folder)
    assert isinstance(matched.config, DecoderConfig)
    return matched.config, _read_parameters(matched, dtype, mesh)


def match_decoder(folder: epath.PathLike) -> Matched:
    """The decoder in `folder`, with its tensors; ValueError where one is missing, left over or of another
    shape."""
    values = read_config(folder)
    config = decoder_config(values, str(folder))
    tensors = open_gguf_tensors(folder) if is_gguf(folder) else open_tensors(folder)
    if values.get("model_type") in NESTED:
        tensors = _text_tensors(tensors)
    ignored = DECODER_IGNORED
    if config.tie_embeddings:
        ignored += r"|lm_head\.weight"
    tensors = _drop(tensors, ignored)
    return _match(tensors, DECODER, DecoderLm(config), str(folder))


def _text_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the text's decoder by the names that they have in a model of its own."""
    renamed = {}
    for name, tensor in _drop(tensors, IMAGE_PARTS).items():
        for prefix, own in NESTED_PREFIXES.items():
            if name.startswith(prefix):
                name = own + name.removeprefix(prefix)
                break
        renamed[name] = tensor
    return renamed


def load_bert(
    folder: epath.PathLike,
    num_layers: int | None = None,
    *,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    dtype: str = "float32",
    mesh: Mesh | None = None,
) -> tuple[BertConfig, Any]:
    """The BERT in `folder`, or its first `num_layers` layers: its config and parameters, as `load_decoder`.

    Tensor names may begin with `bert.`, `roberta.` or DPR's prefixes, and may be those of TensorFlow. The
    folder's sentence-transformers layout says how its vectors are made, or else the caller does
    (`Vectors.settings`).
    """
    matched = match_bert(folder, num_layers, pooling=pooling, normalize=normalize)
    assert isinstance(matched.config, BertConfig)
    return matched.config, _read_parameters(matched, dtype, mesh)


def match_bert(
    folder: epath.PathLike,
    num_layers: int | None = None,
    *,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
) -> Matched:
    """The BERT of `load_bert` with its tensors, as `match_decoder`."""
    config, _ = describe_folder(folder, "bert", num_layers, pooling, normalize)
    assert isinstance(config, BertConfig)
    folder = transformer_folder(folder)
    tensors = _bert_tensors(open_tensors(folder))
    # The checkpoint's layers after `num_layers` are not read.
    num_saved_layers = bert_config(read_config(folder), str(folder)).num_layers
    ignored = [BERT_IGNORED]
    for layer in range(config.num_layers, num_saved_layers):
        ignored.append(rf"\w+\.layer\.{layer}\..*")
    tensors = _drop(tensors, "|".join(ignored))
    table = BERT_TABLES.get(config.family, BERT)
    return _match(tensors, table, Bert(config), str(folder))


def load_last_token(
    folder: epath.PathLike,
    *,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    dtype: str = "float32",
    mesh: Mesh | None = None,
) -> tuple[LastTokenConfig, Any]:
    """The decoder in `folder` as an encoder: its config and parameters, as `load_decoder`.

    Tensor names may lack the prefix `model.`, as where transformers has saved the decoder alone. A head is
    not read. `pooling` and `normalize` are those of `load_bert`.
    """
    matched = match_last_token(folder, pooling=pooling, normalize=normalize)
    assert isinstance(matched.config, LastTokenConfig)
    return matched.config, _read_parameters(matched, dtype, mesh)


def match_last_token(
    folder: epath.PathLike, *, pooling: Pooling | None = None, normalize: bool | None = None
) -> Matched:
    """The encoder of `load_last_token` with its tensors, as `match_decoder`."""
    config, _ = describe_folder(folder, "encoder", None, pooling, normalize)
    assert isinstance(config, LastTokenConfig)
    folder = transformer_folder(folder)
    # The names that a language model has.
    tensors = {}
    for name, tensor in open_tensors(folder).items():
        is_alone = not name.startswith(("model.", "lm_head."))
        tensors[f"model.{name}" if is_alone else name] = tensor
    # Whatever the head is, no vector depends on it.
    tensors = _drop(tensors, rf"{DECODER_IGNORED}|lm_head\.weight")
    return _match(tensors, DECODER, LastTokenEncoder(config), str(folder))


def _bert_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a BERT without the prefix of their names, and by today's names."""
    # 1) What precedes the embeddings' name precedes all names.
    prefix = ""
    for name in tensors:
        if name.endswith(BERT_ROOT):
            prefix = name.removesuffix(BERT_ROOT)
            break
    # 2) Names without it, in today's spelling.
    renamed = {}
    for name, tensor in tensors.items():
        new_name = name.removeprefix(prefix)
        for old, new in OLD_NAMES.items():
            if new_name.endswith(old):
                new_name = new_name.removesuffix(old) + new
        renamed[new_name] = tensor
    return renamed


def _drop(tensors: Mapping[str, Tensor], ignored: str) -> dict[str, Tensor]:
    """The tensors whose names do not match the pattern `ignored`."""
    remaining = {}
    for name, tensor in tensors.items():
        if not re.fullmatch(ignored, name):
            remaining[name] = tensor
    return remaining


def _match(tensors: dict[str, Tensor], table: Table, module: DecoderLm | TextEncoder, where: str) -> Matched:
    """The tensors of each parameter of `module`, in the shapes that its config gives; all are taken."""
    targets = parameter_shapes(module)
    shapes = {path: target.shape for path, target in targets.items()}
    parts: dict[str, list[Tensor]] = {path: [] for path in shapes}
    for entry in _entries(table, shapes):
        parts[entry.path].append(_take(tensors, entry, where))
    if tensors:
        raise ValueError(
            f"{where}: expected tensors of this network only, got {sorted(tensors)}. Use a checkpoint "
            "without them."
        )
    return Matched(module.config, parts, targets)


def _read_parameters(matched: Matched, dtype: str, mesh: Mesh | None) -> Any:
    """The parameters on the devices, in `dtype`."""
    shardings = _shardings(matched.targets, mesh)
    arrays = {}
    for path, tensor_parts in matched.parts.items():
        shape = matched.targets[path].shape
        target = jax.ShapeDtypeStruct(shape, dtype, sharding=shardings[path])
        arrays[path] = _read_parameter(path, tensor_parts, target)
    return unflatten_dict(arrays, sep="/")


def parameter_shapes(module: DecoderLm | TextEncoder) -> dict[str, Any]:
    """The shapes of the module's parameters by their paths; it starts no accelerator."""
    inputs = [jax.ShapeDtypeStruct((1, 1), jnp.int32)]
    if not isinstance(module, DecoderLm):
        inputs.append(jax.ShapeDtypeStruct((1, 1), bool))
    variables = jax.eval_shape(lambda *texts: module.init(jax.random.key(0), *texts), *inputs)
    return flatten_dict(variables["params"], sep="/")


def _shardings(shapes: Mapping[str, Any], mesh: Mesh | None) -> dict[str, Any]:
    if mesh is None:
        first_device = SingleDeviceSharding(jax.local_devices()[0])
        return dict.fromkeys(shapes, first_device)
    return flatten_dict(tree_shardings(unflatten_dict(shapes, sep="/"), mesh), sep="/")


def _take(tensors: dict[str, Tensor], entry: Entry, where: str) -> Tensor:
    """Remove a tensor from `tensors`, and return it if it has its network's shape."""
    if entry.name not in tensors:
        raise ValueError(
            f"{where}: expected the tensor {entry.name!r} by its settings, got none. Fetch the checkpoint "
            "again."
        )
    # A checkpoint of another size would have the same names.
    tensor = tensors.pop(entry.name)
    if tensor.shape != entry.shape:
        raise ValueError(
            f"{where}: expected {entry.name} of shape {entry.shape} by its settings, got {tensor.shape}. "
            "Take both from one model."
        )
    return tensor


def _read_parameter(path: str, parts: list[Tensor], target: jax.ShapeDtypeStruct) -> jax.Array:
    """The parameter `target` from its tensors: one for each layer, or a single one."""
    if len(parts[0].shape) == len(target.shape):
        return _read_tensor(path, parts[0], target)
    layer_sharding = _sharding_of_layer(target.sharding)
    layer = jax.ShapeDtypeStruct(target.shape[1:], target.dtype, sharding=layer_sharding)
    stack = jnp.zeros(target.shape, target.dtype, device=target.sharding)
    for number, part in enumerate(parts):
        array = _read_tensor(path, part, layer)
        stack = _set_layer(stack, array, np.int32(number))
        stack.block_until_ready()  # else layers that are read ahead would add up in memory
    return stack


def _read_tensor(path: str, tensor: Tensor, target: jax.ShapeDtypeStruct) -> jax.Array:
    """The array `target`; each device reads its own part of the tensor."""

    def read_shard(index: Index | None) -> np.ndarray:
        assert index is not None
        part = tensor.read(_turned(path, index))
        part = part.T if path.endswith(MATRICES) else part
        return np.ascontiguousarray(part, target.dtype)

    return jax.make_array_from_callback(target.shape, target.sharding, read_shard)


@partial(jax.jit, donate_argnums=0)
def _set_layer(stack: Any, layer: Any, number: Any) -> Any:
    return jax.lax.dynamic_update_index_in_dim(stack, layer, number, axis=0)


def _sharding_of_layer(sharding: Any) -> Any:
    """The sharding of one layer in a stack with `sharding`, which never cuts a stack between its layers."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    if not sharding.spec:
        return NamedSharding(sharding.mesh, PartitionSpec())
    layers, *axes = sharding.spec
    assert layers is None
    return NamedSharding(sharding.mesh, PartitionSpec(*axes))


# ---- write ----


def to_hf(params: Any) -> dict[str, Tensor]:
    """The parameters of a decoder or a BERT by Hugging Face's names, in the shapes of their checkpoints.

    Nothing is copied before a tensor is read.
    """
    if "model" in params:
        return _to_hf(params, DECODER)
    # What a family lacks or has besides says which one it is.
    if "relative_attention_bias" in params["encoder"]:
        return _to_hf(params, MPNET)
    has_token_types = "token_type_embeddings" in params["embeddings"]
    return _to_hf(params, BERT if has_token_types else DISTILBERT)


def adapters_to_peft(adapters: Any) -> dict[str, Tensor]:
    """The adapters of a decoder (`models/lora.py`) by PEFT's names, in the shapes of its files."""
    return _to_hf(adapters, LORA)


def _to_hf(params: Any, table: Table) -> dict[str, Tensor]:
    arrays: dict[str, Any] = flatten_dict(params, sep="/")
    named = {path for _, path in table}
    unnamed = sorted(arrays.keys() - named)
    if unnamed:
        raise ValueError(
            f"to_hf: expected parameters that a checkpoint has names for, got {unnamed}. Remove them."
        )
    # One for each parameter, or for each of its layers.
    shapes = {path: array.shape for path, array in arrays.items()}
    tensors = {}
    for entry in _entries(table, shapes):
        read = partial(_read_array, arrays[entry.path], entry)
        tensors[entry.name] = Tensor(entry.shape, read)
    return tensors


def _read_array(array: Any, entry: Entry, index: Index) -> np.ndarray:
    """The part `index`, in torch's axes, of the tensor `entry`, from our parameter."""
    if entry.layer is not None:
        # From the devices, only the layer.
        is_on_host = isinstance(array, np.ndarray)
        array = array[entry.layer] if is_on_host else _layer(array, entry.layer)
    part = np.asarray(array)[_turned(entry.path, index)]
    return part.T if entry.path.endswith(MATRICES) else part


@jax.jit
def _layer(stack: Any, number: Any) -> Any:
    return jax.lax.dynamic_index_in_dim(stack, number, keepdims=False)


# ---- both ----


def _entries(table: Table, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Entry]:
    """The tensors that make up parameters of these shapes; paths that `shapes` lacks are skipped."""
    for name, path in table:
        if path not in shapes:
            continue
        shape = shapes[path]
        if "{}" not in name:
            yield Entry(name, _turned(path, shape), path, None)
            continue
        # Layers are stacked on the leading axis.
        num_layers, *axes = shape
        layer_shape = _turned(path, tuple(axes))
        for layer in range(num_layers):
            yield Entry(name.format(layer), layer_shape, path, layer)


def _turned(path: str, axes: tuple[Any, ...]) -> tuple[Any, ...]:
    """A tensor's axes in torch's order from ours, and in ours from torch's."""
    return axes[::-1] if path.endswith(MATRICES) else axes
