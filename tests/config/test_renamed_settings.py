"""Old names of settings work, warn, and are what fingerprints are made with."""

import copy
import dataclasses
import operator
import pathlib
import pickle
import subprocess
import sys
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
# Section, old field and new field.
RENAMED_FIELDS = [
    ("lm_ft", "reading_fraction", "gold_context_fraction"),
    ("lm_ft", "text_fraction", "corpus_text_fraction"),
    ("r_ft", "text_fraction", "corpus_text_fraction"),
]
CLASS_OF = {"lm_ft": config.LmFtConfig, "r_ft": config.RFtConfig}


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


@pytest.mark.parametrize(("section", "old", "new"), RENAMED_FIELDS)
def test_constructors_take_an_old_name_with_a_warning(section: str, old: str, new: str) -> None:
    message = rf"^{section}\.{old} was renamed {section}\.{new}; "
    with pytest.warns(RenamedSettingWarning, match=message) as said:
        made = CLASS_OF[section](OPTIMIZER, **by_name(old))
    assert len(said) == 1
    assert made == CLASS_OF[section](OPTIMIZER, **by_name(new))


@pytest.mark.parametrize(("section", "old", "new"), RENAMED_FIELDS)
def test_replace_takes_an_old_name_with_a_warning(section: str, old: str, new: str) -> None:
    settings = getattr(TINY, section)
    with pytest.warns(
        RenamedSettingWarning, match=rf"^{section}\.{old} was renamed {section}\.{new}; "
    ) as said:
        made = dataclasses.replace(settings, **by_name(old))
    assert len(said) == 1
    assert made == dataclasses.replace(settings, **by_name(new))


@pytest.mark.parametrize(("section", "old", "new"), RENAMED_FIELDS)
def test_constructors_take_a_setting_by_one_name_only(section: str, old: str, new: str) -> None:
    message = rf"^{section}\.{old}: expected one name .*, got {section}\.{new} too\. Leave"
    with pytest.raises(ValueError, match=message):
        CLASS_OF[section](OPTIMIZER, **by_name(old), **by_name(new))


@pytest.mark.parametrize(("section", "old", "new"), RENAMED_FIELDS)
def test_old_names_can_be_read_with_a_warning(section: str, old: str, new: str) -> None:
    settings = getattr(TINY, section)
    with pytest.warns(RenamedSettingWarning, match=rf"was renamed {section}\.{new}"):
        assert getattr(settings, old) == getattr(settings, new)


def with_temperatures(old: float | None, new: float | None) -> config.Experiment:
    """An Experiment that is given the temperature by its old name, its new one, both or neither."""
    r_ft: dict[str, Any] = {} if old is None else {"temperature": old}
    retrieve = config.RetrieveConfig() if new is None else config.RetrieveConfig(temperature=new)
    parts = {"data": TINY.data, "base": TINY.base, "lm_ft": TINY.lm_ft}
    return config.Experiment("mine", **parts, r_ft=config.RFtConfig(OPTIMIZER, **r_ft), retrieve=retrieve)


def test_a_temperature_under_its_old_name_reaches_its_new_place() -> None:
    with pytest.warns(RenamedSettingWarning, match=r"^r_ft\.temperature was renamed retrieve\.temp") as said:
        made = with_temperatures(0.25, None)
    assert len(said) == 1
    assert made.retrieve.temperature == 0.25
    assert made == with_temperatures(None, 0.25)
    assert with_temperatures(None, None).retrieve.temperature == 1


def test_a_temperature_under_its_old_name_is_kept_by_replace() -> None:
    with pytest.warns(RenamedSettingWarning):
        r_ft = config.RFtConfig(OPTIMIZER, **by_name("temperature"))
    variant = dataclasses.replace(r_ft, tau=0.5)
    made = dataclasses.replace(TINY, r_ft=variant, retrieve=config.RetrieveConfig())
    assert made.retrieve.temperature == 0.25


