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
    """Until the bucket has a whole checkpoint of `stage`: Orbax's marker, or that of our copy."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    ends = ("checkpoints/latest/10/commit_success.txt", "checkpoints/latest/10.json")
    printed = b""
    while not any(f"/{stage}/" in name and name.endswith(ends) for name in server.names()):
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
    assert "needed is the permission to list and read objects in a bucket that exists" in refused.stderr
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
