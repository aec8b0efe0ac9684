"""Ids that stand twice."""

import pytest

from radit_jax.data.readers.unique_ids import UniqueIds


def test_ids_that_come_twice_are_found_whatever_their_number(monkeypatch):
    monkeypatch.setattr("radit_jax.data.readers.unique_ids._HASHES_AT_ONCE", 16)
    named = [(str(n), f"line {n}") for n in range(100)]
    with UniqueIds() as ids:
        for name, _ in named:
            ids.add(name)
        ids.check(lambda: named)
        ids.add("41")
        with pytest.raises(ValueError, match="line 100: expected an id .*, got '41', .* of line 41. Rename"):
            ids.check(lambda: [*named, ("41", "line 100")])
