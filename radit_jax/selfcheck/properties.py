"""What is proved: a list that the proofs add themselves to when their modules are imported."""

import dataclasses
from collections.abc import Callable
from typing import Any, SupportsFloat

from radit_jax.selfcheck.tiny_models import TinyModels

Measure = Callable[[TinyModels], SupportsFloat]


@dataclasses.dataclass(frozen=True)
class Property:
    """What is proved, how to measure it, and the bound that the measurement must keep to."""

    name: str
    measure: Measure
    bound: float
    at_least: bool

    def holds(self, measured: float) -> bool:
        """Whether the measurement keeps to the bound; NaN never does."""
        if self.at_least:
            return bool(measured >= self.bound)
        return bool(measured <= self.bound)


PROPERTIES: list[Property] = []


def prove(name: str, bound: float, *, at_least: bool = False) -> Callable[..., Any]:
    """Add a measurement to the properties: by default an error, which may be at most `bound`."""

    def register(measure: Measure) -> Measure:
        PROPERTIES.append(Property(name, measure, bound, at_least))
        return measure

    return register
