"""An index whose shards two processes have between them, against the same index of one."""

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from test_index import clustered

from radit_jax.retrieval.index import build
from radit_jax.runtime.store import StageFolder

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import sys
from radit_jax.runtime import hosts
folder, kind, port, number = sys.argv[1:]
hosts.join(hosts.find_place("127.0.0.1:" + port, 2, int(number)))
import numpy as np
from radit_jax.retrieval.index import build, load
from radit_jax.runtime.store import StageFolder
output = StageFolder(folder + "/index/0123456789ab")
names = ("embeddings", "queries", "exclude")
embeddings, queries, exclude = (np.load(f"{folder}/{name}.npy") for name in names)
build(embeddings, queries, kind=kind, shard_size=40, folder=output).save(output)
output.finish()
loaded = load(output, embeddings)
found = [loaded.search(queries, 7, exclude), loaded.search(queries, 60)]
np.savez(f"{folder}/{kind}-{number}.npz", *[array for one in found for array in one])
hosts.leave()
"""


def free_port() -> int:
    """A port that is free, as is the next one."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port = first.getsockname()[1]
            try:
                socket.create_server(("127.0.0.1", port + 1)).close()
                return port
            except OSError:
                continue


def run_two(program: str, arguments: Sequence[str], **environment: str) -> None:
    """The program as two processes of two devices each; their port and number follow the arguments."""
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
    for process, (printed, _) in [(process, process.communicate()) for process in started]:
        assert process.returncode == 0, printed


@pytest.mark.parametrize("kind", ["exact", "scann"])
def test_two_processes_find_with_half_of_the_shards_each_what_one_finds(tmp_path, kind) -> None:
    pytest.importorskip("scann")
    embeddings = clustered(130, 8)  # four shards of 32 or 33
    queries, exclude = embeddings[::9] + np.float32(0.01), np.arange(15) * 9
    exclude[::2] = -1
    for name, array in (("embeddings", embeddings), ("queries", queries), ("exclude", exclude)):
        np.save(tmp_path / f"{name}.npy", array)
    run_two(PROGRAM, [str(tmp_path), kind])
    one = build(embeddings, queries, kind=kind, shard_size=40)
    wanted = [
        array for found in (one.search(queries, 7, exclude), one.search(queries, 60)) for array in found
    ]
    for number in (0, 1):
        with np.load(tmp_path / f"{kind}-{number}.npz") as arrays:
            for found, expected in zip(arrays.values(), wanted, strict=True):
                np.testing.assert_array_equal(found, expected)
    folder = StageFolder(tmp_path / "index" / "0123456789ab")
    trees = [f"index/tree-{number:05d}-of-00004" for number in range(4)] if kind == "scann" else []
    assert sorted(folder.manifest["files"]) == ["index/index.json", *trees]
