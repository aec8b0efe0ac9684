"""The records that stages leave, read and checked: manifests, sidecars of files, JSON lines."""

import os
import pathlib
from collections.abc import Iterable
from typing import Any

from etils import epath

from radit_jax.runtime.storage.entries import bytes_or_none
from radit_jax.runtime.storage.files import SEAL, as_object, has_seal, parse_json


def parse_jsonl(
    data: bytes,
    where: str,
    fields: Iterable[str] = (),
    remedy: str = "Correct the line.",
) -> list[dict[str, Any]]:
    """The objects of JSON lines; each has to have `fields`. `where` names the file in errors."""
    rows = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        place = f"{where} line {number}"
        # An error names the line.
        row = as_object(parse_json(line, place, remedy), place, remedy)
        missing = [field for field in fields if field not in row]
        if missing:
            raise ValueError(f"{place}: expected the field {missing[0]!r}, got {sorted(row)}. {remedy}")
        rows.append(row)
    return rows


def read_manifest(path: epath.Path, remedy: str = "") -> dict[str, Any] | None:
    """The manifest at `path`; None where there is none, or an empty file, as a power cut leaves it.

    Raises ValueError for a manifest that is not as it was written.
    """
    # 1) It is there, and as it was written.
    data = bytes_or_none(path)
    if not data or not data.strip():
        return None
    value = parse_json(data, str(path), remedy)
    manifest = as_object(value, str(path), remedy)
    if SEAL in manifest and not has_seal(manifest):  # older manifests have no seal
        raise ValueError(f"{path}: expected the facts that were written, got altered ones. {remedy}")
    # 2) It names the stage, and lists files inside the folder.
    names = (manifest.get("stage"), manifest.get("fingerprint"))
    is_named = all(isinstance(name, str) for name in names)
    if not is_named or not _is_listing(manifest.get("files")):
        raise ValueError(
            f"{path}: expected a stage, a fingerprint and files with sizes and hashes, got others. {remedy}"
        )
    return manifest


def read_sidecar(path: epath.Path) -> dict[str, Any] | None:
    """The size and hash in a sidecar; None where there is no sidecar, or it holds something else."""
    try:
        record = parse_json(bytes_or_none(path) or b"", str(path), "")
    except ValueError:
        return None
    return record if _is_record(record) else None


def _is_listing(files: Any) -> bool:
    """Whether JSON maps names inside a folder to sizes and hashes."""
    if not isinstance(files, dict):
        return False
    names_are_inside = all(_is_inside(name) for name in files)
    return names_are_inside and all(_is_record(record) for record in files.values())


def _is_record(value: Any) -> bool:
    """Whether JSON is `{"size": bytes, "sha256": hash}`."""
    if not isinstance(value, dict) or set(value) != {"size", "sha256"}:
        return False
    size, digest = value["size"], value["sha256"]
    return type(size) is int and isinstance(digest, str)


def _is_inside(name: str) -> bool:
    """Whether a name in a manifest leads to a file inside its folder."""
    if os.path.isabs(name):
        return False
    return ".." not in pathlib.PurePosixPath(name).parts
