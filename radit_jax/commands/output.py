"""What `radit` shows, and what it keeps: `--quiet` and `--log-file`, which every command has."""

import argparse
import contextlib
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any, TextIO

from radit_jax.runtime.monitoring.progress import LINE_SECONDS, Progress, show_on

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours, and what moves the cursor


def output_options() -> argparse.ArgumentParser:
    """The options that every command has."""
    p = argparse.ArgumentParser(add_help=False)
    # Of the terminal, and next to it.
    shown = p.add_argument_group("output")
    shown.add_argument("--quiet", action="store_true", help="print errors only")
    shown.add_argument("--log-file", metavar="FILE", help="append all of it, with the times")
    return p


@contextlib.contextmanager
def shown_as(options: argparse.Namespace) -> Iterator[None]:
    """Print what the options leave over inside, and keep it in the log."""
    with contextlib.ExitStack() as stack:
        # Errors are on stderr, and so would be the bars.
        if options.quiet:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        # The log has all of it, whatever the terminal shows.
        display = Nothing()
        if options.log_file:
            log = stack.enter_context(copied_to(options.log_file))
            display = InLog(log)
        if options.quiet:
            stack.enter_context(show_on(display))
        yield


class Nothing:
    """Shows no progress."""

    def begin_stage(self, name: str) -> None:
        """Show nothing."""

    def show_loop(self, loop: Progress) -> None:
        """Show nothing."""

    def show_note(self, text: str) -> None:
        """Show nothing."""

    def end_stages(self) -> None:
        """Show nothing."""


class InLog(Nothing):
    """Shows progress in a log alone, in lines as where there is no terminal."""

    def __init__(self, log: TextIO):
        self._log = log
        self._shown_time = time.monotonic()
        self._shown: tuple[Progress, int] | None = None  # the loop of the last line, and how far it was

    def show_loop(self, loop: Progress) -> None:
        """Log a line every ten seconds, and the last one."""
        now = time.monotonic()
        is_due = now - self._shown_time >= LINE_SECONDS
        is_new = self._shown != (loop, loop.done)
        if is_new and (is_due or loop.done >= loop.total):
            self._shown_time, self._shown = now, (loop, loop.done)
            write_line(self._log, loop.line())

    def show_note(self, text: str) -> None:
        """Log it."""
        write_line(self._log, text)


def write_line(log: TextIO, line: str) -> None:
    """Write a line with its time."""
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    log.write(f"{now} {line}\n")


@contextlib.contextmanager
def copied_to(path: str) -> Iterator[TextIO]:
    """Append to the file at `path` what is printed inside, and the traceback of a bug; yields the file."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    # Line by line, so that the log of a killed run is whole.
    with open(path, "a", encoding="utf-8", errors="replace", buffering=1) as log:
        # Libraries and warnings print through the same two names.
        streams = {name: getattr(sys, name) for name in ("stdout", "stderr")}
        for name, stream in streams.items():
            setattr(sys, name, Copied(stream, log))
        try:
            yield log
        # What is one line for a person was printed before, in `run_command`.
        except Exception:
            log.write(traceback.format_exc())
            raise
        finally:
            # Also a line that never ended is kept.
            for name, stream in streams.items():
                getattr(sys, name).end_line()
                setattr(sys, name, stream)


class Copied:
    """A standard stream whose whole lines also go to a log, without what a terminal draws over."""

    def __init__(self, stream: Any, log: TextIO):
        self._stream = stream
        self._log = log
        self._line = ""
        self._logged_time = time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Print `text`, and log the lines that it ends."""
        # All parts but the last one end a line.
        *ended, rest = text.split("\n")
        for part in ended:
            self._line += part
            self.end_line()
        self._line += rest
        # A bar may be redrawn for hours: as elsewhere, the log has it every ten seconds.
        if "\r" in rest:
            self._line = "\r" + self._line.rpartition("\r")[2]
            if time.monotonic() - self._logged_time >= LINE_SECONDS:
                self._log_line()
        return self._stream.write(text)

    def end_line(self) -> None:
        """Log the line that was begun, if any."""
        self._log_line()
        self._line = ""

    def _log_line(self) -> None:
        """Log the line as it is now; a bar that was redrawn is as it was drawn last."""
        line = _ESCAPE.sub("", self._line).rpartition("\r")[2]
        if line.strip():
            write_line(self._log, line)
        self._logged_time = time.monotonic()
