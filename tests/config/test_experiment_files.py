"""An experiment by its name or its file; tests/test_wheel.py has the same in a wheel."""

import pathlib

import pytest

from radit_jax import config
from radit_jax.config import experiment_files

ROOT = pathlib.Path(__file__).parents[2]


def test_the_names_are_those_of_the_files_in_the_checkout() -> None:
    files = (ROOT / "experiments").glob("*.py")
    assert config.experiment_names() == sorted(file.stem for file in files)
    assert "wiki_small" in config.experiment_names()


def test_a_name_and_its_file_are_the_same_experiment() -> None:
    by_name = config.load_experiment("tiny_refreshed")
    assert by_name == config.load_experiment(str(ROOT / "experiments" / "tiny_refreshed.py"))


def test_a_file_of_that_name_comes_before_the_package(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").write_text("")
    monkeypatch.chdir(tmp_path)
    assert experiment_files.experiment_file("tiny") == "tiny"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("wiki_smal", "Did you mean 'wiki_small'?"),
        ("somewhere/experiments/radit7b.py", "Did you mean 'radit_7b'?"),
        ("zebra", "There are radit_13b, radit_65b,"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest_one(name: str, hint: str) -> None:
    with pytest.raises(ValueError) as caught:
        config.load_experiment(name)
    message = f"--experiment: expected a file or the name of an experiment, got {name!r}. {hint}"
    assert str(caught.value).startswith(message)
