"""What a person sees of a long loop: a progress bar on stderr, and metrics on disk."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import TypeVar

# protobuf makes its classes when they are imported, unseen by a type checker.
from radit_jax.runtime.distributed import processes
from radit_jax.text.printable import printable

Item = TypeVar("Item")

_BAR_WIDTH = 24  # characters
_REDRAW_SECONDS = 0.1  # on a terminal
_LINE_SECONDS = 10.0  # elsewhere, where every report is a line that stays


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
