"""Tensors in files, read and held only in the parts that are asked for.

Safetensors are memory-mapped; so are torch's pickles, with `weights_only`, which runs no code of theirs. A
checkpoint is written one tensor at a time, so that memory holds the model and one tensor more.
"""

import functools
import json
import math
import os
import re
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
from etils import epath

from radit_jax.errors import naming
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.pretrained import hub
from radit_jax.runtime.pretrained.fields import shown_value
from radit_jax.runtime.storage.files import as_object, read_json, write_whole

Index = tuple[slice, ...]
DTYPES = {"float32": "F32", "bfloat16": "BF16"}  # dtypes that can be written, and their names in the file
FLOATS = ("F64", "F32", "F16", "BF16")
SHARD_BYTES = 5_000_000_000
REMEDY = "Fetch the checkpoint again."


class Tensor(NamedTuple):
    """A tensor that is elsewhere: in a file, or on devices in another layout."""

    shape: tuple[int, ...]
    read: Callable[[Index], np.ndarray]  # a part of it, in its own dtype

    def whole(self) -> np.ndarray:
        """All of it, in memory."""
        return self.read((slice(None),) * len(self.shape))


# ---- read ----


def open_tensors(folder: epath.PathLike) -> dict[str, Tensor]:
    """A checkpoint's tensors by name: from `*.safetensors`, or else from `pytorch_model*.bin`."""
    folder = epath.Path(folder)
    # Many repositories have both forms, of the same weights.
    safetensors_files = tensor_files(folder, "model", "safetensors")
    if safetensors_files:
        return _merge(safetensors_files, _read_safetensors)
    pickles = tensor_files(folder, "pytorch_model", "bin")
    if pickles:
        return _merge(pickles, _read_pickle)
    raise ValueError(
        f"{folder}: expected *.safetensors or a pytorch_model.bin, got neither. Name a folder with a "
        "checkpoint in Hugging Face's form."
    )


def tensor_files(folder: epath.Path, stem: str, suffix: str) -> list[epath.Path]:
    """The files in the checkpoint's index; without an index its single file, or all of that form."""
    index = folder / f"{stem}.{suffix}.index.json"
    if not index.exists():
        single = folder / f"{stem}.{suffix}"
        pattern = f"{stem}*.{suffix}" if suffix == "bin" else f"*.{suffix}"
        return [single] if single.exists() else sorted(folder.glob(pattern))
    # Names in the index come from others: none may lead out of the folder.
    weight_map = read_json(index, REMEDY).get("weight_map")
    weight_map = as_object(weight_map, f"{index}: weight_map", REMEDY)
    for name, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w][\w.-]{0,200}", file):
            raise ValueError(
                f"{index}: expected the name of a file beside it for {shown_value(name)}, "
                f"got {shown_value(file)}. {REMEDY}"
            )
    names = sorted(set(weight_map.values()))
    paths = [folder / name for name in names]
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: expected the file that {index.name} names, got none. {REMEDY}")
    return paths


def _merge(
    paths: Iterable[epath.Path],
    read: Callable[[Path], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """The tensors of all files; ValueError where two have one name."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        with tempfile.TemporaryDirectory() as scratch:
            local = Path(path)
            # What is mapped must be on a disk. The map stays when the name goes.
            if "://" in os.fspath(path):
                local = Path(scratch) / path.name
                path.copy(local)
            more = read(local)
        repeated = sorted(tensors.keys() & more)
        if repeated:
            raise ValueError(
                f"{path}: expected each tensor once, got {repeated[0]!r} again. Keep one of the two files."
            )
        tensors |= more
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; nothing is read yet."""
    try:
        file = safetensors.safe_open(path, framework="np")
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: expected a whole safetensors file, got {path.stat().st_size} bytes ({error}). {REMEDY}"
        ) from None
    tensors = {}
    for name, part in parts.items():
        shape = tuple(part.get_shape())
        tensors[name] = Tensor(shape, _reader(path, name, part))
    return tensors


def _reader(path: Path, name: str, part: Any) -> Callable[[Index], np.ndarray]:
    """The function that reads a part of a tensor, or refuses a tensor that does not hold floats."""
    if part.get_dtype() in FLOATS:
        return part.__getitem__

    # Only where it is read: a tensor that the network ignores may be of any type.
    def refuse(index: Index) -> np.ndarray:
        types = ", ".join(FLOATS)
        raise ValueError(
            f"{path}: expected {shown_value(name)} in {types}, got {part.get_dtype()}. "
            "Use the checkpoint as it was before it was quantised."
        )

    return refuse


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of torch's `state_dict`, mapped where the file allows it."""
    hub.demand_torch(str(path))
    import torch  # heavy, and used for this form only

    # Files from before 2020 are not archives, and cannot be mapped.
    can_be_mapped = zipfile.is_zipfile(path)
    try:
        values: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=can_be_mapped)
    except Exception as error:  # torch raises many kinds; the first line says what is wrong
        raise ValueError(
            f"{path}: expected a file that torch.load(weights_only=True) reads, got one that it refuses "
            f"({str(error).partition(chr(10))[0]}). Fetch it again, or have its owner save it as safetensors."
        ) from None
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}: expected a model's state_dict, got {type(values).__name__}. Save that.")
    tensors = {}
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{path}: expected a model's state_dict, got {type(value).__name__} for {shown_value(name)}. "
                "Save that."
            )
        read = functools.partial(_read_torch, path, name, value)
        tensors[name] = Tensor(tuple(value.shape), read)
    return tensors


