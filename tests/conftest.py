"""Strict by default: eight devices, no silent rank promotion, warnings are errors, shapes are checked."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import pathlib

import jax
import jaxtyping
import pytest

jaxtyping.install_import_hook("radit_jax", "beartype.beartype")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """A folder of real data (`wiki/`, `raw/`, `tokenizers/`), named by RADIT_DATA."""
    folder = os.environ.get("RADIT_DATA", "")
    if not folder or not pathlib.Path(folder).is_dir():
        pytest.skip("RADIT_DATA names no folder of real data")
    return pathlib.Path(folder)


# Imported where they are used, so that the hook above sees their imports; tests/small.py says what they are.


@pytest.fixture(scope="session")
def lm():
    import small

    return small.language_model()


@pytest.fixture(scope="session")
def searcher():
    import small

    return small.searcher()


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory, lm, searcher):
    import small

    return small.finished_stages(tmp_path_factory.mktemp("inputs"), lm, searcher)
