"""Reads the records that stages leave: manifests, the sidecars of files, JSON lines."""

import os
import pathlib
from collections.abc import Iterable
from typing import Any

from etils import epath

from radit_jax.runtime.storage.entries import bytes_or_none
from radit_jax.runtime.storage.files import (
    SEAL,
    as_object,
    has_seal,
    parse_json,
)

# ---- reading and measuring ----


def parse_jsonl(
    data: bytes, where: str, fields: Iterable[str] = (), remedy: str = "Correct the line."
) -> list[dict[str, Any]]:
    """The objects of JSON lines, each of which must have `fields`; `where` names the file in errors."""
    rows = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        place = f"{where} line {number}"
        row = as_object(parse_json(line, place, remedy), place, remedy)
        missing = [field for field in fields if field not in row]
        if missing:
            raise ValueError(f"{place}: expected the field {missing[0]!r}, got {sorted(row)}. {remedy}")
        rows.append(row)
    return rows


def read_manifest(path: epath.Path, remedy: str = "") -> dict[str, Any] | None:
    """The manifest at `path`; None where there is none, or only a name without bytes, as a power cut leaves.

    Raises ValueError for one that is not as it was written.
    """
    data = bytes_or_none(path)
    if not data or not data.strip():
        return None
    manifest = as_object(parse_json(data, str(path), remedy), str(path), remedy)
    if SEAL in manifest and not has_seal(manifest):  # older ones have none
        raise ValueError(f"{path}: expected the facts that were written, got altered ones. {remedy}")
    names, files = (manifest.get("stage"), manifest.get("fingerprint")), manifest.get("files")
    is_listing = isinstance(files, dict) and all(_is_inside(n) and _is_record(r) for n, r in files.items())
    if not is_listing or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{path}: expected a stage, a fingerprint and files with sizes and hashes, got others. {remedy}"
        )
    return manifest


def read_sidecar(path: epath.Path) -> dict[str, Any] | None:
    """The size and hash in a sidecar; None where there is none that could be one."""
    try:
        found = parse_json(bytes_or_none(path) or b"", str(path), "")
    except ValueError:
        return None
    return found if _is_record(found) else None


def _is_record(found: Any) -> bool:
    """Whether JSON is `{"size": bytes, "sha256": hash}`."""
    if not isinstance(found, dict) or set(found) != {"size", "sha256"}:
        return False
    return type(found["size"]) is int and isinstance(found["sha256"], str)


def _is_inside(name: str) -> bool:
    """Whether a name in a manifest is that of a file inside its folder."""
    return not os.path.isabs(name) and ".." not in pathlib.PurePosixPath(name).parts
