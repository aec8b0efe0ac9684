"""How commands let jax compute on CPUs: the code that XLA makes, and the memory that a program has freed.

What the user has set stays as it is. `prepare_cpus` does two things where jax computes on the CPU:

- `--xla_backend_optimization_level=1`: XLA writes vector code and calls matrix libraries at any level, so
  that LLVM's further passes make a training step 1 to 2 % faster, and its compilation a third slower.
- glibc gives freed blocks above 32 MiB back to the kernel, which clears every page of them when the next
  step takes them again. A step takes and frees one such block: up to a fifth of a small model's CPU time.
  With `mallopt` the process keeps up to `KEPT_BYTES` at the end of its heap. A large model's blocks would
  leave holes there that the next ones do not fit (20 GB in place of 12 for LM-ft of Gemma 3 270M), so
  `limit_kept_memory` ends it for them.
"""

import ctypes
import os
import sys
from collections.abc import Mapping, MutableMapping

from radit_jax.runtime.distributed.gpus import will_use_gpus
from radit_jax.runtime.distributed.topology import on_tpu_host

OPTIMIZATION_LEVEL = "xla_backend_optimization_level"
KEPT_BYTES = 1 << 30  # of freed memory; what is above it goes back to the kernel
LARGE_MODEL = 1 << 28  # bytes of parameters from which memory matters more than time

# Parameters of glibc's `mallopt`, from its malloc.h, with our values.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -2, -3, -4, -8
_MALLOC_PARAMETERS = {
    _MMAP_MAX: 0,  # large blocks come from the heap too …
    _ARENA_MAX: 1,  # … of which there is one, because those of other threads have at most 64 MiB
    _TRIM_THRESHOLD: KEPT_BYTES,
    _TOP_PAD: 64 << 20,  # by which the heap grows at a time
}
_FOR_LARGE_MODELS = {
    _MMAP_MAX: 65536,  # glibc's own: blocks from the threshold on do not come from the heap
    _MMAP_THRESHOLD: 32 << 20,
}

_keeps = False  # whether this process keeps freed memory


def prepare_cpus(environment: MutableMapping[str, str] = os.environ) -> None:
    """Make the settings above, before jax starts; nothing where jax will use GPUs or TPUs."""
    if not _will_use_cpus(environment):
        return
    own_flags = environment.get("XLA_FLAGS", "")
    if OPTIMIZATION_LEVEL not in own_flags:
        environment["XLA_FLAGS"] = f"{own_flags} --{OPTIMIZATION_LEVEL}=1".strip()
    if not _has_own_malloc(environment):
        _keep_freed_memory()


def limit_kept_memory(params_bytes: int) -> None:
    """Give freed blocks above 32 MiB back from here on, where a model has `LARGE_MODEL` bytes or more."""
    if params_bytes >= LARGE_MODEL and _keeps:
        _set_malloc(_FOR_LARGE_MODELS)


def _will_use_cpus(environment: MutableMapping[str, str]) -> bool:
    """Whether jax computes on CPUs: there is nothing else, or JAX_PLATFORMS names them first."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] == "cpu"
    return not will_use_gpus(environment) and not on_tpu_host()


def _has_own_malloc(environment: MutableMapping[str, str]) -> bool:
    """Whether the user has set how memory is allocated, or another library than glibc does it."""
    if environment.get("LD_PRELOAD") or "glibc.malloc" in environment.get("GLIBC_TUNABLES", ""):
        return True
    return any(name.startswith("MALLOC_") for name in environment)


def _keep_freed_memory() -> None:
    global _keeps
    _keeps = True
    _set_malloc(_MALLOC_PARAMETERS)


def _set_malloc(parameters: Mapping[int, int]) -> None:
    """Tell glibc; nothing where the program runs with another C library."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for parameter, value in parameters.items():
        mallopt(parameter, value)
