"""Runs a program as two processes that work together."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

from ports import free_port

ROOT = pathlib.Path(__file__).parents[1]


def run_two(program: str, arguments: Sequence[str], **environment: str) -> list[str]:
    """The program as two processes of two devices each; their port and number follow the arguments.

    What each printed is returned.
    """
    port = str(free_port())
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        **environment,
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, *arguments, port, number],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in ("0", "1")
    ]
    outputs = [process.communicate()[0] for process in started]
    codes = [process.returncode for process in started]
    assert codes == [0, 0], "\n".join(outputs)
    return outputs
