"""The runs of a workdir: `runs.jsonl` has a line for each, with its settings, its command and its machine."""

import contextlib
import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from radit_jax.config import Experiment
from radit_jax.config.descriptions import settings_by_path
from radit_jax.errors import Stopped
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage import locks
from radit_jax.runtime.storage.entries import bytes_or_none, move_aside
from radit_jax.runtime.storage.files import write_whole
from radit_jax.runtime.storage.fingerprints import commit_of_source, package_versions
from radit_jax.runtime.storage.manifests import parse_jsonl

RUNS = "runs.jsonl"
_FIELDS = ("experiment", "settings", "started", "ended", "outcome")
_MAX_OUTCOME = 300  # characters of an error


@contextlib.contextmanager
def recorded(
    experiment: Experiment, workdir: epath.Path, stages: Sequence[str]
) -> Iterator[list[dict[str, Any]]]:
    """Record a run while the body makes `stages`: first that it runs, at the end how it ended.

    Yields the records of the workdir's runs, this one last; the body may put more into it. Process 0 writes,
    while the workdir's lock is held, and the others have this run's record alone. jax has its devices by now.
    """
    file = workdir / RUNS
    lines: list[dict[str, Any]] = []
    record = _record(experiment, stages)

    def begin() -> None:
        lines.extend(_earlier(file))
        lines.append(record)
        _write(file, lines)

    # 1) The file holds the run from its first second, so that a killed one is there too.
    processes.on_process_zero(stages[0], begin)  # who stops here stops at that stage
    # 2) However it ends. Where it ends badly the processes do not meet any more.
    try:
        yield lines or [record]
    except BaseException as error:
        record["outcome"] = _outcome(error)
        raise
    else:
        record["outcome"] = "done"
    finally:
        record["ended"] = _now()
        if lines:
            _write_end(file, lines)


def read_runs(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The records of a workdir's runs, the latest last; none where no run has left one.

    `settings` are by path, as `radit config` names them; `ended` is None of a run that was killed, or
    that still runs. Raises ValueError for a file that no run wrote.
    """
    file = epath.Path(workdir) / RUNS
    data = bytes_or_none(file) or b""
    return parse_jsonl(data, str(file), _FIELDS, "Delete the file: the next run begins another.")


def _earlier(file: epath.Path) -> list[dict[str, Any]]:
    """The lines of earlier runs; a file that is not ours moves aside."""
    try:
        lines = read_runs(file.parent)
    except ValueError:
        move_aside(file)
        return []
    # This run holds the lock, so another one that has not ended never will.
    for line in lines:
        if line["ended"] is None and line["outcome"] == "running":
            line["outcome"] = "killed"
    return lines


def _record(experiment: Experiment, stages: Sequence[str]) -> dict[str, Any]:
    """What is known of a run when it starts."""
    program = os.path.basename(sys.argv[0])
    return {
        "experiment": experiment.name,
        "command": shlex.join([program, *sys.argv[1:]]),
        "folder": os.getcwd(),
        "stages": list(stages),
        "started": _now(),
        "ended": None,
        "outcome": "running",
        "commit": commit_of_source(),
        "versions": {"python": platform.python_version(), **package_versions()},
        "hardware": _hardware(),
        "seconds": {},  # of the stages that it made from their start: what each of their loops took
        "settings": settings_by_path(experiment),
    }


def _hardware() -> dict[str, Any]:
    """This machine, and the devices of all processes."""
    import jax  # which a dry run does without

    devices = jax.devices()
    _, num_processes = processes.process_index_and_count()
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "device": devices[0].device_kind,
        "devices": len(devices),
        "processes": num_processes,
    }


def _outcome(error: BaseException) -> str:
    """How a run ended that raised `error`, in a line."""
    if isinstance(error, Stopped | KeyboardInterrupt):
        return f"stopped {error}".strip()
    first_line = f"{type(error).__name__}: {error}".partition("\n")[0]
    return f"failed: {first_line[:_MAX_OUTCOME]}"


def _now() -> str:
    """The time in UTC, such as 2026-11-30T14:02:09+00:00."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _write(file: epath.Path, lines: Sequence[dict[str, Any]]) -> None:
    locks.check_held(file.parent)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_whole(file, text)


def _write_end(file: epath.Path, lines: Sequence[dict[str, Any]]) -> None:
    """Write how a run ended; what ended it is the error to report, not that this failed too."""
    try:
        _write(file, lines)
    except (OSError, ValueError) as error:
        print(f"warning: {file}: expected to be written, got {error}.", file=sys.stderr)
