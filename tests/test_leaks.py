"""Memory and open files over hundreds of steps and over an evaluation (slow).

Memory is the resident memory that the process itself has. Pages of mapped files are not: they come and go
with what else the machine runs, by more than a leak of the bound. And glibc gives all threads one heap. By
default it has several, and each of Orbax's threads leaves holes of less than a page in another, so that
resident memory grows by 4 % over the first hundreds of steps while what is in use (mallinfo2) does not grow.
"""

import json
import subprocess
import sys

import pytest
import test_train
from test_kills import ROOT, environment

pytestmark = pytest.mark.slow

SETTINGS = [
    *(s for s in test_train.SMALL if not s.startswith(("data.dev", "data.test", "lm_ft.", "r_ft."))),
    "data.dev_entities=40",
    "data.test_entities=200",
    "lm_ft.optimizer.steps=400",
    "lm_ft.batch_size=8",
    "lm_ft.validate_every=40",
    "lm_ft.checkpoint_every=20",
    "r_ft.optimizer.steps=400",
    "r_ft.batch_size=16",
    "r_ft.refresh_every=50",
    "r_ft.validate_every=50",
    "r_ft.checkpoint_every=50",
    "evaluate.prompts_per_batch=40",
]
# Runs the command, and writes down what the process holds at every step and every advance of a bar.
WATCHED = """
import ctypes, json, os, sys
from radit_jax import train
from radit_jax.runtime.monitoring.progress import Progress

seen, advance = [], Progress.advance

def watched(bar, *count, **facts):
    advance(bar, *count, **facts)
    ctypes.CDLL(None).malloc_trim(0)  # what was freed and kept is no leak
    resident, mapped = map(int, open("/proc/self/statm").read().split()[1:3])
    held = (resident - mapped) * os.sysconf("SC_PAGE_SIZE")
    seen.append((bar.name, bar.done, held, len(os.listdir("/proc/self/fd"))))

Progress.advance = watched
code = train.main(sys.argv[2:])
open(sys.argv[1], "w").write(json.dumps(seen))
sys.exit(code)
"""
GROWTH = 0.02


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, int, int, int]]:
    """(bar, units done, bytes held, open descriptors), in their order."""
    folder = tmp_path_factory.mktemp("leaks")
    options = ["--stage=evaluate", f"--workdir={folder / 'run'}", *(f"--set={s}" for s in SETTINGS)]
    command = [sys.executable, "-c", WATCHED, str(folder / "seen.json"), *options]
    settings = environment(folder) | {"MALLOC_ARENA_MAX": "1"}
    subprocess.run(command, cwd=ROOT, env=settings, check=True, capture_output=True)
    return json.loads((folder / "seen.json").read_text())


def check_held(name: str, early: tuple[int, int], late: tuple[int, int]) -> None:
    """(bytes held, open descriptors) early and late."""
    (memory, files), (memory_then, files_then) = late, early
    print(f"{name}: {memory_then / 2**20:.1f} to {memory / 2**20:.1f} MiB, {files_then} to {files} files")
    assert memory <= memory_then * (1 + GROWTH)
    assert files <= files_then


@pytest.mark.parametrize("stage", ["lm_ft", "r_ft"])
def test_training_holds_no_more_at_step_400_than_at_step_100(seen: list, stage: str) -> None:
    """The least of ten steps: what is being saved meanwhile goes again."""
    held = {done: (memory, files) for name, done, memory, files in seen if name == stage}
    early, late = (min(held[step - ten] for ten in range(10)) for step in (100, 400))
    check_held(stage, early, late)


def test_an_evaluation_holds_no_more_at_its_end_than_after_a_quarter(seen: list) -> None:
    for system in ("base", "lm_ft", "radit"):
        held = [(memory, files) for name, _, memory, files in seen if name == f"evaluate {system}"]
        check_held(f"evaluate {system}", held[len(held) // 4], held[-1])
