"""Every setting says what it is where it is defined, and the reference page says the same."""

import dataclasses
import pathlib
from typing import Annotated, Literal

import pytest

from radit_jax import config
from radit_jax.commands import settings
from radit_jax.config import descriptions
from radit_jax.config.paper import PAPER
from radit_jax.config.ranges import Range, Settings

ROOT = pathlib.Path(__file__).parents[2]
SECTIONS = descriptions.sections()


@dataclasses.dataclass(frozen=True)
class Sample(Settings):
    """A class of settings for these tests."""

    # rows in a batch,
    # of all devices
    batch_size: Annotated[int, Range(1, 2**31)] = 4  # at most
    bare: str = ""

    # a paragraph of its own

    form: Literal["a", "b"] | None = None  # which of two
    share: Annotated[float, Range(0, 1, high_is_in=False)] = 0.5  # "#" is text


def test_a_meaning_is_the_comment_on_the_fields_line_or_right_above() -> None:
    assert descriptions.meanings(Sample) == {
        "batch_size": "rows in a batch, of all devices at most",
        "bare": "",
        "form": "which of two",
        "share": '"#" is text',
    }


def test_a_type_and_a_range_are_read_from_the_annotation() -> None:
    words = [setting.kind_and_range for setting in descriptions.describe_settings(Sample)]
    assert words == ["whole number, x >= 1", "text", "text or none, one of a, b", "number, 0 <= x < 1"]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.settings_class.__name__)
def test_every_setting_has_a_meaning_of_three_words(section: descriptions.Section) -> None:
    short = [setting.name for setting in section.settings if len(setting.meaning.split()) < 3]
    assert not short


def test_every_class_of_settings_stands_in_an_experiment() -> None:
    described = {section.settings_class for section in SECTIONS}
    exported = {kind for kind in vars(config).values() if isinstance(kind, type)}
    assert {kind for kind in exported if dataclasses.is_dataclass(kind)} == described


def test_the_largest_experiment_has_every_value_of_the_paper() -> None:
    experiment = config.load_experiment(str(ROOT / "experiments" / "radit_65b.py"))
    config.check_experiment(experiment)
    values = {value.path: value.value for value in descriptions.values(experiment)}
    assert {path: values.get(path) for path in PAPER} == {path: paper.value for path, paper in PAPER.items()}


def test_the_paper_never_says_a_value_without_its_place() -> None:
    assert all(paper.place for paper in PAPER.values())


def test_a_section_of_several_classes_has_its_classs_name() -> None:
    tiny = config.load_experiment(str(ROOT / "experiments" / "tiny.py"))
    by_path = descriptions.settings_by_path(tiny)
    assert by_path["data"] == "GeneratedWorld" and by_path["data.train_entities"] == 600
    assert by_path["base.lm.model.rope_scaling"] is None and by_path["evaluate.tasks"] == []


def test_the_reference_page_is_up_to_date() -> None:
    """After a change: radit config list --markdown > docs/reference/settings.md."""
    assert (ROOT / "docs" / "reference" / "settings.md").read_text() == settings.markdown()
