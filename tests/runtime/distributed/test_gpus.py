"""What commands set for GPUs before jax starts, on a machine where a file stands for the driver's device."""

import os
import subprocess
import sys

import pytest

from radit_jax.runtime.distributed import gpus
from radit_jax.runtime.distributed.accelerators import CHIPS

SCHEDULER = "--xla_gpu_enable_latency_hiding_scheduler"


@pytest.fixture
def driver(tmp_path, monkeypatch):
    device = tmp_path / "nvidiactl"
    device.touch()
    monkeypatch.setattr(gpus, "_DEVICES", (str(device),))
    return device


def test_the_share_of_memory_and_the_scheduler_are_set_and_said(driver):
    environment = {"XLA_FLAGS": "--xla_dump_to=x"}
    said = gpus.prepare_gpus(environment)
    assert environment == {"XLA_CLIENT_MEM_FRACTION": "0.9", "XLA_FLAGS": f"--xla_dump_to=x {SCHEDULER}=true"}
    assert said.startswith(f"GPUs: XLA_CLIENT_MEM_FRACTION=0.9 {SCHEDULER}=true ")
    # A second time there is nothing to do.
    assert gpus.prepare_gpus(environment) == ""


@pytest.mark.parametrize("name", ["XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"])
def test_what_the_user_has_set_stays(driver, name):
    own = {name: "0.5", "XLA_FLAGS": f"{SCHEDULER}=false"}
    environment = dict(own)
    assert gpus.prepare_gpus(environment) == ""
    assert environment == own


def test_without_a_gpu_or_with_another_platform_nothing_is_set(driver):
    for platforms in ("cpu", "tpu,cpu"):
        environment = {"JAX_PLATFORMS": platforms}
        assert gpus.prepare_gpus(environment) == ""
        assert list(environment) == ["JAX_PLATFORMS"]
    driver.unlink()
    environment = {}
    assert gpus.prepare_gpus(environment) == "" and not environment


def test_a_plan_counts_on_the_share_that_commands_set():
    assert CHIPS["h100"].memory == gpus.MEMORY_FRACTION * 80e9


def test_xla_knows_the_flags():
    """It ends a program with a flag that it does not know, on a CPU too."""
    flags = " ".join(f"--{name}={value}" for name, value in gpus.XLA_FLAGS.items())
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    program = "import jax; print(int(jax.numpy.ones(2).sum()))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "2\n", done.stderr
