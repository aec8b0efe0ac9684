"""Files in parts: rows that several processes write, and read, between them.

Many rows are `train-00000-of-00004.jsonl` and so on, and few of them are `train.jsonl` alone. How many parts
there are follows from the rows, never from the processes. What all processes need whole, each reads a part
of from the disk or the bucket, and gets the rest over the network.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage.fingerprints import shard_name
from radit_jax.runtime.storage.stage_folder import StageFolder

ROWS_PER_PART = 4096


def parts_of(name: str, num_rows: int) -> dict[str, range]:
    """The rows of each part of a file, by the part's name; one part has the name of the file."""
    count = -(-num_rows // ROWS_PER_PART)
    if count < 2:
        return {name: range(num_rows)}
    stem, suffix = os.path.splitext(name)
    parts = {}
    for number in range(count):
        start = number * ROWS_PER_PART
        stop = min(start + ROWS_PER_PART, num_rows)
        parts[f"{shard_name(stem, number, count)}{suffix}"] = range(start, stop)
    return parts


def write_parts(
    folder: StageFolder,
    name: str,
    num_rows: int,
    write: Callable[[str, slice], None],
) -> None:
    """Write a file in parts: of several processes each calls `write` with some parts' names and rows."""
    from radit_jax.runtime.shards import Shards

    parts = parts_of(name, num_rows)
    sizes = {part: len(rows) for part, rows in parts.items()}
    index, count = processes.process_index_and_count()
    shards = Shards(folder, sizes, list(parts), index, count)
    shards.write_each((slice(parts[part].start, parts[part].stop) for part in shards.own), write)


def stored_parts(folder: StageFolder, name: str) -> list[str]:
    """The parts of a file in a finished folder, in order; `name` itself where it is not in parts."""
    if folder.has(name) or not folder.complete:
        return [name]
    stem, suffix = map(re.escape, os.path.splitext(name))
    pattern = re.compile(rf"{stem}-\d+-of-\d+{suffix}")
    return sorted(filter(pattern.fullmatch, folder.manifest["files"])) or [name]


def read_parts(folder: StageFolder, name: str) -> Iterator[tuple[str, bytes]]:
    """Each part of a file with its bytes, in order, on every process."""
    parts = stored_parts(folder, name)
    yield from zip(parts, read_each(folder, parts), strict=True)


def read_array_parts(folder: StageFolder, name: str, *fields: str) -> dict[str, np.ndarray]:
    """The named arrays of a `.npz` file that may be in parts, on every process; exactly `fields`."""
    found: dict[str, list[np.ndarray]] = {field: [] for field in fields}
    for part, data in read_parts(folder, name):
        arrays = folder.parse_arrays(part, data, *fields)
        for field, array in arrays.items():
            found[field].append(array)
    # The rows of the parts follow each other.
    return {field: np.concatenate(arrays) for field, arrays in found.items()}


def read_each(folder: StageFolder, names: Sequence[str]) -> Iterator[bytes]:
    """The bytes of committed files, in order; each of several processes reads some, and all get all."""
    _, count = processes.process_index_and_count()
    # One file of each process at a time.
    for start in range(0, len(names), count):
        yield from _read_turn(folder, names[start : start + count])


def _read_turn(folder: StageFolder, turn: Sequence[str]) -> list[bytes]:
    """The bytes of a turn's files, of which the p-th is process p's."""
    index, _ = processes.process_index_and_count()
    own: list[bytes] = []

    # 1) Each reads its own, and says how long it is.
    def read() -> int:
        own.append(folder.read(turn[index]) if index < len(turn) else b"")
        return len(own[0])

    lengths = processes.on_each_process(f"{folder} {turn[0]}", read)
    if len(lengths) == 1 or not any(lengths):
        return own * len(turn)

    # 2) All get all.
    from radit_jax.runtime.distributed.mesh import concatenate_hosts

    joined = concatenate_hosts(np.frombuffer(own[0], np.uint8), lengths)
    ends = np.cumsum(lengths[: len(turn)])
    return [part.tobytes() for part in np.split(joined, ends[:-1])]
