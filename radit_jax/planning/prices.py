"""Prices of chips, by a file that the user may edit."""

import tomllib
from pathlib import Path
from typing import NamedTuple

from radit_jax.runtime.distributed.accelerators import CHIPS

OWN_FILE = Path(__file__).with_name("prices.toml")
FIELDS = {"price", "currency", "date", "source"}


class Price(NamedTuple):
    """What a chip costs an hour, and who says so."""

    price: float
    currency: str
    date: str
    source: str


def read_prices(file: Path = OWN_FILE) -> dict[str, Price]:
    """The price of each kind of chip that the file names; ValueError for what it should not hold."""
    example = f"Write it like the example in {OWN_FILE}."
    try:
        table = tomllib.loads(file.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{file}: expected a table of prices in TOML, got {error}. {example}") from None
    prices = {}
    for kind, entry in table.items():
        is_known = kind in CHIPS and isinstance(entry, dict) and set(entry) == FIELDS
        if not is_known or not isinstance(entry["price"], int | float) or entry["price"] < 0:
            raise ValueError(
                f"{file}: expected one of {', '.join(CHIPS)} with a price >= 0, a currency, a date and a "
                f"source, got {kind}. {example}"
            )
        prices[kind] = Price(float(entry["price"]), *(str(entry[name]) for name in Price._fields[1:]))
    return prices
