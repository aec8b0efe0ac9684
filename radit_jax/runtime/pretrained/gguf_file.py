"""GGUF, the file format of llama.cpp: one file with metadata, a table of tensors and their bytes.

magic "GGUF"   version   number of tensors   number of metadata entries
metadata       name, kind of value, value                   the model's sizes, its tokeniser
tensors        name, axes (the last one first), type, offset
padding        to a multiple of `general.alignment`, 32 by default
data           each tensor at its offset

The file is memory-mapped. The header takes less than a second for a vocabulary of 262,144 pieces. A quantised
tensor is dequantised when it is read, and only in the rows that are asked for: its blocks lie along the last
axis. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import importlib.util
import math
import mmap
import os
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from radit_jax.runtime.pretrained.fields import shown_value

MAGIC = b"GGUF"
VERSIONS = (2, 3)
REMEDY = "Fetch the file again, or use another."
MAX_AXES = 4
# A metadata value's kind, by its number in the file, as `struct` and numpy name it.
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
FLOAT32, TEXT, ARRAY = 6, 8, 9
# The fewest bytes of an entry of the metadata, and of one of the table of tensors.
LEAST_ENTRY, LEAST_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8
_SPLIT = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class TensorType(NamedTuple):
    """A type of tensor: `size` bytes hold a block of `block` numbers."""

    name: str
    block: int
    size: int


# Types of floating-point numbers, by their numbers in the file.
TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
}
PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "BF16": "<u2"}  # not quantised, and numpy's name


class GgufTensor(NamedTuple):
    """A tensor in a file: its axes in torch's order, its type, its first byte, and the mapped file."""

    shape: tuple[int, ...]
    type: TensorType
    start: int
    content: Any

    @property
    def row_bytes(self) -> int:
        """The bytes of one row, which is one index of all axes but the last."""
        return self.shape[-1] // self.type.block * self.type.size

    @property
    def end(self) -> int:
        """The byte after its last one."""
        return self.start + math.prod(self.shape[:-1]) * self.row_bytes


@dataclass(frozen=True)
class GgufFile:
    """An open model. `metadata` has numbers, texts, lists of texts and arrays of numbers by their names."""

    path: Path  # of its first file
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    def read(self, name: str, rows: Any = slice(None)) -> np.ndarray:
        """A tensor's `rows`, a slice or an array of indices of its first axis, in floating-point numbers.

        Types that are not quantised keep their precision; bfloat16 and quantised ones become float32.
        """
        tensor = self.tensors[name]
        data = np.frombuffer(tensor.content, np.uint8)[tensor.start : tensor.end]
        selected = data.reshape(*tensor.shape[:-1], tensor.row_bytes)
        # A tensor of one axis is a single row.
        if len(tensor.shape) > 1:
            selected = selected[rows]
        numbers = _numbers(selected, tensor.type.name, self.path)
        return numbers if len(tensor.shape) > 1 else numbers[rows]


def _numbers(data: np.ndarray, type_name: str, path: Path) -> np.ndarray:
    """The numbers in rows of bytes."""
    if type_name in PLAIN:
        numbers = np.ascontiguousarray(data).view(PLAIN[type_name])
        if type_name != "BF16":
            return numbers
        # The upper half of a float32.
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    # In float32, whatever the type.
    demand_package(type_name, path)
    from gguf import GGMLQuantizationType, quants  # an optional package

    return quants.dequantize(np.ascontiguousarray(data), GGMLQuantizationType[type_name])


def demand_package(type_name: str, path: Path) -> None:
    """Refuse a file with tensors of a quantised type where the package that reads them is missing."""
    if type_name not in PLAIN and importlib.util.find_spec("gguf") is None:
        raise ValueError(
            f"{path}: expected the package gguf, which reads tensors of type {type_name}, got none. "
            "pip install 'radit_jax[gguf]'."
        )


