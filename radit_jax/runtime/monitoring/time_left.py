"""How long a run still takes: what its stages took before, at the speed of this run so far."""

import math
import time
from collections.abc import Mapping

LoopSeconds = Mapping[str, int | float]  # what each loop of a stage took, in the order of the stage

_TRUSTED_SHARE = 0.1  # of the whole run: after so much work this run's own speed counts for half


class TimeLeft:
    """The position of a run in work that has been measured before.

    `seconds` has each stage that the run makes, in its order, with what its loops took; None of a stage that
    was never measured. Work is counted in these seconds, so a slower machine is only a lower speed.
    """

    def __init__(self, seconds: Mapping[str, LoopSeconds | None]):
        self._seconds = dict(seconds)
        self._before = 0.0  # recorded seconds of the stages before the present one
        self._position = 0.0  # recorded seconds, in the present stage
        # What this run has done by itself: an earlier one may have made the first stages.
        self._work = 0.0  # recorded seconds of the stages that it finished
        self._taken = 0.0  # what the same stages took
        self._stage = ""
        self._stage_start = 0.0
        self._position_time = 0.0  # when it was reached
        self._loop_rest = 0.0  # recorded seconds that the present loop still has
        self._loop_left: float | None = None  # what the loop itself says of them

    @property
    def total(self) -> float:
        """Recorded seconds of all stages that were measured."""
        return sum(map(self._measured, self._seconds))

    @property
    def done(self) -> float:
        """Recorded seconds of what is done."""
        return self._before + self._position

    def _measured(self, stage: str) -> float:
        loops = self._seconds.get(stage)
        return sum(loops.values(), 0.0) if loops else 0.0

    def begin(self, stage: str) -> None:
        """Count the stages before as done."""
        now = time.monotonic()
        # 1) The stage that ends tells how fast this run is.
        measured = self._measured(self._stage)
        if measured:
            self._work += measured
            self._taken += now - self._stage_start
        # 2) A stage that nobody planned comes after it.
        self._before += measured
        if stage in self._seconds:
            names = list(self._seconds)
            self._before = sum(map(self._measured, names[: names.index(stage)]))
        self._stage = stage
        self._stage_start = self._position_time = now
        self._position = 0.0
        self._loop_rest, self._loop_left = 0.0, None

    def advance(self, loop: str, fraction: float, seconds_left: float | None = None) -> None:
        """Count `fraction` of the present stage's loop `loop` as done, where it was measured.

        `seconds_left` is what the loop needs by its own rate, which is newer than any record.
        """
        loops = self._seconds.get(self._stage) or {}
        if loop not in loops:
            return
        names = list(loops)
        before = 0.0
        for name in names[: names.index(loop)]:
            before += loops[name]
        # A loop that runs again does not take the run back.
        self._position = max(self._position, before + fraction * loops[loop])
        self._position_time = time.monotonic()
        self._loop_rest = (1 - fraction) * loops[loop]
        self._loop_left = seconds_left

    def left(self) -> float | None:
        """Seconds that the rest of the run takes; None where a stage of the rest was never measured."""
        # 1) The recorded seconds of the rest.
        names = list(self._seconds)
        present = names.index(self._stage) if self._stage in names else 0
        for name in names[present:]:
            if not self._seconds[name]:
                return None
        rest = self.total - self.done
        # 2) What a recorded second takes today. The first ones, in which programs compile, say little of it.
        taken = self._taken + self._position_time - self._stage_start
        trusted = max(_TRUSTED_SHARE * self.total, 1.0)
        speed = (taken + trusted) / (self._work + self._position + trusted)
        if self._loop_left is None:
            return max(rest, 0.0) * speed
        # The present loop knows its own rest.
        return max(rest - self._loop_rest, 0.0) * speed + self._loop_left


def in_words(seconds: float) -> str:
    """A time left, rounded up, because nobody minds a run that ends early.

    >>> in_words(20.0), in_words(61.0), in_words(5410.0), in_words(40_000.0)
    ('less than a minute left', 'about 2 min left', 'about 1 h 31 min left', 'about 12 h left')
    """
    minutes = math.ceil(seconds / 60)
    if minutes <= 1:
        return "less than a minute left"
    if minutes < 60:
        return f"about {minutes} min left"
    hours, minute = divmod(minutes, 60)
    if hours < 10:
        return f"about {hours} h {minute} min left"
    return f"about {math.ceil(minutes / 60)} h left"
