"""What a person can cause is one line and an exit code; a fault of ours keeps its traceback."""

import errno
import gzip
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from radit_jax.errors import (
    Stopped,
    exit_command,
    naming,
    one_line,
    replace_unencodable,
    run_command,
)

ROOT = pathlib.Path(__file__).parents[1]


def raised(act: Callable[[], Any]) -> BaseException:
    with pytest.raises(BaseException) as caught:
        act()
    return caught.value


def nested() -> Any:
    return nested()


def test_what_the_system_refuses_names_the_file_and_the_reason(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    for act, words in (
        (
            lambda: (tmp_path / "absent").read_text(),
            "absent: No such file or directory. Name a path that is there.",
        ),
        (lambda: tmp_path.read_text(), f"{tmp_path}: Is a directory. Name a file."),
        (lambda: (tmp_path / "file" / "x").touch(), "file/x: Not a directory. Name a folder."),
        (lambda: (tmp_path / "file").mkdir(), "file: File exists. Move away what is there."),
        (lambda: os.rename(tmp_path / "a", tmp_path / "b"), f"{tmp_path}/a and {tmp_path}/b: No such file"),
    ):
        assert words in (one_line(raised(act)) or "")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "a/file: No space left on device. Make room on that disk."),
        (errno.EROFS, "a/file: Read-only file system. Name a folder that can be written."),
        (errno.EACCES, "a/file: Permission denied. Give this user the permission, or name another path."),
        (errno.EMFILE, "a/file: Too many open files. Raise the limit on open files (ulimit -n)."),
        (errno.EIO, "a/file: Input/output error."),
    ],
)
def test_each_refusal_has_its_remedy(number: int, words: str) -> None:
    assert one_line(OSError(number, os.strerror(number), "a/file")) == words


def test_a_write_to_a_full_disk_names_its_file() -> None:
    def write() -> None:
        with naming("a/file"), open("/dev/full", "w") as full:
            full.write("x")

    if pathlib.Path("/dev/full").exists():
        assert one_line(raised(write)) == "a/file: No space left on device. Make room on that disk."


def test_a_folder_whose_files_cannot_be_removed_is_named() -> None:
    def remove() -> None:
        with naming("runs/tiny/export"):  # rmtree names what it finds inside by its name alone
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "notes")

    assert (one_line(raised(remove)) or "").startswith("runs/tiny/export: Permission denied.")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (lambda: gzip.decompress(gzip.compress(b"x" * 99)[:-9]), "expected a whole compressed file, got"),
        (lambda: gzip.decompress(b"nothing"), "the system: Not a gzipped file"),
        (
            lambda: zlib.decompress(b"nothing"),
            "expected a whole compressed file, got a damaged one (Error -3",
        ),
        (lambda: b"\xff".decode(), "expected text in UTF-8, got 'utf-8' codec can't decode byte 0xff"),
        (lambda: "\ud800".encode(), "expected text in UTF-8, got 'utf-8' codec can't encode"),
        (lambda: json.loads("[" * 100_000), "expected input of a usual depth, got one too deep"),
        (lambda: nested(), "expected input of a usual depth, got one too deep"),
        (lambda: bytearray(1 << 60), "this machine's memory is too small (no more was given). Use a larger"),
        (lambda: int("x"), "invalid literal for int()"),
    ],
)
def test_other_errors_that_a_person_can_cause_have_their_words(error: Callable[[], Any], words: str) -> None:
    assert (one_line(raised(error)) or "").startswith(words)


def test_a_fault_of_ours_is_no_line() -> None:
    for error in (KeyError("x"), TypeError("x"), AssertionError(), AttributeError("x"), IndexError("x")):
        assert one_line(error) is None


def test_a_line_is_one_line_without_control_characters() -> None:
    assert one_line(ValueError("a\n  b\x1b[2J\ud800")) == r"a b\x1b[2J\ud800"


def test_a_library_that_gives_up_in_its_own_language_is_a_line() -> None:
    kind = type("PanicException", (BaseException,), {})
    try:
        assert one_line(kind("index out of bounds")) == (
            "a library gave up (index out of bounds). Look at what was read last."
        )
    finally:
        del kind


# ---- commands ----


