"""Runs stopped at random moments by SIGKILL, SIGTERM and Ctrl-C, and resumed by the same command (slow).

    RADIT_KILLS=1000 pytest -m slow tests/test_kills.py -s

prints each. A run is stopped again and again until it is done; then comes the next one, from nothing.
"""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import pytest
import test_train

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
KILLS = int(os.environ.get("RADIT_KILLS", "100"))
SETTINGS = [
    *(s for s in test_train.SMALL if not s.startswith(("lm_ft.optimizer", "r_ft.optimizer"))),
    "lm_ft.optimizer.steps=12",
    "r_ft.optimizer.steps=12",
    "r_ft.checkpoint_every=2",
    "retrieve.num_chunks=4",
    "evaluate.chunks_per_answer=3",
    "evaluate.max_new_tokens=4",
]
# What the command may end with: a signal that comes while its modules load ends it as signals do.
CODES = {signal.SIGKILL: {-9}, signal.SIGTERM: {75, -15}, signal.SIGINT: {130, -2}}
PATIENCE = 60  # seconds from a signal to the end


class Ended(NamedTuple):
    """How the command ended."""

    code: int
    seconds: float  # since its first stage began
    errors: str


def environment(folder: pathlib.Path) -> dict[str, str]:
    """That of the command, whose compiled programs lie in `folder`; devices are those of the machine."""
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return kept | {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}


def command(workdir: pathlib.Path, stage: str = "all") -> list[str]:
    settings = [f"--set={setting}" for setting in SETTINGS]
    return [sys.executable, "-m", "radit_jax.train", f"--stage={stage}", f"--workdir={workdir}", *settings]


def run(
    workdir: pathlib.Path, how: signal.Signals | None = None, after: float = 0, work: bool = True
) -> Ended:
    """Run the command and, where `how` is given, stop it `after` seconds of work, or of its whole time."""
    pipes = {"stdout": subprocess.PIPE, "text": True, "cwd": ROOT, "env": environment(workdir.parent)}
    with (
        (workdir.parent / "errors").open("w+") as errors,
        subprocess.Popen(command(workdir), stderr=errors, **pipes) as process,
    ):
        try:
            _ = work and any(line.startswith("──") for line in process.stdout)  # until the first stage begins
            began = time.monotonic()
            if how:
                time.sleep(after)
                process.send_signal(how)
            process.communicate(timeout=PATIENCE if how else None)
        finally:
            process.kill()
        errors.seek(0)
        return Ended(process.returncode, time.monotonic() - began, errors.read())


def finished(workdir: pathlib.Path) -> dict[str, tuple[int, int]]:
    """The manifests that are there, each with what would change if it were written again."""
    found = {}
    for path in workdir.glob("*/**/manifest.json"):
        status = path.stat()
        found[str(path)] = (status.st_ino, status.st_mtime_ns)
    return found


def results(workdir: pathlib.Path) -> dict[str, bytes]:
    files = [workdir / "results.json", *workdir.glob("predictions*.jsonl")]
    return {file.name: file.read_bytes() for file in files}


def test_a_run_that_is_stopped_anywhere_goes_on_to_the_same_results(tmp_path: pathlib.Path) -> None:
    run(tmp_path / "compiling")
    whole = run(tmp_path / "whole")
    assert whole.code == 0, whole.errors
    chance, kills = random.Random(0), 0
    while kills < KILLS:
        workdir, done, code = tmp_path / f"killed-{kills}", {}, -1
        while code != 0:
            how, work = chance.choice(list(CODES)), chance.random() < 0.75
            # Not in the first 0.1 s, in which Python itself starts.
            after = chance.uniform(0, 0.6 * whole.seconds) if work else chance.uniform(0.1, 2)
            code, _, errors = run(workdir, how if kills < KILLS else None, after, work)
            before, done = done, finished(workdir)
            kills += code != 0
            moment = f"{how.name} after {after:.2f} s{' of work' * work}"
            print(f"{kills}: {moment}: code {code}, {len(done)} stages done")
            assert before.items() <= done.items(), f"{moment}: a finished stage was made again"
            assert code in {0, *CODES[how]}, f"{moment}: {code}: {errors}"
            assert "Traceback" not in errors, f"{moment}: {errors}"
        assert results(workdir) == results(tmp_path / "whole")
        shutil.rmtree(workdir)
