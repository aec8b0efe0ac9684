"""What names a stage's output: its settings in a canonical form, its sources and its inputs."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import subprocess
from collections.abc import Mapping
from typing import Any

# ---- fingerprints ----


def canonical(settings: Any) -> Any:
    """`settings` as plain JSON: equal exactly when the settings mean the same.

    A dataclass carries its class' name, which tells the members of a union apart; a tuple is a list; a
    whole float is an int, because `1` and `1.0` are one setting.

    >>> from radit_jax.config import RetrieveConfig
    >>> canonical({"retrieve": RetrieveConfig(num_chunks=3), "rates": (1.0, 0.5)})
    {'retrieve': {'class': 'RetrieveConfig', 'num_chunks': 3}, 'rates': [1, 0.5]}
    """
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        fields = {f.name: canonical(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
        return {"class": type(settings).__name__, **fields}
    if isinstance(settings, Mapping):
        return {str(key): canonical(value) for key, value in settings.items()}
    if isinstance(settings, tuple | list):
        return [canonical(value) for value in settings]
    if isinstance(settings, float) and settings.is_integer():
        return int(settings)
    if settings is None or isinstance(settings, bool | int | float | str):
        return settings
    raise TypeError(f"a setting of type {type(settings).__name__} has no canonical form: {settings!r}")


def fingerprint(
    stage: str, version: int, settings: Any, parents: Mapping[str, str], sources: Mapping[str, str]
) -> str:
    """Twelve hex digits that name what `stage` makes from these settings, parent stages and sources.

    `parents` maps stage names to their fingerprints, `sources` maps what the stage reads from outside to
    its identity: a revision, or a hash (`Workdir.source_hash`).
    """
    identity = {
        "stage": stage,
        "version": version,
        "settings": canonical(settings),
        "parents": dict(parents),
        "sources": dict(sources),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def shard_name(name: str, index: int, count: int) -> str:
    """The name of shard `index` (from 0) of `count`.

    >>> shard_name("scores", 3, 10)
    'scores-00003-of-00010'
    """
    return f"{name}-{index:05d}-of-{count:05d}"


def package_versions() -> dict[str, str]:
    versions = {}
    for package in ("radit_jax", "jax", "flax", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # run from a checkout
            versions[package] = importlib.metadata.version(package)
    return versions


def commit_of_source() -> str | None:
    """The git commit that the package was run from; `None` for an installed package."""
    checkout = pathlib.Path(__file__).parents[3]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError):  # no git
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    return None
