"""Says that a program is being compiled, where this takes seconds in which nothing else is shown."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import jax

from radit_jax.runtime.monitoring.progress import show_note

QUIET_SECONDS = 2.0  # what compiles faster is not mentioned

# jax reports both with the name of the program, and compiles right after it has lowered.
_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"

_present = threading.local()  # `announcement`: of the program that this thread compiles


class Announcement:
    """One program's compilation: a note once it has lasted `QUIET_SECONDS`, and then one of its end."""

    def __init__(self, program: str):
        self._program = program
        self._lock = threading.Lock()
        self._has_ended = False
        self._is_shown = False
        # XLA leaves other threads free to run meanwhile.
        self._timer = threading.Timer(QUIET_SECONDS, self._show)
        self._timer.daemon = True
        self._timer.start()

    def _show(self) -> None:
        with self._lock:
            if not self._has_ended:
                self._is_shown = True
                show_note(f"compiling {self._program} …")

    def end(self, seconds: float | None = None) -> None:
        """The program is compiled after `seconds`; None: it was only lowered."""
        self._timer.cancel()
        with self._lock:
            self._has_ended = True
            if self._is_shown and seconds is not None:
                show_note(f"compiled {self._program} in {seconds:.0f} s")


@contextlib.contextmanager
def announcing_compilation() -> Iterator[None]:
    """Say of the programs inside that they are being compiled, on all threads."""
    jax.monitoring.register_event_duration_secs_listener(_listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(_listen)


def _listen(event: str, duration_secs: float, **metadata: Any) -> None:
    """Begin an announcement after a program was lowered, and end it after it was compiled."""
    if event not in (_LOWERED, _COMPILED):
        return
    # A program that was only lowered is followed by the next one.
    announcement = getattr(_present, "announcement", None)
    if announcement is not None:
        announcement.end(duration_secs if event == _COMPILED else None)
        _present.announcement = None
    if event == _LOWERED:
        name = str(metadata.get("fun_name", "a program"))
        program = name.removeprefix("jit(").removesuffix(")")
        _present.announcement = Announcement(program)
