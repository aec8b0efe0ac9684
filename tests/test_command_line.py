"""What command lines say: the nearest option, and commands as a person types them."""

import pathlib
import sys
from collections.abc import Callable

import pytest

from radit_jax import cli, command_line, plan, train
from radit_jax.commands import init, settings
from radit_jax.errors import ExitCode

PACKAGE = pathlib.Path(cli.__file__).parent


@pytest.mark.parametrize(
    ("words", "usage", "hint"),
    [
        (["tasks", "--jsn"], "radit tasks", " --jsn. Did you mean --json?"),
        (["run", "tiny", "--dryrun"], "radit run", " --dryrun. Did you mean --dry-run?"),
        (["config", "show", "tiny", "--st=seed=3"], "radit config show", ". Did you mean --set?"),
        (["status", "--zzz"], "radit status", " --zzz"),
        (["plan", "tiny", "--trget=v5e-8"], "radit plan", " --target. Did you mean --target?"),
        (["version", "tiny"], "radit version", " tiny"),
    ],
)
def test_an_unknown_option_shows_the_usage_of_its_command_and_the_nearest(
    words: list[str], usage: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == ExitCode.WRONG_COMMAND_LINE
    shown = capsys.readouterr().err
    assert shown.startswith(f"usage: {usage} ")
    assert f"{usage}: error: " in shown and shown.endswith(f"{hint}\n")


@pytest.mark.parametrize(
    ("main", "module", "words", "hint"),
    [
        (train.main, "train", ["--stge=all"], "--stage"),
        (init.main, "commands.init", ["mydocs", "--ouput=run.py"], "--output"),
    ],
)
def test_a_module_refuses_what_it_does_not_know_alike(
    main: Callable[[list[str]], int],
    module: str,
    words: list[str],
    hint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(words)
    shown = capsys.readouterr().err
    assert shown.startswith(f"usage: python -m radit_jax.{module} ") and f"Did you mean {hint}?" in shown


@pytest.mark.parametrize("words", [["wiki_small"], ["--experiment=wiki_small"]])
def test_plan_and_config_take_the_experiment_first_as_run_does(words: list[str]) -> None:
    assert plan.parser().parse_args([*words, "--target=v5e-8"]).experiment == "wiki_small"
    assert settings.parser().parse_args(["show", *words, "--set=seed=3"]).experiment == "wiki_small"
    assert plan.parser().parse_args(["--target=v5e-8"]).experiment == str(command_line.TINY)


@pytest.mark.parametrize(
    ("program", "spelling"),
    [
        ("/opt/bin/radit", "radit"),
        ("/src/radit_jax/.venv/lib/pytest/__main__.py", "radit"),
        (str(PACKAGE / "__main__.py"), "python -m radit_jax"),
        (str(PACKAGE / "train.py"), "python -m radit_jax"),
    ],
)
def test_a_hint_spells_commands_as_the_person_did(
    program: str, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "export"])
    assert command_line.spelled("ask 'Who?'") == f"{spelling} ask 'Who?'"
    assert command_line.run_stage("export") == f"`{spelling} run EXPERIMENT --stage=export`"
