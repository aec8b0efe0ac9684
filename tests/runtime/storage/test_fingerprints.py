"""The commit of the source that manifests record; the canonical form is tested with the stage folder."""

import pathlib
import subprocess

import pytest

from radit_jax.runtime.storage.fingerprints import commit_of_source

ROOT = pathlib.Path(__file__).parents[3]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git checkout")
def test_a_checkout_is_named_by_its_commit() -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    recorded = commit_of_source()
    assert recorded is not None
    assert recorded.removesuffix("-dirty") == head.stdout.strip()
