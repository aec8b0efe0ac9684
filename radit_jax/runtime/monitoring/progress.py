"""What a person sees of a long loop: a progress bar, or lines, on stderr."""

import contextlib
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Protocol, TypeVar, runtime_checkable

from radit_jax.runtime.distributed import processes
from radit_jax.runtime.monitoring.time_left import TimeLeft, in_words
from radit_jax.text.printable import printable

Item = TypeVar("Item")

_BAR_WIDTH = 24  # characters
_KNOWN_SHARE = 0.1  # of a loop, after which even its first units tell its time
_REDRAW_SECONDS = 0.1  # on a terminal
LINE_SECONDS = 10.0  # elsewhere, where every report is a line that stays


@runtime_checkable
class Display(Protocol):
    """What shows a run's progress in place of a bar or lines for each loop."""

    def begin_stage(self, name: str) -> None:
        """A stage begins."""
        ...

    def show_loop(self, loop: "Progress") -> None:
        """A loop of that stage has advanced, or ends."""
        ...

    def show_note(self, text: str) -> None:
        """Something is going on that no loop shows."""
        ...

    def end_stages(self) -> None:
        """All stages are done; results follow."""
        ...


_display: Display | None = None


@contextlib.contextmanager
def show_on(display: Display) -> Iterator[None]:
    """Let `display` show the progress of all loops inside."""
    global _display
    _display = display
    try:
        yield
    finally:
        _display = None


class StageClock:
    """What the loops of the present stage took, and where the stage stands in the whole run."""

    def __init__(self, place: str = "", time_left: TimeLeft | None = None):
        self.depth = 0  # of loops that run inside each other
        self._seconds: dict[str, float] = {}  # by loop; what is between two counts to the later one
        self._place = place
        self._time_left = time_left
        self._last_end = time.monotonic()

    def advance(self, loop: "Progress") -> None:
        """A loop was shown; one inside another is a part of it."""
        if self._time_left is not None and self.depth == 1:
            fraction = loop.done / max(loop.total, 1)
            self._time_left.advance(loop.name, fraction, loop.seconds_left())

    def end_loop(self, name: str) -> None:
        """A loop has ended."""
        self.depth -= 1
        if self.depth == 0:
            self._count(name)

    def end_stage(self, name: str) -> dict[str, float]:
        """The seconds of the stage's loops; what follows the last one counts to it."""
        last_loop = next(reversed(self._seconds), name)
        self._count(last_loop)
        return {loop: round(seconds, 1) for loop, seconds in self._seconds.items()}

    def _count(self, name: str) -> None:
        now = time.monotonic()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last_end
        self._last_end = now

    def place(self) -> str:
        """For example `8/12 (about 9 min left)`, or `8/12` where nobody knows; empty outside of a run."""
        seconds = self._time_left.left() if self._time_left else None
        if seconds is None:
            return self._place
        return f"{self._place} ({in_words(seconds)})"


_clock_of_stage = StageClock()


def begin_stage(name: str, place: str = "", time_left: TimeLeft | None = None) -> StageClock:
    """The clock of a stage that the next loops belong to; `place` as in 3/12."""
    global _clock_of_stage
    if time_left is not None:
        time_left.begin(name)
    _clock_of_stage = StageClock(place, time_left)
    # The display, where there is one, has its own way to show it.
    if _display is not None:
        _display.begin_stage(name)
    return _clock_of_stage


def end_stages() -> None:
    """Tell the display, where there is one, that no loop follows."""
    global _clock_of_stage
    _clock_of_stage = StageClock()
    if _display is not None:
        _display.end_stages()


def show_note(text: str) -> None:
    """Show a line among those of loops, where nothing else would be seen for a while."""
    if not processes.is_process_zero():
        return
    if _display is not None:
        _display.show_note(text)
        return
    # On a terminal it takes the line of a bar, which is drawn again below it.
    line = f"{text}\n"
    if sys.stderr.isatty():
        line = f"\r{text}\x1b[K\n"
    sys.stderr.write(line)
    sys.stderr.flush()


