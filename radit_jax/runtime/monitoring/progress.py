"""What a person sees of a long loop: a progress bar on stderr, and metrics on disk."""

import importlib
import importlib.util
import io
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, TypeVar

# protobuf makes its classes when they are imported, unseen by a type checker.
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

from radit_jax.runtime.distributed import processes
from radit_jax.runtime.errors import naming
from radit_jax.runtime.storage.files import write_whole
from radit_jax.runtime.storage.manifests import parse_jsonl
from radit_jax.text.printable import printable

Item = TypeVar("Item")

_BAR_WIDTH = 24  # characters
_REDRAW_SECONDS = 0.1  # on a terminal
_LINE_SECONDS = 10.0  # elsewhere, where every report is a line that stays
_LARGEST = 2**63 - 1  # a step that TensorBoard can have
_REMEDY = "Delete the file: training goes on, without the numbers of earlier steps."
_FLUSH_SECONDS = 1.0  # how old what TensorBoard shows may be


class Progress:
    """How far a loop is, its rate and the time left, on a terminal one line that is redrawn.

    Elsewhere plain lines: the last one always, before it at most one each ten seconds. Of several processes
    the first shows it, and all advance it alike.

    A loop that advances it ends there, by Stopped, where the program was asked to stop; with `stops=False`
    the loop looks at that by itself.
    """

    def __init__(self, total: int, name: str, unit: str, done: int = 0, stops: bool = True):
        self.total, self.name, self.unit, self.done = total, name, unit, done
        self._stops = stops
        self._stream, self._terminal = sys.stderr, sys.stderr.isatty()
        self._hidden = not processes.is_process_zero()
        self._first, self._drawn = done, -1
        self._started = time.monotonic()
        self._shown = self._started if not self._terminal else 0.0
        self._facts: Mapping[str, float] = {}

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._hidden:
            return
        if self._terminal or self._drawn != self.done:
            self._show()
        if self._terminal:
            self._stream.write("\n")
            self._stream.flush()

    def advance(self, count: int = 1, **facts: float) -> None:
        """Counts `count` more units as done; `facts` are numbers to show beside the bar."""
        self.done += count
        self._facts = facts or self._facts
        wait = _REDRAW_SECONDS if self._terminal else _LINE_SECONDS
        if not self._hidden and time.monotonic() - self._shown >= wait:
            self._show()
        if self._stops:
            processes.barrier(self.name)

    def _show(self) -> None:
        self._shown, self._drawn = time.monotonic(), self.done
        line = self._line(self._shown - self._started)
        self._stream.write(f"\r{line}\x1b[K" if self._terminal else f"{line}\n")
        self._stream.flush()

    def _line(self, seconds: float) -> str:
        """For example `lm_ft  [######------]  200/400 steps  12.3 steps/s  0:16 left  loss 1.204`."""
        rate = (self.done - self._first) / max(seconds, 1e-9)
        parts = [
            printable(self.name),
            f"{self.done:,}/{self.total:,} {self.unit}",
            f"{rate:.3g} {self.unit}/s",
        ]
        if self._terminal:
            full = _BAR_WIDTH * self.done // max(self.total, 1)
            parts.insert(1, f"[{'#' * full}{'-' * (_BAR_WIDTH - full)}]")
        if self.done >= self.total:
            parts.append(f"in {_clock(seconds)}")
        elif rate > 0:
            parts.append(f"{_clock((self.total - self.done) / rate)} left")
        return "  ".join(parts + [f"{name} {value:.4g}" for name, value in self._facts.items()])


def progress(items: Iterable[Item], name: str, unit: str, total: int | None = None) -> Iterator[Item]:
    """Yields `items` while showing how many are done; `total` where `items` has no length."""
    if total is None:
        total = len(items) if isinstance(items, Sized) else 0
    with Progress(total, name, unit) as bar:
        for item in items:
            yield item
            bar.advance()


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> _clock(75.2), _clock(3700.0)
    ('1:15', '1:01:40')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


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
