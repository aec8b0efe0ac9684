"""A run's numbers by step: JSON lines, TensorBoard's events, Weights & Biases."""

import importlib
import importlib.util
import io
import json
import os
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

# protobuf makes its classes when they are imported, unseen by a type checker.
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

from radit_jax.errors import naming
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage.files import write_whole
from radit_jax.runtime.storage.manifests import parse_jsonl

_LARGEST = 2**63 - 1  # a step that TensorBoard can have
_REMEDY = "Delete the file: training goes on, without the numbers of earlier steps."
_FLUSH_SECONDS = 1.0  # how old what TensorBoard shows may be


class Metrics:
    """A run's numbers by step: JSON lines at `path`, mirrored for TensorBoard in the folder beside it.

    A line is `{"step": 8, "name": "lm_ft", "time": 1733000000.1, "loss": 1.25}`; `time` is in seconds
    since 1970. Lines reach the disk about each second, and whenever `flush` is called. Where the environment
    names a project of Weights & Biases, WANDB_PROJECT, lines are sent there too; those that a resumed run
    writes again stand there twice. Of several processes the first writes.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        self._silent = not processes.is_process_zero()
        self.tensorboard = self.path.parent / "tensorboard" / f"events.out.tfevents.0.{self.path.stem}"
        self._waiting: list[dict[str, Any]] = []
        self._flushed = time.monotonic()
        processes.on_process_zero(f"{self.path.name}", self._open)

    def _open(self) -> None:
        self.tensorboard.parent.mkdir(parents=True, exist_ok=True)
        self._wandb = _wandb_run(self.path.parent)
        self._start_over(self._written())

    def write(self, step: int, name: str, values: Mapping[str, Any]) -> None:
        """Adds one line; the numbers are kept as they are, without rounding."""
        numbers = {key: float(value) for key, value in values.items()}
        if self._silent:
            return
        self._waiting.append({"step": step, "name": name, "time": round(time.time(), 3), **numbers})
        if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Hands what was written to the system, which a kill of this process cannot undo."""
        if self._silent:
            return
        with naming(self.path), self.path.open("a") as file:
            file.write(_json_lines(self._waiting))
        with naming(self.tensorboard), self.tensorboard.open("ab") as file:
            file.write(b"".join(_event(line) for line in self._waiting))
        for line in self._waiting if self._wandb else ():
            self._wandb.log({"step": line["step"], **_scalars(line)})
        self._waiting, self._flushed = [], time.monotonic()

    def drop_after(self, step: int, name: str) -> None:
        """Forgets the lines of `name` and `name/...` beyond `step`: a resumed run writes those again."""
        if self._silent:
            return
        self.flush()
        kept = (line for line in self._written() if line["step"] <= step or not _belongs(line["name"], name))
        self._start_over(list(kept))

    def _written(self) -> list[dict[str, Any]]:
        """The lines on disk, without one that a kill cut short; ValueError for what `write` never wrote."""
        data = self.path.read_bytes() if self.path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        lines = parse_jsonl(whole, str(self.path), ("step", "name", "time"), _REMEDY)
        for number, line in enumerate(lines, 1):
            if not _is_line(line):
                raise ValueError(
                    f"{self.path} line {number}: expected a step, a name and numbers, got {str(line)[:60]}. "
                    f"{_REMEDY}"
                )
        return lines

    def _start_over(self, lines: list[dict[str, Any]]) -> None:
        """Makes both files hold `lines`; a kill meanwhile leaves the JSON lines old or new, never less."""
        write_whole(self.path, _json_lines(lines))
        self.tensorboard.write_bytes(_first_event() + b"".join(_event(line) for line in lines))


def _is_line(line: Mapping[str, Any]) -> bool:
    """Whether JSON is a line as `Metrics.write` makes them."""
    whole = type(line["step"]) is int and isinstance(line["name"], str)
    return whole and all(_is_number(value) for key, value in line.items() if key != "name")


def _is_number(value: Any) -> bool:
    return type(value) is float or type(value) is int and abs(value) <= _LARGEST


def _belongs(line_name: str, name: str) -> bool:
    return line_name == name or line_name.startswith(f"{name}/")


def _json_lines(lines: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def _scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """A line's numbers as `name/key`."""
    return {f"{line['name']}/{key}": float(line[key]) for key in line if key not in ("step", "name", "time")}


# ---- Weights & Biases ----


def check_wandb() -> None:
    """Refuse to go on where it is asked for and not installed."""
    project = os.environ.get("WANDB_PROJECT")
    if project and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"WANDB_PROJECT: {project} came, needed is the package wandb; pip install wandb, or unset it"
        )


def _wandb_run(folder: pathlib.Path) -> Any:
    """The run that a stage's folder has in the project; None where none is asked for."""
    if not os.environ.get("WANDB_PROJECT"):
        return None
    check_wandb()
    wandb: Any = importlib.import_module("wandb")
    stage = f"{folder.parent.name}-{folder.name}"
    run = wandb.init(id=stage, name=stage, dir=folder, resume="allow", reinit="finish_previous")
    run.define_metric("*", step_metric="step")
    return run


# ---- TensorBoard's event files ----


def _first_event() -> bytes:
    return _record(Event(wall_time=0.0, file_version="brain.Event:2"))


def _event(line: Mapping[str, Any]) -> bytes:
    """A line of metrics as a record of scalars `name/key`."""
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in _scalars(line).items()]
    return _record(Event(wall_time=line["time"], step=line["step"], summary=Summary(value=values)))


def _record(event: Event) -> bytes:
    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()
