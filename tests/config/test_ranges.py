"""Every number of every setting has a range, and nothing outside it passes."""

import dataclasses
import json
import math
import pathlib
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest

from radit_jax import config
from radit_jax.config.ranges import Range, Seed, Settings, Temperature, check_values
from radit_jax.runtime.storage.fingerprints import canonical

SETTINGS = [
    kind for kind in vars(config).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)
]


def kinds_of_numbers() -> Iterator[tuple[type, str, Any]]:
    """Class, field and annotated type of every setting that is a number, or may be one."""
    for settings in SETTINGS:
        for name, kind in get_type_hints(settings, include_extras=True).items():
            members = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
            for member in members:
                plain = get_args(member)[0] if get_origin(member) is Annotated else member
                if plain in (int, float):
                    yield settings, name, member


def outside(kind: Any) -> list[Any]:
    """Values that a setting of this kind must not have."""
    plain, allowed = get_args(kind)
    step = 1 if plain is int else 1e-9
    low = allowed.low - (step if allowed.low_is_in else 0)
    high = (
        allowed.high + step
        if allowed.high_is_in and allowed.high < 1e9
        else allowed.high * (2 if allowed.high_is_in else 1)
    )
    return [math.nan, math.inf, -math.inf, low, high, True, "1", *([1.5] if plain is int else [])]


@pytest.fixture(scope="module")
def settings_by_class() -> dict[type, Any]:
    """Settings of each class, valid ones, from the experiments."""
    found: dict[type, Any] = {}

    def gather(settings: Any) -> None:
        found.setdefault(type(settings), settings)
        for field in dataclasses.fields(settings):
            if dataclasses.is_dataclass(value := getattr(settings, field.name)):
                gather(value)

    folder = pathlib.Path(__file__).parents[2] / "experiments"
    for name in ("tiny", "radit_7b", "radit_llama32_1b", "wiki_small"):
        gather(config.load_experiment(str(folder / f"{name}.py")))
    gather(config.LastTokenConfig(found[config.DecoderConfig]))  # comes from checkpoints
    return found


def with_value(settings: Any, name: str, value: Any) -> Any:
    """A copy whose field is `value`, past the type checks that the tests add to constructors."""
    copy = dataclasses.replace(settings)
    object.__setattr__(copy, name, value)
    return copy


def test_every_number_has_a_range() -> None:
    found = list(kinds_of_numbers())
    assert len(found) > 90
    assert [
        f"{kind.__name__}.{name}" for kind, name, wanted in found if get_origin(wanted) is not Annotated
    ] == []


def test_every_number_out_of_its_range_is_refused_by_its_path(settings_by_class: dict[type, Any]) -> None:
    for kind, name, wanted in kinds_of_numbers():
        settings = settings_by_class[kind]
        check_values(settings)
        for value in outside(wanted):
            with pytest.raises(ValueError, match=rf"^at\.{name}: expected .*<=? x <=? .*, got "):
                check_values(with_value(settings, name, value), "at")


def test_an_inner_setting_is_named_by_its_path(settings_by_class: dict[type, Any]) -> None:
    tiny = settings_by_class[config.Experiment]
    optimizer = with_value(tiny.lm_ft.optimizer, "b1", math.nan)
    with pytest.raises(ValueError, match=r"^lm_ft\.optimizer\.b1: expected 0 <= x < 1, got nan\.$"):
        config.check_experiment(with_value(tiny, "lm_ft", with_value(tiny.lm_ft, "optimizer", optimizer)))


@pytest.mark.parametrize(
    ("section", "field", "value", "expected"),
    [
        ("score", "dtype", "float16", "one of 'float32', 'bfloat16'"),
        ("evaluate", "tasks", ["nq"], "a tuple of strings"),
        ("evaluate", "tasks", (1,), "a tuple of strings"),
        ("export", "hf", 1, "a value of type bool"),
        ("lm_ft", "retriever", 3, "a value of type RetrieverConfig or None"),
        ("lm_ft", "optimizer", None, "a value of type OptimizerConfig"),
    ],
)
def test_other_settings_are_held_to_their_types(
    settings_by_class: dict[type, Any], section: str, field: str, value: Any, expected: str
) -> None:
    settings = getattr(settings_by_class[config.Experiment], section)
    with pytest.raises(ValueError, match=rf"^{section}\.{field}: expected {expected}, got "):
        check_values(with_value(settings, field, value), section)


def test_a_choice_is_of_its_own_type() -> None:
    @dataclasses.dataclass
    class Choice:
        size: Literal[1, 2] = 1

    check_values(Choice())
    with pytest.raises(ValueError, match="^size: expected one of 1, 2, got True"):
        check_values(with_value(Choice(), "size", True))


def test_a_range_says_which_of_its_ends_belong_to_it() -> None:
    assert str(Range(0, 1, low_is_in=False)) == "0 < x <= 1"
    assert str(Range(0.5, 2, high_is_in=False)) == "0.5 <= x < 2"
    assert [Range(0, 1, low_is_in=False).holds(x) for x in (0, 0.5, 1, math.nan)] == [
        False,
        True,
        True,
        False,
    ]


@dataclasses.dataclass(frozen=True)
class Computed(Settings):
    """Settings as an experiment has them, without the type hooks of the package under test."""

    seed: Seed = 0
    tau: Temperature = 1.0
    keep: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    names: tuple[str, ...] = ()


@pytest.mark.parametrize("number", [np.float16, np.float32, np.float64])
def test_a_setting_that_numpy_computed_is_the_plain_one(number: type) -> None:
    plain = Computed(3, 0.1, True, "bfloat16", ("nq",))
    numpys = Computed(np.int64(3), number(0.1), np.bool_(True), np.str_("bfloat16"), (np.str_("nq"),))  # type: ignore
    check_values(numpys)
    assert numpys == plain and json.dumps(canonical(numpys)) == json.dumps(canonical(plain))
    assert [type(value) for value in vars(numpys).values()] == [int, float, bool, str, tuple]


def test_a_setting_that_numpy_computed_out_of_its_range_is_refused_as_a_plain_one() -> None:
    with pytest.raises(ValueError, match=r"tau: expected 1e-06 <= x <= 1e\+06, got nan\."):
        check_values(Computed(tau=np.float32("nan")))


def test_every_class_of_settings_takes_numbers_of_numpy() -> None:
    assert [kind for kind in SETTINGS if not issubclass(kind, Settings)] == []
