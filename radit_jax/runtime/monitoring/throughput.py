"""How fast a training loop is, where its time goes, and a trace of some of its steps.

A line `NAME/speed` of the metrics covers the steps that ended in the last second or more, `NAME/time` the
whole call. Both describe a run on its machine: another run of the same steps has other figures.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from radit_jax.runtime.distributed.accelerators import peak_flops
from radit_jax.runtime.monitoring.metrics import Metrics

Values = Mapping[str, float]  # a step's metrics

LINE_SECONDS = 1.0  # the shortest time that a line of speed covers
NOT_STEPS = ("compile", "checkpoint", "validation", "profile")  # not part of the steps' own time

_compilations: list[str] = []  # one entry for each compilation of this process


def _note_compilation(event: str, duration_secs: float, **kwargs: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compilations.append(event)


jax.monitoring.register_event_duration_secs_listener(_note_compilation)


class Watch:
    """Measures where a loop's seconds go, and writes lines of speed and time to its metrics.

    It reads `tokens`, `answer_tokens` and `fill` of the steps' metrics; `flops` gives a step's operations by
    its metrics. Counts are over all devices, and rates are divided by the number of devices. `started` is
    the start of the call by `time.monotonic`.
    """

    def __init__(
        self,
        name: str,
        metrics: Metrics,
        flops: Callable[[Values], float] | None,
        started: float,
    ):
        self._name = name
        self._metrics = metrics
        self._flops = flops
        self._started = started
        start_up = time.monotonic() - started
        self._seconds = {"start_up": start_up, "data_wait": 0.0}  # by purpose
        self._start_line()

    def _start_line(self) -> None:
        self._line_start = time.monotonic()
        self._seconds_before = dict(self._seconds)
        self._steps: list[Values] = []

    @contextlib.contextmanager
    def on(self, purpose: str) -> Iterator[None]:
        """Count the time inside to `purpose`."""
        start = time.monotonic()
        yield
        seconds = time.monotonic() - start
        self._add(purpose, seconds)

    def dispatch(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """`step(*arguments)`. If it had to be compiled, its time counts to `compile`."""
        num_compilations = len(_compilations)
        start = time.monotonic()
        result = step(*arguments)
        if len(_compilations) > num_compilations:
            self._add("compile", time.monotonic() - start)
        return result

    def _add(self, purpose: str, seconds: float) -> None:
        self._seconds[purpose] = self._seconds.get(purpose, 0.0) + seconds

    def ended(self, number: int, values: Values) -> None:
        """Count step `number`, whose metrics are known; write a line if one is due."""
        self._steps.append(values)
        if time.monotonic() - self._line_start >= LINE_SECONDS:
            self.write_speed(number)

    def write_speed(self, number: int) -> None:
        """Write a line about the steps since the last one, if there are any."""
        if not self._steps:
            return
        # 1) The steps' own time.
        spent = {}
        for purpose, total in self._seconds.items():
            spent[purpose] = total - self._seconds_before.get(purpose, 0.0)
        seconds = time.monotonic() - self._line_start
        seconds -= sum(spent.get(purpose, 0.0) for purpose in NOT_STEPS)
        num_steps = len(self._steps)
        device_seconds = max(seconds, 1e-9) * jax.device_count()
        line = {
            "step_seconds": seconds / num_steps,
            "data_wait_seconds": spent["data_wait"] / num_steps,
        }

        # 2) Rates a device, and the share of its peak.
        for name in ("tokens", "answer_tokens"):
            if name in self._steps[0]:
                rate = self._total(name) / device_seconds
                line[f"{name}_per_second_per_device"] = rate
        if "fill" in self._steps[0]:
            line["fill"] = self._total("fill") / num_steps
        peak = peak_flops(jax.devices()[0].device_kind)
        if self._flops is not None and peak is not None:
            operations = sum(map(self._flops, self._steps))
            line["mfu"] = operations / device_seconds / peak
        line |= _peak_memory()
        self._metrics.write(number, f"{self._name}/speed", line)
        self._start_line()

    def _total(self, name: str) -> float:
        return sum(values[name] for values in self._steps)

    def write_time(self, number: int) -> None:
        """Write the last line: the seconds of the whole call, and of each purpose."""
        self.write_speed(number)
        # What no purpose was named for is the steps' own time.
        seconds = {"all": time.monotonic() - self._started, **self._seconds}
        line = {f"{purpose}_seconds": value for purpose, value in seconds.items()}
        self._metrics.write(number, f"{self._name}/time", line)
        self._metrics.flush()


def _peak_memory() -> dict[str, float]:
    """The most memory that a device of this process has held, if devices tell."""
    # CPUs tell nothing.
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
    if not peaks:
        return {}
    return {"hbm_peak_gigabytes": max(peaks) / 1e9}


class Tracer:
    """Writes an XProf trace of the updates `first` to `last`, from 1, to `folder`; None: of no update."""

    def __init__(self, updates: tuple[int, int] | None, folder: Path):
        self._first, self._last = updates or (0, -1)
        self._folder = folder
        self._is_running = False

    def starts(self, update: int) -> bool:
        """Whether to `start` before this update. A run that is resumed inside the range starts there."""
        return not self._is_running and self._first <= update <= self._last

    def stops(self, update: int) -> bool:
        """Whether to `stop` after this update."""
        return self._is_running and update >= self._last

    def start(self) -> None:
        """Begin the trace."""
        jax.profiler.start_trace(str(self._folder))
        self._is_running = True

    def stop(self) -> None:
        """End the trace, if one is running."""
        if self._is_running:
            jax.profiler.stop_trace()
        self._is_running = False
