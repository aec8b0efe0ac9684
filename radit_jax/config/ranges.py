"""The numbers that a setting may be, declared in its type, and one check of all of them.

    batch_size: PositiveInt = 64

means the whole numbers from 1; `check_values` refuses a dataclass that holds anything else, by its path.
"""

import dataclasses
import types
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import numpy as np

_MOST = 2**31 - 1  # whole numbers reach the devices as int32


class Range(NamedTuple):
    """The numbers from `low` to `high`; the ends belong to it unless said otherwise. NaN is in none."""

    low: int | float
    high: int | float
    low_is_in: bool = True
    high_is_in: bool = True

    def holds(self, value: int | float) -> bool:
        """Whether `value` is in the range."""
        above = value >= self.low if self.low_is_in else value > self.low
        below = value <= self.high if self.high_is_in else value < self.high
        return above and below

    def __str__(self) -> str:
        """For example `0 < x <= 1`."""
        left, right = ("<=" if self.low_is_in else "<"), ("<=" if self.high_is_in else "<")
        return f"{_number(self.low)} {left} x {right} {_number(self.high)}"


PositiveInt = Annotated[int, Range(1, _MOST)]
NonNegativeInt = Annotated[int, Range(0, _MOST)]
Seed = Annotated[int, Range(0, 2**32 - 1)]  # what Grain and numpy take

# Floats reach the devices as float32, which holds 1e-38 to 3e38; these leave room to multiply.
PositiveFloat = Annotated[float, Range(1e-30, 1e30)]
NonNegativeFloat = Annotated[float, Range(0, 1e30)]
Temperature = Annotated[float, Range(1e-6, 1e6)]  # scores are divided by it
Fraction = Annotated[float, Range(0, 1)]
PositiveFraction = Annotated[float, Range(0, 1, low_is_in=False)]
FractionBelowOne = Annotated[float, Range(0, 1, high_is_in=False)]


class Settings:
    """The base of settings' dataclasses: what an experiment computes by numpy becomes Python's own value."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, _plain(value))


def added(default: Any) -> Any:
    """The default of a field that came after release 0.1.

    Fingerprints leave the field out while it has this value, so that a finished stage stays current.
    """
    return dataclasses.field(default=default, metadata={"added": True})


def _plain(value: Any) -> Any:
    """Python's value of a scalar of numpy, also inside a tuple.

    >>> _plain((np.int64(3), np.float32(0.1), "text"))
    (3, 0.1, 'text')
    """
    if type(value) is tuple:
        return tuple(_plain(item) for item in value)
    if isinstance(value, np.floating):  # the shortest digits that mean it: 0.1, not 0.10000000149011612
        return float(str(value))
    return value.item() if isinstance(value, np.bool_ | np.integer | np.str_) else value


def check_values(settings: Any, where: str = "") -> None:
    """Refuse a dataclass with a field, its own or an inner one's, that its type and range do not allow.

    Raises ValueError, which names the field by its path: `lm_ft.optimizer.b1: expected 0 <= x < 1, got nan.`
    """
    kinds = get_type_hints(type(settings), include_extras=True)
    for field in dataclasses.fields(settings):
        value, path = getattr(settings, field.name), f"{where}.{field.name}".lstrip(".")
        if not _allows(kinds[field.name], value):
            raise ValueError(f"{path}: expected {_words(kinds[field.name])}, got {value!r}.")
        if dataclasses.is_dataclass(value):
            check_values(value, path)


def _allows(kind: Any, value: Any) -> bool:
    """Whether `value` is of the annotated type `kind`; True is no number, and a whole number is a float."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        numbers = (int,) if args[0] is int else (int, float)
        return type(value) in numbers and args[1].holds(value)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in args)
    if origin is tuple:
        return isinstance(value, tuple) and all(_allows(args[0], item) for item in value)
    if origin in (Union, types.UnionType):
        return any(_allows(choice, value) for choice in args)
    return isinstance(value, kind)


def _words(kind: Any) -> str:
    """What `kind` allows, for an error."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return f"a whole number, {args[1]}" if args[0] is int else str(args[1])
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin is tuple:
        return "a tuple of strings"
    if origin in (Union, types.UnionType):
        return " or ".join(_words(choice) for choice in args)
    return "None" if kind is types.NoneType else f"a value of type {kind.__name__}"


def _number(value: int | float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
