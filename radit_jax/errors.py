"""The end of every command: a line for an error that a person can cause, a traceback for a bug of ours.

`EXIT_CODES` says what every exit code means. RADIT_TRACEBACK=1 shows all tracebacks.
"""

import argparse
import contextlib
import enum
import errno
import io
import lzma
import os
import select
import signal
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from radit_jax.text.printable import printable


class ExitCode(enum.IntEnum):
    """How a command ended; `EXIT_CODES` has the words."""

    DONE = 0
    ERROR = 1
    WRONG_COMMAND_LINE = 2  # argparse's own
    STOPPED = os.EX_TEMPFAIL  # of sysexits.h
    CTRL_C = 128 + signal.SIGINT  # as in shells
    NO_READER = 128 + signal.SIGPIPE  # as shells give to a program without a reader


EXIT_CODES = {
    ExitCode.DONE: "done",
    ExitCode.ERROR: "an error, said in a line; or no, from a command that asks: plan, doctor",
    ExitCode.WRONG_COMMAND_LINE: "a wrong command line",
    ExitCode.STOPPED: "stopped by SIGTERM; the same command resumes",
    ExitCode.CTRL_C: "stopped by Ctrl-C; the same command resumes",
    ExitCode.NO_READER: "nobody reads the output, as after `| head`",
}

# What a person can do about an error of the system.
_REMEDIES = {
    errno.ENOSPC: "Make room on that disk",
    errno.EDQUOT: "Make room in that quota",
    errno.EROFS: "Name a folder that can be written",
    errno.EACCES: "Give this user the permission, or name another path",
    errno.EPERM: "Give this user the permission, or name another path",
    errno.ENOENT: "Name a path that is there",
    errno.EISDIR: "Name a file",
    errno.ENOTDIR: "Name a folder",
    errno.EEXIST: "Move away what is there",
    errno.EMFILE: "Raise the limit on open files (ulimit -n)",
    errno.ENFILE: "Raise the system's limit on open files",
    errno.ENAMETOOLONG: "Name a shorter path",
}


class Stopped(BaseException):
    """A signal asked the program to stop, and it stopped at `where`. The same command resumes it.

    Not an Exception: code that handles any fault of a library must not catch it.
    """

    def __init__(self, where: str, signal_number: int):
        super().__init__(where)
        self.signal_number = signal_number

    @property
    def code(self) -> int:
        """The exit code: that of Ctrl-C, or that of any other signal."""
        return ExitCode.CTRL_C if self.signal_number == signal.SIGINT else ExitCode.STOPPED

    @property
    def line(self) -> str:
        """The message for the person who stopped it."""
        name = "Ctrl-C" if self.signal_number == signal.SIGINT else "SIGTERM"
        return f"stopped by {name} {self}. The same command goes on."


def run_command(body: Callable[[], int | None]) -> int:
    """Run `body` and return the command's exit code. An error that a person can cause is a line on stderr."""
    open_closed()
    replace_unencodable()
    try:
        code = body() or ExitCode.DONE
        sys.stdout.flush()
        return code
    # A stop is not an error, and has a code of its own.
    except Stopped as stop:
        print(stop.line, file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        print("stopped by Ctrl-C. The same command starts again.", file=sys.stderr)
        return ExitCode.CTRL_C
    # Everything else is a line, or a traceback.
    except (Exception, *_panics()) as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return ExitCode.NO_READER
        line = one_line(error)
        if line is None or os.environ.get("RADIT_TRACEBACK"):
            raise
        print(f"error: {line}", file=sys.stderr)
        return ExitCode.ERROR


def parse_and_run(p: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    """Parse `arguments`, or else those of the process, and do what `options.run` does; the exit code."""
    options = p.parse_args(arguments)
    return run_command(lambda: options.run(options))


def exit_command(main: Callable[[], int]) -> NoReturn:
    """End the program with the code of `main`. Once `main` has returned, Ctrl-C and SIGTERM change nothing.

    A library's handler at exit would otherwise print a traceback when all is done. SIGQUIT still works.
    """
    # radit_jax/__init__.py sets the default action for the time of imports.
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(main())
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def one_line(error: BaseException) -> str | None:
    """An error's message in one line without control characters; None for a bug of ours."""
    message = _message(error)
    return None if message is None else printable(" ".join(message.split()))


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let errors of the system inside name `path`.

    The error of a write, for example to a full disk, names no path, and that of a folder's removal names a
    file without its folder.
    """
    try:
        yield
    except OSError as error:
        named = error.filename if isinstance(error.filename, str | bytes) else ""
        if not os.path.dirname(named) and error.errno is not None:
            error.filename = os.fspath(path)
        raise


# ---- messages ----


def _message(error: BaseException) -> str | None:
    # 1) Faults of this machine's set-up.
    if _is_from_start_of_jax(error):
        return _no_device_message(error)
    if isinstance(error, UnicodeError):
        return f"expected text in UTF-8, got {error}. Convert what was read."
    # 2) Our own errors, whose messages say what to do.
    if isinstance(error, ValueError | FloatingPointError):
        return str(error)
    if isinstance(error, OSError):
        return _system_message(error)
    # 3) What libraries raise for input that they cannot read.
    if isinstance(error, EOFError | zlib.error | lzma.LZMAError):
        return f"expected a whole compressed file, got a damaged one ({error}). Fetch it again."
    if isinstance(error, MemoryError):
        reason = str(error) or "no more was given"
        return f"this machine's memory is too small ({reason}). Use a larger machine."
    if isinstance(error, RecursionError):
        return f"expected input of a usual depth, got one too deep ({error}). Look at what was read last."
    if isinstance(error, _panics()):
        return f"a library gave up ({error}). Look at what was read last."
    return None


def _system_message(error: OSError) -> str:
    """What the system refused: the paths, the reason, and a remedy where the reason suggests one."""
    paths = [os.fsdecode(path) for path in (error.filename, error.filename2) if isinstance(path, str | bytes)]
    where = " and ".join(paths) or "the system"
    # A library's own OSError has no reason from the system.
    from_system = isinstance(error.strerror, str)
    reason = error.strerror if from_system else str(error) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{where}: {reason}. {remedy}." if remedy else f"{where}: {reason}."


def _is_from_start_of_jax(error: BaseException) -> bool:
    """Whether jax raised `error` when it looked for its devices."""
    if isinstance(error, ValueError | OSError):
        return False
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == "jax._src.xla_bridge" for frame, _ in frames)


def _no_device_message(error: BaseException) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return (
            f"JAX_PLATFORMS: expected platforms that this installation of jax has, got {platforms} "
            f"({reason}). Unset it, or install jax for that platform."
        )
    return f"jax found no device ({reason}). End what else uses it, or set JAX_PLATFORMS=cpu."


def _panics() -> tuple[type[BaseException], ...]:
    """The classes of panics of Rust libraries: none is an Exception, and no module exports them."""
    return tuple(kind for kind in BaseException.__subclasses__() if kind.__name__ == "PanicException")


# ---- standard streams ----


def open_closed() -> None:
    """Open an empty stream in place of a standard stream that the command lacks (`2>&-`)."""
    # Python has None for such a stream, and every print would fail.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open until the program ends


def replace_unencodable() -> None:
    """Print a mark for a character that the output's encoding lacks, instead of raising an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads. If so, further output is discarded."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    is_gone = any(event & select.POLLERR for _, event in output.poll(0))
    if is_gone:
        # Python flushes the stream at exit, and would print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return is_gone
