"""The command `radit`: its commands, what they import, what they print, and how they end."""

import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

import radit_jax
from radit_jax import cli, train
from radit_jax.errors import EXIT_CODES, ExitCode

ROOT = pathlib.Path(__file__).parent.parent
HELP = """
import contextlib, io, runpy, sys
from radit_jax import cli
HEAVY = sys.argv[1:]
for name in ["--help", *cli.NAMES]:
    words = [name] if name == "--help" else [name, "--help"]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        cli.main(words)
    print(name, *[heavy for heavy in HEAVY if heavy in sys.modules])
for name in ["selfcheck", "lm_eval"]:
    sys.argv = [name, "--help"]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        runpy.run_module(f"radit_jax.{name}", run_name="__main__")
    print(name, *[heavy for heavy in HEAVY if heavy in sys.modules])
"""


def test_no_help_imports_what_takes_seconds() -> None:
    command = [sys.executable, "-c", HELP, "jax", "flax", "transformers", "tensorflow", "torch"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split("\n")[:-1] == ["--help", *cli.NAMES, "selfcheck", "lm_eval"]


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_a_commands_parser_says_what_to_run(command: cli.Command) -> None:
    p = command.parser()
    assert isinstance(p.get_default("run"), Callable)
    assert p.description


def test_help_of_a_command_says_radit_and_not_python_m(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["plan", "--help"], ["config", "--help"], ["config", "list", "--help"]):
        with pytest.raises(SystemExit):
            cli.main(words)
        shown = capsys.readouterr().out
        assert "python -m" not in shown
        assert shown.startswith(f"usage: radit {' '.join(words[:-1])} ")


def test_help_lists_every_command_and_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert re.search(rf"^    {command.name}\s+{re.escape(command.summary)}$", shown, re.MULTILINE)
    for code, meaning in EXIT_CODES.items():
        assert f" {code:d}  {meaning}\n" in shown


def test_the_reference_has_every_exit_code() -> None:
    page = (ROOT / "docs" / "reference" / "exit-codes.md").read_text()
    codes = [int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)]
    assert sorted(codes) == sorted(EXIT_CODES) == sorted(ExitCode)


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"radit_jax {radit_jax.__version__}\n"
    assert cli.main(["version", "--json"]) == 0
    versions = json.loads(capsys.readouterr().out)
    assert versions["radit_jax"] == radit_jax.__version__
    assert versions["jax"] and versions["python"].startswith("3.")


@pytest.mark.parametrize(
    ("name", "hint"), [("staus", "Did you mean 'status'?"), ("quux", "`radit --help` lists them.")]
)
def test_a_wrong_command_is_a_wrong_command_line(
    name: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([name]) == ExitCode.WRONG_COMMAND_LINE
    assert capsys.readouterr().err == f"error: radit: expected a command, got {name!r}. {hint}\n"


def test_run_is_train_with_the_experiment_in_front() -> None:
    options = cli.parser("run").parse_args(["run", "wiki_small", "--set=seed=3", "--dry-run"])
    trained = train.parser().parse_args(["--experiment=wiki_small", "--set=seed=3", "--dry-run"])
    assert vars(options) == vars(trained) | {"quiet": False, "log_file": None}
    assert cli.parser("run").parse_args(["run"]).experiment == str(train.TINY)


def test_python_m_radit_jax_is_radit(tmp_path: pathlib.Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "radit_jax", "plan", "--experiment=tny", "--target=v5e-8"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == ExitCode.ERROR
    assert ended.stderr.startswith(
        "error: --experiment: expected a file or the name of an experiment, got 'tny'"
    )


def test_plan_in_json_has_bytes_and_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--experiment=tiny", "--target=h100-8", "--stage=lm_ft", "--chunks=2550", "--json"]
    assert cli.main(words) == ExitCode.DONE
    planned = json.loads(capsys.readouterr().out)
    (stage,) = planned["stages"]
    assert (planned["experiment"], stage["stage"], stage["fits"]) == ("tiny", "lm_ft", True)
    # 2,048 x 96 twice; per layer 4 x 96 x 96, 3 x 96 x 256 and two norms; the last norm.
    assert stage["params"] == 2 * 2048 * 96 + 2 * (4 * 96 * 96 + 3 * 96 * 256 + 2 * 96) + 96
    assert stage["estimated"] and stage["peak"] > stage["held"] > 4 * 3 * stage["params"] / 8


def test_a_script_of_completions_is_bash_and_knows_commands_options_and_experiments(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    for word in ("doctor", "--log-file", "--dry-run", "wiki_small"):
        assert word in script
    for command in ("run", "plan", "config_show"):
        choices = next(line for line in script.splitlines() if f"_{command}_pos_0_choices=" in line)
        assert "wiki_small" in choices
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_a_log_that_cannot_be_written_is_one_line(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["version", f"--log-file={tmp_path}"]) == ExitCode.ERROR
    assert capsys.readouterr() == ("", f"error: {tmp_path}: Is a directory. Name a file.\n")


@pytest.mark.parametrize("closed", [">&-", "| true", ""])
def test_a_log_is_whole_where_the_output_is_closed_or_in_ascii(tmp_path: pathlib.Path, closed: str) -> None:
    command = f"{sys.executable} -m radit_jax status --stage=corpus --log-file=log {closed}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "log").read_text().splitlines()[0].endswith("settings   tiny")
