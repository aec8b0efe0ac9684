"""Fields of others' JSON objects, read by a table for each kind of file, with errors that name the field."""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from radit_jax.runtime.storage.files import as_object

REMEDY = "Fetch the checkpoint again, or use another."
REQUIRED = object()  # in place of a default
SIZE = (1, 1 << 24)  # the range of a vocabulary or a width
_MAX_SHOWN = 60  # characters of a value in an error
_MAX_NUMBER = 1e300  # of any field; JSON can spell larger ones
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


class Field(NamedTuple):
    """What a field may hold: a value of `kind` (int, float, bool or str), a number from `low` to `high`."""

    ours: str  # the name of our setting
    kind: type
    low: float = 0
    high: float = math.inf
    default: Any = REQUIRED  # where the field is absent or null


def read_fields(
    values: Mapping[str, Any],
    table: Mapping[str, Field],
    where: str,
    remedy: str,
) -> dict[str, Any]:
    """The values of the fields in `table` by our names; ValueError for a value that does not fit.

    >>> read_fields({"size": 8}, {"size": Field("width", int, 1, 99)}, "here", "Fetch it again.")
    {'width': 8}
    >>> read_fields({"size": "8"}, {"size": Field("width", int, 1, 99)}, "here", "Fetch it again.")
    Traceback (most recent call last):
    ValueError: here: expected size to be a whole number from 1 to 99, got "8". Fetch it again.
    """
    # 1) One error for all that is missing.
    required = [name for name, field in table.items() if field.default is REQUIRED]
    missing = [name for name in required if values.get(name) is None]
    if missing:
        raise ValueError(f"{where}: expected {', '.join(missing)}, got none. {remedy}")
    # 2) The values; null counts as absent.
    by_our_names = {}
    for name, field in table.items():
        value = values.get(name)
        if value is None:
            by_our_names[field.ours] = field.default
        else:
            by_our_names[field.ours] = _check(value, name, field, where, remedy)
    return by_our_names


def shown_value(value: Any) -> str:
    """A value of others' file as an error shows it: JSON on one line, cut to 60 characters."""
    try:
        text = json.dumps(value, ensure_ascii=True)
    except (TypeError, ValueError, RecursionError):
        text = ascii(value)
    if len(text) > _MAX_SHOWN:
        return text[: _MAX_SHOWN - 3] + "..."
    return text


def _check(
    value: Any,
    name: str,
    field: Field,
    where: str,
    remedy: str,
) -> Any:
    """`value` as the field's kind; ValueError where it is of another kind or out of range."""
    is_number = field.kind in (int, float)
    fits = _has_kind(value, field.kind)
    if fits and is_number:
        fits = _is_in_range(value, field)
    if fits:
        return field.kind(value)
    # The error says what would fit.
    expected = f"{name} to be {_WORDS[field.kind]}"
    if is_number:
        expected += f" from {field.low:.12g} to {field.high:.12g}"
    raise ValueError(f"{where}: expected {expected}, got {shown_value(value)}. {remedy}")


def _has_kind(value: Any, kind: type) -> bool:
    # In Python a bool is an int, and in JSON an int may stand for a float.
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _is_in_range(value: int | float, field: Field) -> bool:
    if not abs(value) < _MAX_NUMBER:  # NaN, too
        return False
    return field.low <= value <= field.high


def as_json(config: Any, table: Mapping[str, Field]) -> dict[str, Any]:
    """The settings in `table` by Hugging Face's names."""
    values = {}
    for name, field in table.items():
        values[name] = getattr(config, field.ours)
    return values


def object_in(values: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """The object in a field; empty where the field is absent or null."""
    if values.get(name) is None:
        return {}
    return as_object(values[name], f"{where}: {name}", REMEDY)


def check_fixed(values: Mapping[str, Any], where: str, **expected: Any) -> None:
    """Raise ValueError where a field says that this is another network than ours."""
    for name, value in expected.items():
        found = values.get(name)
        is_said = found is not None
        if is_said and found != value:
            raise ValueError(
                f"{where}: expected {name} {shown_value(value)}, got {shown_value(found)}. "
                "Use such a checkpoint."
            )
