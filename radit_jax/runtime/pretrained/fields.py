"""Fields of JSON objects that others wrote: a table for each kind of file, and errors that name the field."""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

REQUIRED = object()
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


class Field(NamedTuple):
    """What a field may hold: a `kind` (int, float, bool or str), and of a number its range, ends included."""

    ours: str  # what a setting of ours calls it
    kind: type
    low: float = 0
    high: float = math.inf
    default: Any = REQUIRED  # where the field is absent or null


def read_fields(
    values: Mapping[str, Any], table: Mapping[str, Field], where: str, remedy: str
) -> dict[str, Any]:
    """The values of the fields in `table` by our names; one that does not fit is a ValueError.

    >>> read_fields({"size": 8}, {"size": Field("width", int, 1, 99)}, "here", "Fetch it again.")
    {'width': 8}
    >>> read_fields({"size": "8"}, {"size": Field("width", int, 1, 99)}, "here", "Fetch it again.")
    Traceback (most recent call last):
    ValueError: here: expected size to be a whole number from 1 to 99, got "8". Fetch it again.
    """
    missing = [
        name for name, field in table.items() if field.default is REQUIRED and values.get(name) is None
    ]
    if missing:
        raise ValueError(f"{where}: expected {', '.join(missing)}, got none. {remedy}")
    return {
        field.ours: field.default
        if values.get(name) is None
        else _value(values[name], name, field, where, remedy)
        for name, field in table.items()
    }


def shown_value(value: Any) -> str:
    """A value of a file of others as an error shows it: as JSON, on one line, cut short."""
    try:
        text = json.dumps(value, ensure_ascii=True)
    except (TypeError, ValueError, RecursionError):
        text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _value(value: Any, name: str, field: Field, where: str, remedy: str) -> Any:
    kinds = (int, float) if field.kind is float else (field.kind,)
    right = isinstance(value, kinds) and (field.kind is bool or not isinstance(value, bool))
    if right and field.kind in (int, float):
        right = math.isfinite(value) and field.low <= value <= field.high if abs(value) < 1e300 else False
    if not right:
        span = f" from {field.low:.12g} to {field.high:.12g}" if field.kind in (int, float) else ""
        raise ValueError(
            f"{where}: expected {name} to be {_WORDS[field.kind]}{span}, got {shown_value(value)}. {remedy}"
        )
    return field.kind(value)
