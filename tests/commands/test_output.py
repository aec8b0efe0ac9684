"""`--quiet` and `--log-file`: what is shown, and what is kept."""

import argparse
import pathlib
import re
import sys
import time

import pytest

from radit_jax import cli
from radit_jax.commands.output import Copied, InLog, output_options, shown_as
from radit_jax.runtime.monitoring.progress import Progress, progress

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


def options(*words: str) -> argparse.Namespace:
    return output_options().parse_args(words)


def logged(path: pathlib.Path) -> list[str]:
    """The lines of a log without their times."""
    lines = path.read_text().splitlines()
    assert all(re.match(STAMP, line) for line in lines), lines
    return [re.sub(f"^{STAMP}", "", line) for line in lines]


def test_a_log_has_what_both_streams_print_and_so_has_the_terminal(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "new" / "run.log"
    with shown_as(options(f"--log-file={log}")):
        print("one\ntwo")
        print("a warning", file=sys.stderr)
        print("no end", end="")
    with shown_as(options(f"--log-file={log}")):
        print("a second run")
    assert logged(log) == ["one", "two", "a warning", "no end", "a second run"]
    assert capsys.readouterr() == ("one\ntwo\nno enda second run\n", "a warning\n")
    assert not isinstance(sys.stdout, Copied)


def test_a_log_has_a_bar_as_it_was_drawn_last_and_no_colours(tmp_path: pathlib.Path) -> None:
    log = tmp_path / "log"
    with shown_as(options(f"--log-file={log}")):
        sys.stderr.write("\rlm_ft 1/2\x1b[K")
        sys.stderr.write("\rlm_ft 2/2\x1b[K\n")
        print("\x1b[1;32mgreen\x1b[0m")
    assert logged(log) == ["lm_ft 2/2", "green"]


def test_a_log_has_a_bar_every_ten_seconds_while_it_is_redrawn(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with shown_as(options(f"--log-file={log}")):
        for step in range(25):
            clock[0] = step
            sys.stderr.write(f"\rlm_ft {step}/25\x1b[K")
    assert logged(log) == ["lm_ft 10/25", "lm_ft 20/25", "lm_ft 24/25"]


def test_a_log_has_the_traceback_of_a_bug(tmp_path: pathlib.Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(ZeroDivisionError), shown_as(options(f"--log-file={log}")):
        print(1 // 0)
    assert "ZeroDivisionError" in log.read_text()


def test_quiet_shows_errors_only(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    with shown_as(options("--quiet")):
        print("a line")
        assert list(progress([1, 2], "lm_ft", "steps")) == [1, 2]
    assert capsys.readouterr() == ("", "")
    assert cli.main(["status", "--quiet", "--experiment=nobody"]) == 1
    assert capsys.readouterr().err.startswith("error: --experiment: ")


def test_a_log_is_whole_where_the_terminal_is_quiet(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    with shown_as(options("--quiet", f"--log-file={log}")):
        print("a line")
        for step in progress([1, 2], "lm_ft", "steps"):
            print(f"step {step}")
        print("an error", file=sys.stderr)
    assert capsys.readouterr() == ("", "an error\n")
    first, step_1, step_2, loop, error = logged(log)
    assert [first, step_1, step_2, error] == ["a line", "step 1", "step 2", "an error"]
    assert re.match(r"lm_ft  2/2 steps  \S+ steps/s  in 0:00$", loop)
    assert cli.main(["version", "--quiet", f"--log-file={log}"]) == 0
    assert capsys.readouterr() == ("", "")
    assert any(line.startswith("radit_jax ") for line in logged(log))


def test_a_quiet_log_says_once_that_a_loop_is_done(tmp_path: pathlib.Path) -> None:
    with (tmp_path / "log").open("w") as file:
        display = InLog(file)
        loops = [Progress(2, "lm_ft", "steps", done=2), Progress(2, "lm_ft", "steps", done=2)]
        for loop in (*loops[:1], *loops):
            display.show_loop(loop)
        display.show_note("compiling step …")
    assert logged(tmp_path / "log")[2] == "compiling step …" and len(logged(tmp_path / "log")) == 3


def test_loops_show_their_bars_again_after_a_quiet_command(capsys: pytest.CaptureFixture[str]) -> None:
    list(progress([1, 2], "lm_ft", "steps"))
    assert "lm_ft  2/2 steps" in capsys.readouterr().err
