"""What commands set for CPUs before jax starts."""

import os
import pathlib
import subprocess
import sys

import pytest

from radit_jax.runtime.distributed import cpus, gpus
from radit_jax.runtime.distributed.devices import prepare_devices

LEVEL = "--xla_backend_optimization_level"

# Takes and frees 64 MiB ten times, and prints how many pages the kernel had to give for it.
PAGES = """
import resource, sys
from radit_jax.runtime.distributed.cpus import limit_kept_memory, prepare_cpus
if sys.argv[1] != "plain":
    prepare_cpus()
    limit_kept_memory(int(sys.argv[1]))
first = bytearray(64 << 20)
del first
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    block = b"x" * (64 << 20)
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _huge_pages() -> str:
    """When the kernel gives pages of 2 MiB, its choice in brackets; "" where it does not say."""
    setting = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return setting.read_text() if setting.exists() else ""


@pytest.fixture
def kept(monkeypatch):
    """How often the process was told to keep freed memory, without telling it."""
    calls = []
    monkeypatch.setattr(cpus, "_keep_freed_memory", lambda: calls.append("kept"))
    return calls


def test_a_cpu_gets_a_level_and_keeps_what_is_freed(kept):
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_dump_to=x"}
    assert prepare_devices(environment) == ""
    assert environment == {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_dump_to=x {LEVEL}=1"}
    assert kept == ["kept"]
    # A second time the flag is there.
    prepare_devices(environment)
    assert environment["XLA_FLAGS"] == f"--xla_dump_to=x {LEVEL}=1"


def test_the_users_own_level_stays(kept):
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{LEVEL}=3"}
    cpus.prepare_cpus(environment)
    assert environment["XLA_FLAGS"] == f"{LEVEL}=3"


@pytest.mark.parametrize(
    "own",
    [
        {"MALLOC_ARENA_MAX": "2"},
        {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=128"},
        {"LD_PRELOAD": "libtcmalloc.so"},
    ],
)
def test_the_users_own_allocator_stays(kept, own):
    cpus.prepare_cpus({"JAX_PLATFORMS": "cpu", **own})
    assert kept == []


def test_accelerators_get_neither(kept, monkeypatch, tmp_path):
    # Where JAX_PLATFORMS names one first.
    environment = {"JAX_PLATFORMS": "tpu,cpu"}
    cpus.prepare_cpus(environment)
    # Where the machine has one.
    device = tmp_path / "device"
    device.touch()
    found: dict[str, str] = {}
    with monkeypatch.context() as patch:
        patch.setattr(gpus, "_DEVICES", (str(device),))
        cpus.prepare_cpus(found)
    with monkeypatch.context() as patch:
        patch.setattr(cpus, "on_tpu_host", lambda: True)
        cpus.prepare_cpus(found)
    assert environment == {"JAX_PLATFORMS": "tpu,cpu"} and found == {} and kept == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
@pytest.mark.skipif("[always]" in _huge_pages(), reason="the kernel gives pages of 2 MiB")
def test_a_large_block_is_taken_again_without_the_kernel():
    """Ten blocks of 64 MiB are 163,840 pages of 4 KiB; a heap that keeps one asks for none."""
    assert _pages("plain") > 100_000
    assert _pages("1000") < 20_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
@pytest.mark.skipif("[always]" in _huge_pages(), reason="the kernel gives pages of 2 MiB")
def test_a_large_models_blocks_go_back_to_the_kernel():
    """Their holes in the heap took 20 GB where LM-ft of Gemma 3 270M needs 12."""
    assert _pages(str(cpus.LARGE_MODEL)) > 100_000


def _pages(how: str) -> int:
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PAGES, how]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def test_xla_knows_the_flag():
    """It ends a program with a flag that it does not know."""
    environment = os.environ | {"XLA_FLAGS": f"{LEVEL}=1", "JAX_PLATFORMS": "cpu"}
    program = "import jax; print(int(jax.numpy.ones(2).sum()))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "2\n", done.stderr
