"""`settings list`, `show` and `diff`."""

import json
import pathlib
import shlex
import subprocess
import sys

import pytest

from radit_jax import config
from radit_jax.commands import settings

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"
TINY = str(EXPERIMENTS / "tiny.py")
RADIT_7B = str(EXPERIMENTS / "radit_7b.py")
RADIT_65B = str(EXPERIMENTS / "radit_65b.py")

Output = pytest.CaptureFixture[str]


def printed(capsys: Output, *arguments: str) -> str:
    assert settings.main(arguments) == 0
    return capsys.readouterr().out


def test_list_says_type_default_meaning_and_the_papers_value(capsys: Output) -> None:
    assert printed(capsys, "list", "lm_ft.batch_size").splitlines()[2:] == [
        "lm_ft.batch_size=64",
        "    rows in a batch, each packed with several examples",
        "    whole number, x >= 1; the paper: 128 (table of LM-ft's hyper-parameters; 64",
        "    for 7B)",
        "",
    ]


def test_list_of_a_section_names_the_sections_in_it(capsys: Output) -> None:
    text = printed(capsys, "list", "lm_ft")
    assert "lm_ft.lora.*\n" in text and "lm_ft.lora.rank" not in text
    assert "lm_ft.lora.rank=0\n" in printed(capsys, "list", "lm_ft.lora")


def test_a_section_at_several_places_has_the_papers_value_of_its_own(capsys: Output) -> None:
    assert "the paper: 1237" in printed(capsys, "list", "r_ft.optimizer")
    assert "the paper: 200" in printed(capsys, "list", "lm_ft.optimizer")
    everywhere = printed(capsys, "list")
    assert "the paper at r_ft.optimizer.warmup_steps: 1237" in " ".join(everywhere.split())


def test_list_fits_80_columns(capsys: Output) -> None:
    assert max(map(len, printed(capsys, "list").splitlines())) <= 80


def test_list_for_programs(capsys: Output) -> None:
    rows = json.loads(printed(capsys, "list", "--json"))
    (tau,) = [row for row in rows if row["path"] == "r_ft.tau"]
    assert tau == {
        "path": "r_ft.tau",
        "class": "RFtConfig",
        "type": "number",
        "allowed": "1e-06 <= x <= 1e+06",
        "meaning": "temperature τ of the softmax p_LSR in Eq. 4",
        "default": 0.01,
        "paper": {"r_ft.tau": {"value": 0.01, "place": "appendix on R-ft"}},
    }
    assert "default" not in next(row for row in rows if row["path"] == "name")


@pytest.mark.parametrize(
    ("name", "hint"), [("lmft", "Did you mean 'lm_ft'?"), ("zzz", "There are data, base")]
)
def test_list_of_an_unknown_section_is_an_error_with_a_hint(capsys: Output, name: str, hint: str) -> None:
    assert settings.main(["list", name]) == 1
    error = capsys.readouterr().err
    assert f"list: expected a section of settings, got '{name}'" in error and hint in error


@pytest.mark.parametrize("path", [TINY, RADIT_7B, str(EXPERIMENTS / "wiki_small.py")])
def test_set_reads_back_every_line_of_show(capsys: Output, path: str) -> None:
    assignments = ["seed=7", "evaluate.tasks=nq, a b.jsonl", "evaluate.tasks_folder=raw"]
    assignments.append("base.retriever.query_prompt=it's: ")
    arguments = [f"--set={assignment}" for assignment in assignments]
    text = printed(capsys, "show", f"--experiment={path}", *arguments)
    lines = [word for line in text.splitlines() for word in shlex.split(line, comments=True)]
    assert len(lines) > 100
    original = config.load_experiment(path)
    assert config.override_settings(original, lines) == config.override_settings(original, assignments)


def test_show_marks_what_is_not_the_default(capsys: Output) -> None:
    lines = printed(capsys, "show", f"--experiment={TINY}", "--set=r_ft.tau=0.5").splitlines()
    assert lines[:2] == ["# name=tiny", "# data=GeneratedWorld"]
    assert {"r_ft.tau=0.5  # default: 0.01", "r_ft.batch_size=64"} <= set(lines)
    assert "lm_ft.optimizer.steps=200" in lines  # it has no default


def test_show_for_programs(capsys: Output) -> None:
    values = json.loads(printed(capsys, "show", f"--experiment={TINY}", "--json"))
    assert values["r_ft.tau"] == 0.02 and values["lm_ft.lora.targets"][0] == "q_proj"


def test_diff_of_two_experiments(capsys: Output) -> None:
    lines = printed(capsys, "diff", RADIT_7B, RADIT_65B).splitlines()
    assert {"name: radit_7b → radit_65b", "lm_ft.batch_size: 64 → 128"} <= set(lines)
    assert not [line for line in lines if line.startswith("r_ft")]
    assert printed(capsys, "diff", TINY, TINY) == "no setting differs\n"


def test_diff_with_the_paper_says_the_place_and_what_is_not_there(capsys: Output) -> None:
    lines = printed(capsys, "diff", TINY, "paper").splitlines()
    assert "r_ft.tau: 0.02 → 0.01 (appendix on R-ft)" in lines
    assert "data.lm_ft_cap: not there → 7500 (section on fine-tuning data, η)" in lines
    assert printed(capsys, "diff", RADIT_65B, "paper") == "no setting differs\n"


def test_diff_for_programs(capsys: Output) -> None:
    differences = json.loads(printed(capsys, "diff", "paper", TINY, "--json"))
    assert differences["r_ft.tau"] == {"a": 0.01, "b": 0.02}
    assert differences["data.lm_ft_cap"] == {"a": 7500}


def test_it_imports_no_jax() -> None:
    code = "import sys, radit_jax.commands.settings as s; s.main(['list']); sys.exit('jax' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0
    )
