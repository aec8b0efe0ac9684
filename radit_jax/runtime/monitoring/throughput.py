"""How fast a training loop is, what its time went to, and a trace of some of its steps.

A line `NAME/speed` of the metrics is about the steps that ended in the second or more before it, `NAME/time`
about the whole call. Both say how a run went on its machine: another run of the same steps has others.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from radit_jax.runtime.distributed.accelerators import peak_flops
from radit_jax.runtime.monitoring.metrics import Metrics

Values = Mapping[str, float]

LINE_SECONDS = 1.0  # the least that a line of speed is about
NOT_STEPS = ("compile", "checkpoint", "validation", "profile")  # what the steps' own time leaves out

_compiled: list[str] = []


def _note_compilation(event: str, duration_secs: float, **kwargs: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compiled.append(event)


jax.monitoring.register_event_duration_secs_listener(_note_compilation)


class Watch:
    """Where a loop's seconds go, and what it does with the others.

    Of the steps' metrics it reads `tokens`, `answer_tokens` and `fill`; `flops` tells a step's operations by
    them. Counts are of all devices, and so is what they are divided by.
    """

    def __init__(self, name: str, metrics: Metrics, flops: Callable[[Values], float] | None, started: float):
        self._name, self._metrics, self._flops = name, metrics, flops
        self._started = started
        self._seconds: dict[str, float] = {"start_up": time.monotonic() - started, "data_wait": 0.0}
        self._start_over()

    def _start_over(self) -> None:
        self._since, self._before, self._steps = time.monotonic(), dict(self._seconds), []

    @contextlib.contextmanager
    def on(self, purpose: str) -> Iterator[None]:
        """Counts what happens inside to `purpose`."""
        start = time.monotonic()
        yield
        self._seconds[purpose] = self._seconds.get(purpose, 0.0) + time.monotonic() - start

    def dispatch(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """`step(*arguments)`; where something had to be compiled for it, that is what its time went to."""
        before, start = len(_compiled), time.monotonic()
        result = step(*arguments)
        if len(_compiled) > before:
            self._seconds["compile"] = self._seconds.get("compile", 0.0) + time.monotonic() - start
        return result

    def ended(self, number: int, values: Values) -> None:
        """Counts a step whose metrics have come; writes a line where one is due."""
        self._steps.append(values)
        if time.monotonic() - self._since >= LINE_SECONDS:
            self.write_speed(number)

    def write_speed(self, number: int) -> None:
        """A line about the steps since the last one, if there are any."""
        if not self._steps:
            return
        spent = {kind: self._seconds[kind] - self._before.get(kind, 0.0) for kind in self._seconds}
        seconds = time.monotonic() - self._since - sum(spent.get(kind, 0.0) for kind in NOT_STEPS)
        steps, device_seconds = len(self._steps), max(seconds, 1e-9) * jax.device_count()
        line = {"step_seconds": seconds / steps, "data_wait_seconds": spent["data_wait"] / steps}
        for name in ("tokens", "answer_tokens"):
            if name in self._steps[0]:
                total = sum(values[name] for values in self._steps)
                line[f"{name}_per_second_per_device"] = total / device_seconds
        if "fill" in self._steps[0]:
            line["fill"] = sum(values["fill"] for values in self._steps) / steps
        peak = peak_flops(jax.devices()[0].device_kind)
        if self._flops is not None and peak is not None:
            line["mfu"] = sum(map(self._flops, self._steps)) / device_seconds / peak
        self._metrics.write(number, f"{self._name}/speed", line | _memory())
        self._start_over()

    def write_time(self, number: int) -> None:
        """The last line: the seconds of the whole call and what they went to."""
        self.write_speed(number)
        whole = {"all": time.monotonic() - self._started, **self._seconds}
        self._metrics.write(
            number, f"{self._name}/time", {f"{name}_seconds": value for name, value in whole.items()}
        )
        self._metrics.flush()


def _memory() -> dict[str, float]:
    """The most that a device of this process has held at a time, where devices tell."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found]
    return {"hbm_peak_gigabytes": max(peaks) / 1e9} if peaks else {}


class Tracer:
    """An XProf trace of the updates `first` to `last`, counted from 1, in `folder`; None: of no update."""

    def __init__(self, updates: tuple[int, int] | None, folder: Path):
        self._first, self._last = updates or (0, -1)
        self._folder, self._running = folder, False

    def starts(self, update: int) -> bool:
        """Whether to `start` before this update. A run that is resumed in between starts there."""
        return not self._running and self._first <= update <= self._last

    def stops(self, update: int) -> bool:
        """Whether to `stop` after this update."""
        return self._running and update >= self._last

    def start(self) -> None:
        jax.profiler.start_trace(str(self._folder))
        self._running = True

    def stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
        self._running = False