class Progress:
    """The progress of a loop, its rate and the time left; on a terminal, one line that is redrawn.

    Elsewhere these are plain lines: always the last one, and before it at most one every ten seconds. All
    processes advance it alike, and process 0 shows it.

    Where the program was asked to stop, `advance` raises Stopped; with `stops=False` the loop checks for a
    stop by itself. `done` units were done by an earlier run.
    """

    def __init__(
        self,
        total: int,
        name: str,
        unit: str,
        done: int = 0,
        stops: bool = True,
    ):
        self.total = total
        self.name = name
        self.unit = unit
        self.done = done
        self._stops = stops
        self._stage_clock = _clock_of_stage
        self._is_hidden = not processes.is_process_zero()
        self._stream = sys.stderr
        self._is_terminal = sys.stderr.isatty()
        self._done_before = done
        self._done_shown = -1
        self._start_time = time.monotonic()
        self._first_time: float | None = None  # when the first units were done
        self._done_first = 0  # how many there were by then
        # A bar shows the first step at once; elsewhere the first line comes after ten seconds.
        self._is_redrawn = self._is_terminal or _display is not None
        self._shown_time = 0.0 if self._is_redrawn else self._start_time
        self.facts: Mapping[str, float] = {}  # the loop's own numbers, such as its loss

    def __enter__(self) -> "Progress":
        self._stage_clock.depth += 1
        return self

    def __exit__(self, *exception: object) -> None:
        self._stage_clock.advance(self)
        self._stage_clock.end_loop(self.name)
        if self._is_hidden:
            return
        if _display is not None:
            _display.show_loop(self)
            return
        if self._is_terminal or self._done_shown != self.done:
            self._show()
        if self._is_terminal:
            self._stream.write("\n")
            self._stream.flush()

    def advance(self, count: int = 1, **facts: float) -> None:
        """Count `count` more units as done; `facts` are numbers to show after the bar."""
        self.done += count
        self.facts = facts or self.facts
        if self._first_time is None:
            self._first_time, self._done_first = time.monotonic(), self.done
        wait = _REDRAW_SECONDS if self._is_redrawn else LINE_SECONDS
        is_due = time.monotonic() - self._shown_time >= wait
        if is_due and not self._is_hidden:
            self._show()
        # Where processes meet, each learns that one was asked to stop.
        if self._stops:
            processes.barrier(self.name)

    def line(self) -> str:
        """How far the loop is now, as it is shown."""
        return self._line(time.monotonic() - self._start_time)

    def seconds_left(self) -> float | None:
        """By the rate since the first units, for which programs compile; None where nothing is known yet."""
        if self._first_time is None:
            return None
        start, done_before = self._first_time, self._done_first
        # A few units alone may have waited for a compilation; many have hidden it.
        if self.done == self._done_first:
            start, done_before = self._start_time, self._done_before
            if self.done - done_before < _KNOWN_SHARE * self.total:
                return None
        seconds = time.monotonic() - start
        return (self.total - self.done) * seconds / (self.done - done_before)

    def _show(self) -> None:
        self._shown_time = time.monotonic()
        self._done_shown = self.done
        self._stage_clock.advance(self)
        if _display is not None:
            _display.show_loop(self)
            return
        line = self._line(self._shown_time - self._start_time)
        if self._is_terminal:
            # The escape sequence clears the rest of a longer line.
            self._stream.write(f"\r{line}\x1b[K")
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()

    def _line(self, seconds: float) -> str:
        """For example `lm_ft  [######------]  200/400 steps  12.3 steps/s  0:16 left  loss 1.204`."""
        parts = [printable(self.name)]
        # 1) The bar.
        if self._is_terminal:
            filled = _BAR_WIDTH * self.done // max(self.total, 1)
            bar = "#" * filled + "-" * (_BAR_WIDTH - filled)
            parts.append(f"[{bar}]")
        # 2) How much is done, and how fast this run does it.
        num_done_here = self.done - self._done_before
        rate = num_done_here / max(seconds, 1e-9)
        parts.append(f"{self.done:,}/{self.total:,} {self.unit}")
        parts.append(f"{rate:.3g} {self.unit}/s")
        # 3) The time, and the loop's own numbers.
        if self.done >= self.total:
            parts.append(f"in {_clock(seconds)}")
        elif (seconds_left := self.seconds_left()) is not None:
            parts.append(f"{_clock(seconds_left)} left")
        for name, value in self.facts.items():
            parts.append(f"{name} {value:.4g}")
        # 4) The whole run, where a terminal has room for it: a line that wraps cannot be redrawn.
        place = self._stage_clock.place()
        width = sum(map(len, parts)) + 2 * len(parts) + len(place)
        has_room = not self._is_terminal or width < shutil.get_terminal_size().columns
        if place and has_room:
            parts.append(place)
        return "  ".join(parts)


def progress(
    items: Iterable[Item],
    name: str,
    unit: str,
    total: int | None = None,
) -> Iterator[Item]:
    """Yield `items` and show how many are done; give `total` where `items` has no length."""
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
    all_minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(all_minutes, 60)
    if hours:
        return f"{hours}:{minute:02d}:{second:02d}"
    return f"{minute}:{second:02d}"
