"""Waiting times that the environment may set: what a cluster needs, and no result depends on."""

import contextlib
from collections.abc import Mapping


def seconds_of(environment: Mapping[str, str], name: str, default: float, maximum: float) -> float:
    """The seconds that the variable `name` sets, or `default`; ValueError unless 0 < x <= `maximum`."""
    text = environment.get(name, str(default))
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= maximum:
            return float(text)
    raise ValueError(
        f"{name}: expected 0 < x <= {maximum}, got {text!r}. Set it to a number of seconds, or unset it."
    )
