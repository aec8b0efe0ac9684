"""The tiny experiment in buckets of real servers on the loopback, killed and taken up elsewhere (slow)."""

import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import servers
from test_resume import ENVIRONMENT, command, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("disk")
    run(folder)
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_run_killed_twice_in_a_bucket_equals_one_on_a_disk(
    scheme: str, on_disk: dict, tmp_path: pathlib.Path
) -> None:
    scratches = (tmp_path / f"machine-{number}" for number in itertools.count())
    with getattr(servers, scheme)() as server:
        environment = ENVIRONMENT | server.environment
        environment |= {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}

        def start() -> subprocess.Popen[bytes]:
            words = [*command(f"{scheme}://lab/runs/tiny"), f"--scratch={next(scratches)}"]
            return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

        for stage in ("lm_ft", "r_ft"):
            with start() as process:
                wait_for_checkpoint(server, stage, process)
                process.send_signal(signal.SIGKILL)
        with start() as process:
            printed, _ = process.communicate()
        assert process.returncode == 0, printed.decode()
        assert b"r_ft: was interrupted; resumes" in printed
        code = "import sys; from etils import epath; print(epath.Path(sys.argv[1]).read_text())"
        words = [sys.executable, "-c", code, f"{scheme}://lab/runs/tiny/results.json"]
        results = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
    assert json.loads(results) == on_disk


def wait_for_checkpoint(server, stage: str, process: subprocess.Popen[bytes]) -> None:
    """Until the bucket has a whole checkpoint of `stage`, which is one with its record."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    end = "checkpoints/latest/10.json"
    printed = b""
    while not any(f"/{stage}/" in name and name.endswith(end) for name in server.names()):
        printed += process.stdout.read() or b""
        assert process.poll() is None, printed.decode()
        time.sleep(0.2)


def test_a_bucket_that_google_denies_is_one_clear_error() -> None:
    with servers.gs(denied=True) as server:
        refused = subprocess.run(
            command("gs://lab/runs/tiny"),
            env=ENVIRONMENT | server.environment,
            capture_output=True,
            text=True,
        )
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: gs://lab/runs/tiny: ")
    assert "expected a bucket in which this account may list and read objects, got " in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_bucket_that_does_not_exist_is_one_clear_error(scheme: str) -> None:
    with getattr(servers, scheme)() as server:
        refused = subprocess.run(
            command(f"{scheme}://nobodys/runs"),
            env=ENVIRONMENT | server.environment,
            capture_output=True,
            text=True,
        )
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: {scheme}://nobodys/runs: ")
    assert "in a bucket that exists" in refused.stderr


BUSY = """
import sys
from radit_jax.runtime.storage import bucket
bucket.put("gs://lab/x", b"one")
print(bucket.get("gs://lab/x"))
"""


def test_a_store_that_is_busy_for_a_minute_is_asked_until_it_answers() -> None:
    """gcsfs gives up after half a minute."""
    begin = time.monotonic()
    with servers.gs(busy=lambda: time.monotonic() - begin < 60) as server:
        environment = ENVIRONMENT | server.environment
        done = subprocess.run([sys.executable, "-c", BUSY], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "b'one'\n"


COMPILES = """
import collections, sys
import jax
hits = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: hits.update([event.rpartition("/")[2]]))
from radit_jax import train
train.SECONDS_WORTH_A_REQUEST = float(sys.argv[3])
train.prepare_jax(train.Workdir(*sys.argv[1:3]))
jax.jit(lambda x: x + 1)(1.0)
print(hits["cache_hits"])
"""


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_second_machine_finds_the_programs_that_took_long(scheme: str, tmp_path: pathlib.Path) -> None:
    with getattr(servers, scheme)() as server:
        environment = ENVIRONMENT | server.environment
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)

        def hits(machine: str, least_seconds: str) -> str:
            words = [
                sys.executable,
                "-c",
                COMPILES,
                f"{scheme}://lab/run",
                str(tmp_path / machine),
                least_seconds,
            ]
            done = subprocess.run(words, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        # One that compiles in a moment is not kept.
        assert hits("one", "1.0") == "0" and hits("two", "1.0") == "0"
        assert not any("/compiled/" in name for name in server.names())
        assert hits("one", "0.0") == "0" and hits("two", "0.0") == "1"
        assert any("/compiled/" in name for name in server.names())


TWO = """
import sys
import jax, numpy as np
from radit_jax.runtime.distributed.processes import join_processes
from radit_jax.runtime.distributed.topology import find_topology
scheme, scratch, coordinator, number = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
join_processes(find_topology(coordinator, 2, number))
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import NamedSharding, PartitionSpec
from radit_jax.runtime.storage.checkpoints import Checkpoints, load_params, save_params
from radit_jax.runtime.storage.workdir import Workdir

whole = np.arange(32, dtype=np.float32).reshape(8, 4)
sharding = NamedSharding(jax.make_mesh((4,), ("x",)), PartitionSpec("x"))
state = {"w": jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])}
folder = Workdir(f"{scheme}://lab/runs/two", scratch).folder("lm_ft", "0" * 12)
checkpoints = Checkpoints(folder.path / "checkpoints")
for step in (1, 2, 3):
    checkpoints.save(step, state)
save_params(folder.path / "lm" / "params", state)
folder.commit("lm")
folder.finish()
sync_global_devices("finished")
again = Checkpoints(folder.path / "checkpoints")
assert again.latest() == 3, again.latest()
for shard in again.restore(state)[0]["w"].addressable_shards:
    np.testing.assert_array_equal(shard.data, whole[shard.index])
np.testing.assert_array_equal(load_params(folder.verified_path("lm") / "params")["w"], whole)
"""


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_two_processes_save_together_and_read_it_back(scheme: str, tmp_path: pathlib.Path) -> None:
    """In gs:// each has a scratch of its own, on s3:// they share one."""
    with getattr(servers, scheme)() as server:
        environment = ENVIRONMENT | server.environment
        environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
        started = []
        for number in (0, 1):
            scratch = tmp_path / (f"machine-{number}" if scheme == "gs" else "shared")
            words = [sys.executable, "-c", TWO, scheme, str(scratch), "127.0.0.1:45713", str(number)]
            started.append(
                subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            )
        try:
            printed = [process.communicate(timeout=300)[0].decode() for process in started]
        finally:
            for process in started:
                process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(printed)
