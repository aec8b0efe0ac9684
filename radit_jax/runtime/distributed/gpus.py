"""How commands let jax and XLA use NVIDIA GPUs: settings of the environment, made before jax starts.

What the user has set stays as it is. Nothing is set on machines without such a GPU: XLA's flags are in the
keys of compiled programs. `prepare_gpus` sets these two:

- `XLA_CLIENT_MEM_FRACTION`: jax takes 0.75 of a GPU's memory by default, and holds programs to it. NVIDIA's
  JAX-Toolbox ("Tips for High-Performance LLMs") uses 0.8 to 0.9; what is left is for CUDA, cuDNN and NCCL.
- `--xla_gpu_enable_latency_hiding_scheduler`: XLA begins to gather weights and to sum gradients early, and
  computes meanwhile. It is off by default, and on in JAX-Toolbox's images.

And of NCCL nothing: NVLink SHARP (`NCCL_NVLS_ENABLE`), which JAX-Toolbox once turned off, is on again there,
and what a cloud's network needs is set by its own images. XLA's thresholds for combining collectives depend
on the model, and were never measured here.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path

MEMORY_FRACTION = 0.9  # of a GPU's memory, for jax's arrays; planning counts on as much
XLA_FLAGS = {"xla_gpu_enable_latency_hiding_scheduler": "true"}

# Old and new name; jax refuses both together.
_MEMORY_VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
_DEVICES = ("/dev/nvidiactl", "/dev/dxg")  # of NVIDIA's driver, the second under WSL


def prepare_gpus(environment: MutableMapping[str, str] = os.environ) -> str:
    """Make the settings above where this machine has a GPU; returns a line that says which, or ""."""
    if not will_use_gpus(environment):
        return ""
    # 1) The share of memory.
    made = []
    if not any(environment.get(name) for name in _MEMORY_VARIABLES):
        name = _MEMORY_VARIABLES[0]
        environment[name] = str(MEMORY_FRACTION)
        made.append(f"{name}={MEMORY_FRACTION}")
    # 2) Flags that the user's own do not name.
    own_flags = environment.get("XLA_FLAGS", "")
    for name, value in XLA_FLAGS.items():
        if name not in own_flags:
            own_flags = f"{own_flags} --{name}={value}".strip()
            made.append(f"--{name}={value}")
    environment["XLA_FLAGS"] = own_flags
    return f"GPUs: {' '.join(made)} (set them yourself for other values)" if made else ""


def will_use_gpus(environment: MutableMapping[str, str]) -> bool:
    """Whether jax may use a GPU: there is one, and JAX_PLATFORMS does not leave it out."""
    platforms = environment.get("JAX_PLATFORMS", "")
    is_wanted = not platforms or "cuda" in platforms or "gpu" in platforms
    return is_wanted and any(Path(device).exists() for device in _DEVICES)
