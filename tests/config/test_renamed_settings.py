"""Old names of settings work, warn, and are what fingerprints are made with."""

import copy
import dataclasses
import operator
import pathlib
import pickle
import warnings
from typing import Any

import pytest

from radit_jax import config
from radit_jax.config.renamed_settings import (
    RENAMED,
    RenamedSettingWarning,
    with_new_names,
    with_old_names,
)

TINY = config.load_experiment(str(pathlib.Path(__file__).parents[2] / "experiments" / "tiny.py"))
OPTIMIZER = TINY.lm_ft.optimizer
LM_FT_NAMES = [("reading_fraction", "gold_context_fraction")]


def by_name(name: str) -> dict[str, Any]:
    return {name: 0.25}


def setting(experiment: config.Experiment, path: str) -> float:
    section, _, field = path.partition(".")
    return getattr(getattr(experiment, section), field)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_set_takes_an_old_name_and_says_the_new_one(
    capsys: pytest.CaptureFixture[str], old: str, new: str
) -> None:
    changed = config.override_settings(TINY, [f"{old}=0.25"])
    assert setting(changed, new) == 0.25
    assert capsys.readouterr().err == (
        f"warning: --set {old}=0.25: {old} was renamed {new}; the old name works until release 0.3.\n"
    )
    assert changed == config.override_settings(TINY, [f"{new}=0.25"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_set_takes_a_setting_by_one_name_only(old: str, new: str) -> None:
    with pytest.raises(ValueError, match=rf"^--set {old}=0.25: expected one name .*, got {new} too\. Leave"):
        config.override_settings(TINY, [f"{new}=0.25", f"{old}=0.25"])


@pytest.mark.parametrize(("old", "new"), LM_FT_NAMES)
def test_constructors_take_an_old_name_with_a_warning(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"^lm_ft\.{old} was renamed lm_ft\.{new}; ") as said:
        made = config.LmFtConfig(OPTIMIZER, **by_name(old))
    assert len(said) == 1
    assert made == config.LmFtConfig(OPTIMIZER, **by_name(new))


@pytest.mark.parametrize(("old", "new"), LM_FT_NAMES)
def test_replace_takes_an_old_name_with_a_warning(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"^lm_ft\.{old} was renamed lm_ft\.{new}; ") as said:
        made = dataclasses.replace(TINY.lm_ft, **by_name(old))
    assert len(said) == 1
    assert made == dataclasses.replace(TINY.lm_ft, **by_name(new))


@pytest.mark.parametrize(("old", "new"), LM_FT_NAMES)
def test_constructors_take_a_setting_by_one_name_only(old: str, new: str) -> None:
    with pytest.raises(ValueError, match=rf"^lm_ft\.{old}: expected one name .*, got lm_ft\.{new} too\. Le"):
        config.LmFtConfig(OPTIMIZER, **by_name(old), **by_name(new))


@pytest.mark.parametrize(("old", "new"), LM_FT_NAMES)
def test_old_names_can_be_read_with_a_warning(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"was renamed lm_ft.{new}"):
        assert getattr(TINY.lm_ft, old) == getattr(TINY.lm_ft, new)


def test_a_name_that_never_was_is_refused() -> None:
    with pytest.raises(AttributeError, match="'LmFtConfig' object has no attribute 'nothing'"):
        operator.attrgetter("nothing")(TINY.lm_ft)
    with pytest.raises(TypeError, match="nothing"):
        config.LmFtConfig(OPTIMIZER, **by_name("nothing"))


def test_settings_are_copied_and_pickled_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert copy.deepcopy(TINY) == pickle.loads(pickle.dumps(TINY)) == TINY


def test_an_experiments_file_with_old_names_loads_and_shows_the_line(tmp_path: pathlib.Path) -> None:
    text = (pathlib.Path(__file__).parents[2] / "experiments" / "tiny.py").read_text()
    for _, new in LM_FT_NAMES:
        assert f"{new}=" in text
    old_text = text
    for old, new in LM_FT_NAMES:
        old_text = old_text.replace(f"{new}=", f"{old}=")
    (tmp_path / "tiny.py").write_text(old_text)
    with pytest.warns(RenamedSettingWarning) as said:
        assert config.load_experiment(str(tmp_path / "tiny.py")) == TINY
    assert len(said) == len(LM_FT_NAMES)


def test_a_stages_settings_under_old_names_and_back() -> None:
    new = {"gold_context_fraction": 0.5, "lm_ft": {"gold_context_fraction": 0.25, "lora": {"rank": 0}}}
    old = {"reading_fraction": 0.5, "lm_ft": {"reading_fraction": 0.25, "lora": {"rank": 0}}}
    assert with_old_names(new) == with_old_names(old) == old
    assert with_new_names(old) == with_new_names(new) == new
