"""Errors in every command: a line for what a person can cause, a traceback for a fault of ours.

Exit codes: 0 done; 1 an error; 2 a wrong command line (argparse); 75 stopped by SIGTERM and 130 by Ctrl-C,
both resumed by the same command; 141 the reader of the output has gone. RADIT_TRACEBACK=1: all tracebacks.
"""

import contextlib
import errno
import io
import lzma
import os
import select
import signal
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator
from typing import NoReturn

from radit_jax.text.printable import printable

_NO_READER = 128 + signal.SIGPIPE
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
    """A signal asked the program to stop, and it has stopped where it says; the same command goes on.

    No Exception: what handles any fault of a library must not take it for one.
    """

    def __init__(self, where: str, signal_number: int):
        super().__init__(where)
        self.signal_number = signal_number

    @property
    def code(self) -> int:
        """The exit code: 130, as shells have it for Ctrl-C, or EX_TEMPFAIL of sysexits.h."""
        return 130 if self.signal_number == signal.SIGINT else os.EX_TEMPFAIL

    @property
    def line(self) -> str:
        """What to tell the person who stopped it."""
        name = "Ctrl-C" if self.signal_number == signal.SIGINT else "SIGTERM"
        return f"stopped by {name} {self}. The same command goes on."


def run_command(body: Callable[[], int | None]) -> int:
    """The exit code of a command that does `body`; an error that a person can cause is a line on stderr."""
    open_closed()
    replace_unencodable()
    try:
        code = body() or 0
        sys.stdout.flush()
        return code
    except Stopped as stop:
        print(stop.line, file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        print("stopped by Ctrl-C. The same command starts again.", file=sys.stderr)
        return 130
    except (Exception, *_panics()) as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return _NO_READER
        line = one_line(error)
        if line is None or os.environ.get("RADIT_TRACEBACK"):
            raise
        print(f"error: {line}", file=sys.stderr)
        return 1


def exit_command(main: Callable[[], int]) -> NoReturn:
    """End the program with the code of `main`; once it has returned, Ctrl-C and SIGTERM change nothing.

    A library's handler at the exit would print a traceback though all is done. SIGQUIT still ends it.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as radit_jax/__init__.py has it until here
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(main())
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def one_line(error: BaseException) -> str | None:
    """What `error` says to a person, in a line without control characters; None for a fault of our own."""
    words = _words(error)
    return None if words is None else printable(" ".join(words.split()))


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let the system's errors from inside name a path.

    Those of a write, to a full disk say, name none, and those of removing a folder a bare name inside it.
    """
    try:
        yield
    except OSError as error:
        known = error.filename if isinstance(error.filename, str | bytes) else ""
        if not os.path.dirname(known) and error.errno is not None:
            error.filename = os.fspath(path)
        raise


def _words(error: BaseException) -> str | None:
    if _is_from_jaxs_start(error):
        return _no_device(error)
    if isinstance(error, UnicodeError):
        return f"expected text in UTF-8, got {error}. Convert what was read."
    if isinstance(error, ValueError | FloatingPointError):
        return str(error)
    if isinstance(error, OSError):
        return _of_the_system(error)
    if isinstance(error, EOFError | zlib.error | lzma.LZMAError):
        return f"expected a whole compressed file, got a damaged one ({error}). Fetch it again."
    if isinstance(error, MemoryError):
        return (
            f"this machine's memory is too small ({str(error) or 'no more was given'}). Use a larger machine."
        )
    if isinstance(error, RecursionError):
        return f"expected input of a usual depth, got one too deep ({error}). Look at what was read last."
    if isinstance(error, _panics()):
        return f"a library gave up ({error}). Look at what was read last."
    return None


def _of_the_system(error: OSError) -> str:
    """What the system refused: the paths, the reason, and what to do where the reason tells it."""
    paths = [os.fsdecode(path) for path in (error.filename, error.filename2) if isinstance(path, str | bytes)]
    reason = error.strerror if isinstance(error.strerror, str) else str(error) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{' and '.join(paths) or 'the system'}: {reason}." + (f" {remedy}." if remedy else "")


def _is_from_jaxs_start(error: BaseException) -> bool:
    """Whether jax raised `error` while it looked for its devices."""
    frames = traceback.walk_tb(error.__traceback__)
    names = {frame.f_globals.get("__name__") for frame, _ in frames}
    return "jax._src.xla_bridge" in names and not isinstance(error, ValueError | OSError)


def _no_device(error: BaseException) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return (
            f"JAX_PLATFORMS: expected platforms that this installation of jax has, got {platforms} ({said}). "
            "Unset it, or install jax for that platform."
        )
    return f"jax found no device ({said}). End what else uses it, or set JAX_PLATFORMS=cpu."


def _panics() -> tuple[type[BaseException], ...]:
    """What Rust's libraries raise where they give up: no Exception, and of a type that no module offers."""
    return tuple(kind for kind in BaseException.__subclasses__() if kind.__name__ == "PanicException")


def open_closed() -> None:
    """Let a standard stream that the command was started without (`2>&-`) be an empty one, not None."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - as long as the program


def replace_unencodable() -> None:
    """Let output show a mark where its encoding lacks a character, instead of ending the program."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads; what is left to write then goes nowhere."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    gone = any(event & select.POLLERR for _, event in output.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone
