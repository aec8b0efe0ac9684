"""What every command does for the devices of this machine, before jax starts."""

import os
from collections.abc import MutableMapping

from radit_jax.runtime.distributed.cpus import prepare_cpus
from radit_jax.runtime.distributed.gpus import prepare_gpus


def prepare_devices(environment: MutableMapping[str, str] = os.environ) -> str:
    """Make the settings of `cpus.py` or `gpus.py`; returns a line to print, or ""."""
    prepare_cpus(environment)
    return prepare_gpus(environment)