def _read_torch(
    path: Path,
    name: str,
    tensor: Any,
    index: Index,
) -> np.ndarray:
    """The part `index` of a torch tensor; ValueError where it does not hold floats."""
    import torch

    if not tensor.is_floating_point():
        raise ValueError(
            f"{path}: expected {shown_value(name)} in floating-point numbers, got {tensor.dtype}. Use the "
            "checkpoint as it was before it was quantised."
        )
    part = tensor.detach()[index]
    if part.dtype == torch.bfloat16:  # numpy has no such type of its own
        bits = part.contiguous().view(torch.int16)
        return bits.numpy().view(jnp.bfloat16)
    return part.numpy()


# ---- write ----


def write_tensors(
    folder: epath.PathLike,
    tensors: Mapping[str, Tensor],
    *,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    stem: str = "model",
) -> None:
    """Write a checkpoint as `STEM*.safetensors` with at most `shard_bytes` of tensors each, and their index.

    A larger tensor has a file of its own. A single file has no index, as is usual.
    """
    folder = epath.Path(folder)
    # 1) Which tensors go to which file.
    sizes = {name: _num_bytes(tensor, dtype) for name, tensor in tensors.items()}
    shards = list(_shards(sizes, shard_bytes))
    num_shards = len(shards)
    # 2) The files.
    weight_map = {}
    for number, names in enumerate(shards, 1):
        processes.stop_if_asked(f"{folder}")
        file = f"{stem}-{number:05d}-of-{num_shards:05d}.safetensors"
        if num_shards == 1:
            file = f"{stem}.safetensors"
        shard = {name: tensors[name] for name in names}
        _write_safetensors(folder / file, shard, dtype)
        weight_map |= dict.fromkeys(names, file)
    # 3) The index, by which readers find a tensor's file.
    if num_shards > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        write_whole(folder / f"{stem}.safetensors.index.json", json.dumps(index, indent=2))


def _num_bytes(tensor: Tensor, dtype: str) -> int:
    return jnp.dtype(dtype).itemsize * math.prod(tensor.shape)


def _shards(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    """The names in order, in groups whose sizes sum to at most `limit`, or of a single name."""
    names, total = [], 0
    for name, size in sizes.items():
        if names and total + size > limit:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    yield names


def _write_safetensors(
    path: epath.Path,
    tensors: Mapping[str, Tensor],
    dtype: str,
) -> None:
    """Write a safetensors file, one tensor at a time; the package's own writer holds all in memory.

    Its form is the header's length in 8 bytes, the header (JSON, padded to a multiple of 8 bytes), and the
    tensors' bytes.
    """
    # 1) The header. transformers requires its metadata.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + _num_bytes(tensor, dtype)
        header[name] = {
            "dtype": DTYPES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    # 2) The bytes, in the header's order.
    with naming(path), path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            array = np.ascontiguousarray(tensor.whole(), jnp.dtype(dtype))
            file.write(array.reshape(-1).view(np.uint8).data)


def largest_error(folder: epath.PathLike, tensors: Mapping[str, Tensor]) -> float:
    """The largest absolute difference between the tensors in `folder`'s files and `tensors`, by name."""
    written = open_tensors(folder)
    error = 0.0
    assert written.keys() == tensors.keys(), "a checkpoint was written under other names"
    for name, tensor in tensors.items():
        # In place, to hold few copies of a large tensor.
        difference = written[name].whole().astype(np.float32)
        difference -= tensor.whole()
        np.abs(difference, out=difference)
        error = max(error, float(difference.max(initial=0.0)))
    return error
