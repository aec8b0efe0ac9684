"""A stage's fingerprint, which names its output: a hash of its settings, sources and parent stages."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import subprocess
from collections.abc import Mapping
from typing import Any

FINGERPRINT_DIGITS = 12
_PACKAGES = ("radit_jax", "jax", "flax", "numpy")  # whose versions a manifest names


def canonical(settings: Any) -> Any:
    """`settings` as plain JSON, equal exactly where settings mean the same.

    A dataclass has its class's name, which tells the members of a union apart. A field that was `added` later
    is left out at its default. A tuple is a list. A whole float is an int: `1` and `1.0` are one setting.

    >>> from radit_jax.config import RetrieveConfig
    >>> canonical({"retrieve": RetrieveConfig(num_chunks=3), "rates": (1.0, 0.5)})
    {'retrieve': {'class': 'RetrieveConfig', 'num_chunks': 3, 'temperature': 1}, 'rates': [1, 0.5]}
    """
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        values = {"class": type(settings).__name__}
        for field in dataclasses.fields(settings):
            value = getattr(settings, field.name)
            is_as_before = "added" in field.metadata and value == field.default
            if not is_as_before:
                values[field.name] = canonical(value)
        return values
    if isinstance(settings, Mapping):
        return {str(key): canonical(value) for key, value in settings.items()}
    if isinstance(settings, tuple | list):
        return [canonical(value) for value in settings]
    if isinstance(settings, float) and settings.is_integer():
        return int(settings)
    # Values of JSON.
    is_plain = isinstance(settings, bool | int | float | str)
    if is_plain or settings is None:
        return settings
    raise TypeError(
        f"fingerprint: expected settings of dataclasses, mappings, lists, numbers and texts, got a "
        f"{type(settings).__name__}: {settings!r}. Give the setting one of these types."
    )


def fingerprint(
    stage: str,
    version: int,
    settings: Any,
    parents: Mapping[str, str],
    sources: Mapping[str, str],
) -> str:
    """Twelve hex digits that name what `stage` makes from these settings, parent stages and sources.

    `version` is that of the stage's code. `parents` maps names of stages to their fingerprints. `sources`
    maps what the stage reads from outside to its identity: a revision, or a hash (`Workdir.source_hash`).
    """
    identity = {
        "stage": stage,
        "version": version,
        "settings": canonical(settings),
        "parents": dict(parents),
        "sources": dict(sources),
    }
    # Equal settings have equal texts, whatever their order.
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_DIGITS]


def shard_name(name: str, index: int, count: int) -> str:
    """The name of shard `index` (from 0) of `count`.

    >>> shard_name("scores", 3, 10)
    'scores-00003-of-00010'
    """
    return f"{name}-{index:05d}-of-{count:05d}"


def package_versions() -> dict[str, str]:
    """Versions of this package and the main ones that it uses, by name."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # run from a checkout
            versions[package] = importlib.metadata.version(package)
    return versions


def commit_of_source() -> str | None:
    """The git commit that the package runs from, with `-dirty` after edits; None for an installed package."""
    checkout = pathlib.Path(__file__).parents[3]
    # An installed package is not in a checkout.
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError):  # no git
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    return None
