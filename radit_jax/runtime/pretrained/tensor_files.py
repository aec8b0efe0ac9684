"""Tensors in files, of which no more is read or held than is asked for.

Safetensors are memory-mapped; torch's pickles too, and with `weights_only`, which runs no code of theirs.
A checkpoint is written one tensor at a time, so that what is in memory is the model and one tensor more.
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
DTYPES = {"float32": "F32", "bfloat16": "BF16"}  # what is written, and its name in the file
FLOATS = ("F64", "F32", "F16", "BF16")
REMEDY = "Fetch the checkpoint again."
SHARD_BYTES = 5_000_000_000


class Tensor(NamedTuple):
    """A tensor that lies elsewhere: in a file, or on devices in another layout."""

    shape: tuple[int, ...]
    read: Callable[[Index], np.ndarray]  # a part of it, in the dtype that it is kept in

    def whole(self) -> np.ndarray:
        """All of it, in memory."""
        return self.read((slice(None),) * len(self.shape))


def open_tensors(folder: epath.PathLike) -> dict[str, Tensor]:
    """The tensors by name of a checkpoint's `*.safetensors` or, where it has none, `pytorch_model*.bin`."""
    folder = epath.Path(folder)
    for stem, suffix, read in (
        ("model", "safetensors", _read_safetensors),
        ("pytorch_model", "bin", _read_pickle),
    ):
        if paths := tensor_files(folder, stem, suffix):
            return _merge(paths, read)
    raise ValueError(
        f"{folder}: expected *.safetensors or a pytorch_model.bin, got neither. Name a folder with a "
        "checkpoint in Hugging Face's form."
    )


def tensor_files(folder: epath.Path, stem: str, suffix: str) -> list[epath.Path]:
    """The files that the checkpoint's index names; without an index its one file, or all of its form."""
    index, single = folder / f"{stem}.{suffix}.index.json", folder / f"{stem}.{suffix}"
    if not index.exists():
        pattern = f"{stem}*.{suffix}" if suffix == "bin" else f"*.{suffix}"
        return [single] if single.exists() else sorted(folder.glob(pattern))
    weight_map = as_object(read_json(index, REMEDY).get("weight_map"), f"{index}: weight_map", REMEDY)
    for name, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w][\w.-]{0,200}", file):
            raise ValueError(
                f"{index}: expected the name of a file beside it for {shown_value(name)}, "
                f"got {shown_value(file)}. {REMEDY}"
            )
    paths = [folder / name for name in sorted(set(weight_map.values()))]
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: expected the file that {index.name} names, got none. {REMEDY}")
    return paths


def _merge(paths: Iterable[epath.Path], read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in paths:
        with tempfile.TemporaryDirectory() as scratch:
            local = Path(path)
            if "://" in os.fspath(path):  # what is mapped must be on a disk; the map outlives the name
                local = Path(scratch) / path.name
                path.copy(local)
            found = read(local)
        if twice := sorted(tensors.keys() & found):
            raise ValueError(
                f"{path}: expected each tensor once, got {twice[0]!r} again. Keep one of the two files."
            )
        tensors |= found
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        file = safetensors.safe_open(path, framework="np")
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: expected a whole safetensors file, got {path.stat().st_size} bytes ({error}). {REMEDY}"
        ) from None
    return {name: Tensor(tuple(part.get_shape()), _reader(path, name, part)) for name, part in parts.items()}


def _reader(path: Path, name: str, part: Any) -> Callable[[Index], np.ndarray]:
    if part.get_dtype() in FLOATS:
        return part.__getitem__

    def refuse(index: Index) -> np.ndarray:
        raise ValueError(
            f"{path}: expected {shown_value(name)} in {', '.join(FLOATS)}, got {part.get_dtype()}. Use the "
            "checkpoint as it was before it was quantised."
        )

    return refuse


def _read_pickle(path: Path) -> dict[str, Tensor]:
    hub.demand_torch(str(path))
    import torch  # heavy, and needed for this form alone

    try:
        # Files of before 2020 are no archives and cannot be mapped.
        tensors: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises many kinds; the first line says what is wrong
        raise ValueError(
            f"{path}: expected a file that torch.load(weights_only=True) reads, got one that it refuses "
            f"({str(error).partition(chr(10))[0]}). Fetch it again, or have its owner save it as safetensors."
        ) from None
    if not isinstance(tensors, Mapping):
        raise ValueError(f"{path}: expected a model's state_dict, got {type(tensors).__name__}. Save that.")
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{path}: expected a model's state_dict, got {type(value).__name__} for {shown_value(name)}. "
                "Save that."
            )
    return {
        name: Tensor(tuple(tensor.shape), functools.partial(_read_torch, path, name, tensor))
        for name, tensor in tensors.items()
    }


def _read_torch(path: Path, name: str, tensor: Any, index: Index) -> np.ndarray:
    import torch

    if not tensor.is_floating_point():
        raise ValueError(
            f"{path}: expected {shown_value(name)} in floating-point numbers, got {tensor.dtype}. Use the "
            "checkpoint as it was before it was quantised."
        )
    part = tensor.detach()[index]
    if part.dtype == torch.bfloat16:  # numpy has none of its own
        return part.contiguous().view(torch.int16).numpy().view(jnp.bfloat16)
    return part.numpy()


def write_tensors(
    folder: epath.PathLike,
    tensors: Mapping[str, Tensor],
    *,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    stem: str = "model",
) -> None:
    """Write a checkpoint of `STEM*.safetensors` of at most `shard_bytes` of tensors each, and their index.

    A tensor of more has a file of its own. One file alone has no index, as is usual.
    """
    folder, width = epath.Path(folder), jnp.dtype(dtype).itemsize
    sizes = {name: width * math.prod(tensor.shape) for name, tensor in tensors.items()}
    shards = list(_shards(sizes, shard_bytes))
    weight_map = {}
    for number, names in enumerate(shards, 1):
        processes.stop_if_asked(f"{folder}")
        several = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        file = several if len(shards) > 1 else f"{stem}.safetensors"
        _write_safetensors(folder / file, {name: tensors[name] for name in names}, dtype)
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        write_whole(folder / f"{stem}.safetensors.index.json", json.dumps(index, indent=2))


def _shards(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    """Runs of names whose sizes sum to `limit` at most, or single names."""
    names, total = [], 0
    for name, size in sizes.items():
        if names and total + size > limit:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    yield names


def _write_safetensors(path: epath.Path, tensors: Mapping[str, Tensor], dtype: str) -> None:
    """The package's own writer wants a file's tensors together in memory, so we write its simple form:

    the header's length in 8 bytes, the header (JSON, padded to a multiple of 8), and the tensors' bytes.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers demands it
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + jnp.dtype(dtype).itemsize * math.prod(tensor.shape)
        header[name] = {"dtype": DTYPES[dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with naming(path), path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor.whole(), jnp.dtype(dtype)).reshape(-1).view(np.uint8).data)


def largest_error(folder: epath.PathLike, tensors: Mapping[str, Tensor]) -> float:
    """The largest absolute difference of what the files in `folder` hold from `tensors`, name by name."""
    written, error = open_tensors(folder), 0.0
    assert written.keys() == tensors.keys(), "a checkpoint was written under other names"
    for name, tensor in tensors.items():
        difference = written[name].whole().astype(np.float32)
        difference -= tensor.whole()
        error = max(error, float(np.abs(difference, out=difference).max(initial=0.0)))
    return error