def test_a_command_ends_with_a_line_and_a_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RADIT_TRACEBACK", raising=False)

    def fail(error: BaseException) -> Callable[[], int]:
        def body() -> int:
            raise error

        return body

    assert run_command(lambda: None) == 0
    assert run_command(lambda: 3) == 3
    assert run_command(fail(ValueError("here: expected 1, got 2."))) == 1
    assert run_command(fail(Stopped("at embed; it is kept", signal.SIGTERM))) == 75
    assert run_command(fail(Stopped("at embed; it is kept", signal.SIGINT))) == 130
    assert run_command(fail(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err.splitlines() == [
        "error: here: expected 1, got 2.",
        "stopped by SIGTERM at embed; it is kept. The same command goes on.",
        "stopped by Ctrl-C at embed; it is kept. The same command goes on.",
        "stopped by Ctrl-C. The same command starts again.",
    ]
    with pytest.raises(KeyError):
        run_command(fail(KeyError("ours")))
    monkeypatch.setenv("RADIT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="here"):
        run_command(fail(ValueError("here")))


def test_output_that_the_terminal_cannot_encode_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    replace_unencodable()
    print("── Łódź \ud800")
    terminal.flush()
    assert terminal.buffer.getvalue() == b"?? ??d? ?\n"  # type: ignore[attr-defined]


IN_A_PROCESS = "import sys\nfrom radit_jax.errors import run_command\nsys.exit(run_command(lambda: {}))"


def test_a_reader_that_has_gone_and_a_full_disk_end_a_command_quietly_or_with_a_line() -> None:
    code = IN_A_PROCESS.format("print('x' * 1_000_000)")
    gone = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "{sys.executable}" -c "{code}" | true'], capture_output=True
    )
    assert (gone.returncode, gone.stderr) == (141, b"")
    if pathlib.Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            ended = subprocess.run(
                [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True
            )
        assert ended.returncode == 1
        assert (
            ended.stderr.splitlines()[0]
            == "error: the system: No space left on device. Make room on that disk."
        )


def test_a_command_without_standard_streams_ends_as_with_them() -> None:
    code = IN_A_PROCESS.format("open('/dev/null').close() or print('x') or int(not sys.stdin.read() == '')")
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        assert subprocess.run(["bash", "-c", f'"{sys.executable}" -c "{code}" {closed}']).returncode == 0


def test_a_platform_that_jax_lacks_names_the_variable() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "import jax; " + IN_A_PROCESS.format("jax.devices()")],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cuda"},
    )
    assert ended.returncode == 1
    said = ended.stderr.splitlines()[-1]
    assert said.startswith(
        "error: JAX_PLATFORMS: expected platforms that this installation of jax has, got cuda"
    )


def test_a_signal_after_the_end_of_main_changes_nothing() -> None:
    code = (
        "import atexit, os\n"
        "from radit_jax.errors import exit_command\n"
        "atexit.register(lambda: [os.kill(os.getpid(), number) for number in (2, 15)])\n"
        "exit_command(lambda: 3)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT)
    assert (ended.returncode, ended.stderr) == (3, b"")


@pytest.mark.parametrize("command", ["'-m', 'radit_jax.evaluation.harness_model'", "'radit'"])
def test_ctrl_c_while_modules_load_ends_a_command_without_a_traceback(
    tmp_path: pathlib.Path, command: str
) -> None:
    (tmp_path / "jax.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    # As pip writes the script of that name, for a module that imports jax at once.
    (tmp_path / "radit").write_text("from radit_jax.evaluation.harness_model import Radit\n")
    # Tests that a script starts in the background ignore Ctrl-C, and would hand that down.
    launcher = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    launcher += f"os.execv(sys.executable, [sys.executable, {command}])"
    ended = subprocess.run(
        [sys.executable, "-c", launcher],
        capture_output=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, b"")


def test_ctrl_c_is_an_interrupt_in_main_and_nothing_after_it() -> None:
    def main() -> int:
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
        return run_command(lambda: signal.raise_signal(signal.SIGINT))

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with pytest.raises(SystemExit) as end:
            exit_command(main)
        assert end.value.code == 130
        assert {signal.getsignal(number) for number in before} == {signal.SIG_IGN}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_every_command_ends_by_exit_command() -> None:
    ends = {
        str(path.relative_to(ROOT)): end
        for path in (ROOT / "radit_jax").rglob("*.py")
        for end in path.read_text().split('if __name__ == "__main__":')[1:]
    }
    assert {
        "radit_jax/train.py",
        "radit_jax/ask.py",
        "radit_jax/data/finetuning/tfds_builders.py",
    } <= ends.keys()
    assert [name for name, end in ends.items() if "    exit_command(" not in end] == []
