"""The files of checkpoints: their records and checksums, and their copies in a bucket."""

import json
import os
import re
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

from radit_jax.runtime.storage import bucket
from radit_jax.runtime.storage.files import as_object, has_seal, parse_json, read_json, write_whole

_NUM_THREADS = 8  # that read files at once
_BLOCK_BYTES = 1 << 24  # read at once

Checksums = dict[str, Any]  # name -> [bytes, checksum]


def record_file(folder: epath.Path, step: int) -> epath.Path:
    """The file of the record of the checkpoint at `step`."""
    return folder / f"{step}.json"


def read_checkpoint_record(file: epath.Path, step: int) -> dict[str, Any] | None:
    """The record of the checkpoint at `step`; None where there is none that is as it was written."""
    try:
        record = read_json(file, "")
    except (FileNotFoundError, ValueError):
        return None
    return record if has_seal(record) and record.get("step") == step else None


# ---- checksums ----


def file_names(folder: epath.Path) -> list[str]:
    """Sorted names of all files under a folder, relative to it."""
    names = []
    for parent, _, files in os.walk(folder):
        for file in files:
            path = os.path.join(parent, file)
            names.append(os.path.relpath(path, folder))
    return sorted(names)


def file_checksums(folder: epath.Path, names: list[str]) -> Checksums:
    """Bytes and CRC-32 of the files that exist. zlib releases Python's lock, so threads read at once."""
    paths = [folder / name for name in names]
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        checksums = list(pool.map(_checksum, paths))
    by_name = {}
    for name, checksum in zip(names, checksums, strict=True):
        if checksum:
            by_name[name] = checksum
    return by_name


def _checksum(path: epath.Path) -> list[int]:
    """[bytes, CRC-32] of a file; [] where there is none."""
    # Block by block: a file may be larger than memory.
    size, crc = 0, 0
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK_BYTES):
                size += len(block)
                crc = zlib.crc32(block, crc)
    except FileNotFoundError:
        return []
    return [size, crc]


def writer_of(name: str) -> int:
    """The process that wrote a file of a checkpoint; process 0 writes the files that all share.

    >>> writer_of("state/ocdbt.process_3/d/ab"), writer_of("state/_METADATA")
    (3, 0)
    """
    match = re.search(r"ocdbt\.process_(\d+)/", name)
    return int(match[1]) if match else 0


def first_difference(folder: epath.Path, expected: Checksums, found: Checksums) -> str:
    """What is wrong with the first file that differs from its checksum; "" where none does."""
    for name, checksum in expected.items():
        if found.get(name) != checksum:
            what = f"{found[name][0]} bytes with another checksum" if name in found else "no file"
            return f"{folder / name}: expected the bytes that were written, got {what}"
    return ""


# ---- copies in s3:// ----


def download_checkpoints(home: epath.Path, folder: epath.Path) -> None:
    """Make this machine's checkpoints in `folder` those of the bucket, which are the true ones."""
    records = _records_in(home)
    # 1) Remove those that the bucket does not have.
    children = list(folder.iterdir()) if folder.exists() else []
    for child in children:
        if child.name.removesuffix(".json") in records:
            continue
        if child.is_dir():
            child.rmtree()
        else:
            child.unlink()

    # 2) Download those that are not here, or not whole.
    for step, record in records.items():
        checksums = json.loads(record)["files"]
        expected_sizes = {name: size for name, (size, _) in checksums.items()}
        checkpoint = folder / step
        sizes = {}
        for name in file_names(checkpoint):
            sizes[name] = (checkpoint / name).stat().length
        if sizes != expected_sizes:
            bucket.download(home / step, checkpoint)
        write_whole(folder / f"{step}.json", record)


def upload_checkpoints(folder: epath.Path, home: epath.Path, steps: Iterable[int]) -> None:
    """Make the bucket's checkpoints those of this machine; a new one is whole before an old one goes."""
    old_records = _records_in(home)
    names = [str(step) for step in sorted(steps)]
    for name in names:
        record = (folder / f"{name}.json").read_bytes()
        if old_records.get(name) != record:
            # The record comes last: it vouches for the files.
            bucket.delete_objects(home / f"{name}.json")
            bucket.upload(folder / name, home / name)
            bucket.put(home / f"{name}.json", record)
    # Here the record goes first.
    for name in set(old_records) - set(names):
        bucket.delete_objects(home / f"{name}.json")
        bucket.delete_objects(home / name)


def _records_in(home: epath.Path) -> dict[str, bytes]:
    """By step, the records of a bucket's checkpoints that are as they were written."""
    records = {}
    for name in bucket.sizes(home):
        step = name.removesuffix(".json")
        if name.endswith(".json") and step.isdigit():
            record = bucket.get(home / name) or b""
            if _is_sealed(record):
                records[step] = record
    return records


def _is_sealed(data: bytes) -> bool:
    try:
        return has_seal(as_object(parse_json(data, "", ""), "", ""))
    except ValueError:
        return False
