"""A run's metrics by step, as JSON lines, as TensorBoard's events, and in trackers."""

import io
import json
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

# protobuf makes its classes at import, where a type checker does not see them.
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import (
    Summary,  # pyright: ignore[reportAttributeAccessIssue]
    SummaryMetadata,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboard.compat.proto.tensor_pb2 import TensorProto  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

from radit_jax.config.overrides import as_text
from radit_jax.errors import naming
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.monitoring.trackers import Trackers, stage_context
from radit_jax.runtime.storage.files import write_whole
from radit_jax.runtime.storage.manifests import parse_jsonl

Line = dict[str, Any]  # step, name, time, and numbers

_MAX_STEP = 2**63 - 1  # TensorBoard's
_NOT_NUMBERS = ("step", "name", "time")
_REMEDY = "Delete the file: training goes on, without the numbers of earlier steps."
_TEXT = 7  # DT_STRING of TensorBoard's types
_FLUSH_SECONDS = 1.0  # how old what TensorBoard shows may be


class Metrics:
    """A run's metrics by step: JSON lines at `path`, and the same for TensorBoard in the folder next to it.

    A line is `{"step": 8, "name": "lm_ft", "time": 1733000000.1, "loss": 1.25}`; `time` is in seconds since
    1970. Lines reach the disk about every second, and at each `flush`, and then trackers (`trackers.py`),
    where lines that a resumed run writes again stand twice. Process 0 writes; the other processes call the
    same methods without effect.
    """

    def __init__(self, path: epath.PathLike):
        self.path = pathlib.Path(path)
        folder = self.path.parent / "tensorboard"
        self.tensorboard = folder / f"events.out.tfevents.0.{self.path.stem}"
        # Process 0 alone has the files open.
        self._is_silent = not processes.is_process_zero()
        self._pending: list[Line] = []
        self._flush_time = time.monotonic()
        processes.on_process_zero(f"{self.path.name}", self._open)

    def _open(self) -> None:
        self.tensorboard.parent.mkdir(parents=True, exist_ok=True)
        self._trackers = Trackers(self.path.parent)
        self._rewrite(self._read())

    def write(self, step: int, name: str, values: Mapping[str, Any]) -> None:
        """Add a line. Numbers are not rounded."""
        # Before the check, so that every process waits for a step's values.
        numbers = {key: float(value) for key, value in values.items()}
        if self._is_silent:
            return
        now = round(time.time(), 3)
        self._pending.append({"step": step, "name": name, "time": now, **numbers})
        # Not at each line: a write to a network's disk may be slow.
        if time.monotonic() - self._flush_time >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Give all lines to the system, so that they survive a kill of this process."""
        if self._is_silent:
            return
        # The JSON lines first: they are the true ones.
        with naming(self.path), self.path.open("a") as file:
            file.write(_json_lines(self._pending))
        events = b"".join(map(_event, self._pending))
        with naming(self.tensorboard), self.tensorboard.open("ab") as file:
            file.write(events)
        sent = [(line["step"], line["time"], _scalars(line)) for line in self._pending]
        self._trackers.log(sent)
        self._pending = []
        self._flush_time = time.monotonic()

    def drop_after(self, step: int, name: str) -> None:
        """Remove the lines of `name` and `name/...` after `step`, which a resumed run writes again."""
        if self._is_silent:
            return
        # What waits in memory has to be on disk to be read.
        self.flush()
        lines = []
        for line in self._read():
            line_name = line["name"]
            belongs = line_name == name or line_name.startswith(f"{name}/")
            if line["step"] <= step or not belongs:
                lines.append(line)
        self._rewrite(lines)

    def _read(self) -> list[Line]:
        """The lines on disk, without one that a kill cut short; ValueError for what `write` never wrote."""
        data = self.path.read_bytes() if self.path.exists() else b""
        whole_lines = data[: data.rfind(b"\n") + 1]
        lines = parse_jsonl(whole_lines, str(self.path), _NOT_NUMBERS, _REMEDY)
        # A person may have edited the file.
        for number, line in enumerate(lines, 1):
            if not _is_line(line):
                raise ValueError(
                    f"{self.path} line {number}: expected a step, a name and numbers, got {str(line)[:60]}. "
                    f"{_REMEDY}"
                )
        return lines

    def _rewrite(self, lines: list[Line]) -> None:
        """Make both files hold `lines`; a kill leaves the JSON lines as before or as after."""
        write_whole(self.path, _json_lines(lines))
        events = [_first_event(), *_settings_events(), *map(_event, lines)]
        self.tensorboard.write_bytes(b"".join(events))


def _is_line(line: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a line of `Metrics.write`."""
    numbers = dict(line)
    name = numbers.pop("name")
    is_named = isinstance(name, str) and type(line["step"]) is int
    return is_named and all(_is_number(value) for value in numbers.values())


def _is_number(value: Any) -> bool:
    # `type`, because a bool is an instance of int.
    if type(value) is int:
        return abs(value) <= _MAX_STEP
    return type(value) is float


def _json_lines(lines: Iterable[Line]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def _scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """A line's numbers, named `name/key`."""
    name = line["name"]
    scalars = {}
    for key, value in line.items():
        if key not in _NOT_NUMBERS:
            scalars[f"{name}/{key}"] = float(value)
    return scalars


# ---- TensorBoard's event files ----


def _first_event() -> bytes:
    """The record that an event file starts with."""
    return _record(Event(wall_time=0.0, file_version="brain.Event:2"))


def _settings_events() -> list[bytes]:
    """The experiment's settings as TensorBoard's text, a table of Markdown; none where nobody said them."""
    settings = stage_context().settings
    if not settings:
        return []
    rows = ["| setting | value |", "|---|---|"]
    for path, value in settings.items():
        rows.append(f"| {path} | {as_text(value)} |")
    text = TensorProto(dtype=_TEXT)
    text.string_val.append("\n".join(rows).encode())
    plugin = SummaryMetadata.PluginData(plugin_name="text")
    value = Summary.Value(tag="settings", metadata=SummaryMetadata(plugin_data=plugin), tensor=text)
    return [_record(Event(wall_time=0.0, summary=Summary(value=[value])))]


def _event(line: Mapping[str, Any]) -> bytes:
    """A line of metrics as a record of scalars `name/key`."""
    values = []
    for tag, value in _scalars(line).items():
        values.append(Summary.Value(tag=tag, simple_value=value))
    summary = Summary(value=values)
    return _record(Event(wall_time=line["time"], step=line["step"], summary=summary))


def _record(event: Event) -> bytes:
    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()