# ---- files ----


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Whether a path is that of a GGUF file, by its name."""
    return os.fspath(path).endswith(".gguf")


def settings_file(checkpoint: str | os.PathLike[str]) -> str:
    """The file that holds a checkpoint's settings: its `config.json`, or the GGUF file itself.

    >>> settings_file("models/llama"), settings_file("models/llama.gguf")
    ('models/llama/config.json', 'models/llama.gguf')
    """
    path = os.fspath(checkpoint)
    return path if is_gguf(path) else f"{path}/config.json"


def model_parts(path: Path) -> list[Path]:
    """All files of the model whose first one is `path`: it alone, or `NAME-0000I-of-0000N.gguf` for all I."""
    match = _SPLIT.fullmatch(path.name)
    if match is None:
        return [path]
    # Only the first one has the metadata.
    count = int(match["count"])
    if int(match["number"]) != 1:
        first = f"{match['stem']}-00001-of-{match['count']}.gguf"
        raise ValueError(f"{path}: expected the first file of a model in parts, got another. Name {first}.")
    files = []
    for number in range(1, count + 1):
        file = path.with_name(f"{match['stem']}-{number:05d}-of-{match['count']}.gguf")
        if not file.is_file():
            raise ValueError(f"{file}: expected this part of the model, got none. {REMEDY}")
        files.append(file)
    return files


def open_gguf(path: str | os.PathLike[str]) -> GgufFile:
    """The model whose only or first file is at `path`, with its headers read.

    ValueError where a file is not a whole GGUF file of our kinds.
    """
    first, *others = model_parts(Path(path))
    model = _open_file(first)
    # The other files have tensors only.
    tensors = dict(model.tensors)
    for other in others:
        part = _open_file(other)
        repeated = sorted(tensors.keys() & part.tensors.keys())
        if repeated:
            raise ValueError(
                f"{other}: expected each tensor once, got {shown_value(repeated[0])} again. {REMEDY}"
            )
        tensors |= part.tensors
    return replace(model, tensors=tensors)


def _open_file(path: Path) -> GgufFile:
    # 1) The bytes. An empty file cannot be mapped.
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    header = _Header(content, path)

    # 2) What the file is.
    magic = content[: len(MAGIC)]
    if magic != MAGIC:
        raise ValueError(f"{path}: expected a GGUF file, got one that begins with {magic!r}. {REMEDY}")
    header.skip(len(MAGIC))
    version = header.number("I")
    if version not in VERSIONS:
        raise ValueError(
            f"{path}: expected version 2 or 3 of GGUF, little endian, got {version}. Convert it with "
            "llama.cpp's tools, or fetch another."
        )
    num_tensors, num_entries = header.number("Q"), header.number("Q")

    # 3) Its tables.
    header.check_count(num_entries, LEAST_ENTRY, "entries of metadata")
    metadata = header.table(num_entries, header.value)
    header.check_count(num_tensors, LEAST_TENSOR, "tensors")
    entries = header.table(num_tensors, header.tensor)
    return GgufFile(path, metadata, _placed(entries, header, metadata))


def _placed(
    entries: Mapping[str, GgufTensor], header: "_Header", metadata: Mapping[str, Any]
) -> dict[str, GgufTensor]:
    """The tensors with their places in the file instead of those in its data; all lie inside the file."""
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise ValueError(
            f"{header.path}: expected general.alignment to be a number of bytes, got "
            f"{shown_value(alignment)}. {REMEDY}"
        )
    # The data begin at the next multiple.
    first = -(-header.position // alignment) * alignment
    tensors = {}
    for name, entry in entries.items():
        tensor = entry._replace(start=first + entry.start)
        if tensor.end > len(header.content):
            raise ValueError(
                f"{header.path}: expected {tensor.end} bytes, as its tensor {shown_value(name)} says, got "
                f"{len(header.content)}: the file is cut short. {REMEDY}"
            )
        tensors[name] = tensor
    return tensors


# ---- the header ----


class _Header:
    """Reads the header from front to back."""

    def __init__(self, content: Any, path: Path):
        self.content = content
        self.path = path
        self.position = 0

    def skip(self, num_bytes: int) -> int:
        """Go on by so many bytes, and return where they begin; ValueError where the file ends before."""
        start = self.position
        if num_bytes > len(self.content) - start:
            raise ValueError(
                f"{self.path}: expected {num_bytes} more bytes of its header at byte {start}, got "
                f"{len(self.content) - start}: the file is cut short. {REMEDY}"
            )
        self.position = start + num_bytes
        return start

    def check_count(self, count: int, least: int, what: str) -> None:
        """Refuse a count of things of at least `least` bytes each that the rest of the file cannot hold."""
        room = len(self.content) - self.position
        if count * least > room:
            raise ValueError(
                f"{self.path}: expected at most {room // least} {what}, for which it has room, got {count}. "
                f"{REMEDY}"
            )

    def number(self, form: str) -> Any:
        """One number of a `struct` form."""
        start = self.skip(struct.calcsize(f"<{form}"))
        return struct.unpack_from(f"<{form}", self.content, start)[0]

    def text(self) -> str:
        """A text: its length in bytes, and UTF-8."""
        length = self.number("Q")
        start = self.skip(length)
        try:
            return self.content[start : self.position].decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.path}: expected UTF-8 at byte {start}, got {error.reason}. {REMEDY}"
            ) from None

    def table(self, count: int, read: Callable[[], Any]) -> dict[str, Any]:
        """So many values by their names, which come before each of them."""
        values: dict[str, Any] = {}
        for _ in range(count):
            name = self.text()
            if name in values:
                raise ValueError(f"{self.path}: expected {shown_value(name)} once, got it twice. {REMEDY}")
            values[name] = read()
        return values

    def value(self) -> Any:
        """A value of the metadata, after the number of its kind."""
        kind = self.number("I")
        return self.array() if kind == ARRAY else self.one(kind)

    def one(self, kind: int) -> Any:
        """A single number or text."""
        if kind == TEXT:
            return self.text()
        self.check_kind(kind)
        number = self.number(NUMBERS[kind])
        # The shortest decimal is what was written: 1e-06, not 9.999999974752427e-07.
        return float(str(np.float32(number))) if kind == FLOAT32 else number

    def array(self) -> Any:
        """Values of one kind: a list of texts, or an array of numbers."""
        kind, count = self.number("I"), self.number("Q")
        if kind == TEXT:
            self.check_count(count, 8, "texts")
            return [self.text() for _ in range(count)]
        self.check_kind(kind)
        dtype = np.dtype(NUMBERS[kind]).newbyteorder("<")
        self.check_count(count, dtype.itemsize, "numbers")
        start = self.skip(count * dtype.itemsize)
        return np.frombuffer(self.content, dtype, count, start)

    def check_kind(self, kind: int) -> None:
        """Refuse a kind of value that the format does not have."""
        if kind not in NUMBERS:
            raise ValueError(
                f"{self.path}: expected a number or a text before byte {self.position}, got a value of kind "
                f"{kind}. {REMEDY}"
            )

    def tensor(self) -> GgufTensor:
        """A tensor's entry, whose `start` is its offset in the data."""
        where = self.position
        num_axes = self.number("I")
        if not 1 <= num_axes <= MAX_AXES:
            raise ValueError(
                f"{self.path}: expected a tensor of 1 to {MAX_AXES} axes at byte {where}, got {num_axes}. "
                f"{REMEDY}"
            )
        # The last axis comes first.
        axes = [self.number("Q") for _ in range(num_axes)]
        type_number, offset = self.number("I"), self.number("Q")
        if type_number not in TYPES:
            raise ValueError(
                f"{self.path}: expected tensors in floating-point numbers, or quantised as "
                f"{', '.join(kind.name for kind in TYPES.values())}, got type {type_number}. Use the model "
                "in another quantisation."
            )
        # A block never spans two rows.
        kind = TYPES[type_number]
        if axes[0] % kind.block:
            raise ValueError(
                f"{self.path}: expected rows of a multiple of {kind.block} numbers in type {kind.name}, got "
                f"{axes[0]}. {REMEDY}"
            )
        return GgufTensor(tuple(reversed(axes)), kind, offset, self.content)