def test_a_variant_may_have_another_temperature_by_either_name() -> None:
    changed: dict[str, Any] = {"temperature": 0.25}
    with pytest.warns(RenamedSettingWarning):
        old_way = dataclasses.replace(TINY, r_ft=dataclasses.replace(TINY.r_ft, **changed))
    retrieve = dataclasses.replace(TINY.retrieve, **changed)
    new_way = dataclasses.replace(TINY, r_ft=dataclasses.replace(TINY.r_ft, tau=0.02), retrieve=retrieve)
    assert old_way == new_way
    assert new_way.retrieve.temperature == 0.25


def test_a_temperature_is_given_by_one_name_only() -> None:
    message = r"^r_ft\.temperature: expected one name .*, got 0.25 and retrieve\.temperature=0.5\. Leave"
    with pytest.warns(RenamedSettingWarning), pytest.raises(ValueError, match=message):
        with_temperatures(0.25, 0.5)


def test_the_temperature_can_be_read_by_its_old_name_in_an_experiment() -> None:
    with pytest.warns(RenamedSettingWarning, match=r"was renamed retrieve\.temperature"):
        assert operator.attrgetter("temperature")(TINY.r_ft) == TINY.retrieve.temperature == 0.1
    with pytest.raises(AttributeError, match="in settings of an Experiment only"):
        operator.attrgetter("temperature")(config.RFtConfig(OPTIMIZER))


def test_a_name_that_never_was_is_refused() -> None:
    with pytest.raises(AttributeError, match="'LmFtConfig' object has no attribute 'nothing'"):
        operator.attrgetter("nothing")(TINY.lm_ft)
    with pytest.raises(TypeError, match="nothing"):
        config.LmFtConfig(OPTIMIZER, **by_name("nothing"))


def test_settings_are_copied_and_pickled_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert copy.deepcopy(TINY) == pickle.loads(pickle.dumps(TINY)) == TINY


def test_python_shows_the_warning_of_a_replaced_setting_in_a_script(tmp_path: pathlib.Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(
        "from dataclasses import replace\nfrom radit_jax.config import RFtConfig, OptimizerConfig\n"
        "replace(RFtConfig(OptimizerConfig(steps=1, peak_lr=1.0)), text_fraction=0.5)\n"
    )
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert "r_ft.text_fraction was renamed r_ft.corpus_text_fraction" in run.stderr


def test_an_experiments_file_with_old_names_loads_and_shows_the_line(tmp_path: pathlib.Path) -> None:
    text = (pathlib.Path(__file__).parents[2] / "experiments" / "tiny.py").read_text()
    old_text = text.replace("gold_context_fraction=", "reading_fraction=")
    old_text = old_text.replace("corpus_text_fraction=", "text_fraction=")
    old_text = old_text.replace("        retrieve=RetrieveConfig(temperature=0.1),\n", "")
    old_text = old_text.replace("tau=0.02,\n", "tau=0.02,\n            temperature=0.1,\n")
    (tmp_path / "tiny.py").write_text(old_text)
    with pytest.warns(RenamedSettingWarning) as said:
        assert config.load_experiment(str(tmp_path / "tiny.py")) == TINY
    assert [str(warning.message).partition(" ")[0] for warning in said] == [
        "lm_ft.reading_fraction",
        "r_ft.text_fraction",
        "r_ft.temperature",
    ]


def test_a_stages_settings_under_old_names_and_back() -> None:
    new = {"corpus_text_fraction": 0.5, "lm_ft": {"gold_context_fraction": 0.25, "lora": {"rank": 0}}}
    old = {"text_fraction": 0.5, "lm_ft": {"reading_fraction": 0.25, "lora": {"rank": 0}}}
    assert with_old_names(new) == with_old_names(old) == old
    assert with_new_names(old) == with_new_names(new) == new


def test_a_stages_temperature_was_in_its_section_r_ft() -> None:
    new = {"r_ft": {"tau": 0.5}, "temperature": 0.25}
    old = {"r_ft": {"tau": 0.5, "temperature": 0.25}}
    assert with_old_names(new) == old
    assert with_new_names(old) == with_new_names(new) == new
    evaluate = {"evaluate": {}, "temperature": 0.25}
    assert with_old_names(evaluate) == with_new_names(evaluate) == evaluate
