"""Waiting times from the environment."""

import pytest

from radit_jax.runtime.distributed.environment import seconds_of


def test_a_variable_sets_the_seconds():
    assert seconds_of({"RADIT_JOIN_SECONDS": "7.5"}, "RADIT_JOIN_SECONDS", 45.0, 100.0) == 7.5
    assert seconds_of({}, "RADIT_JOIN_SECONDS", 45.0, 100.0) == 45.0


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "soon", "1e9"])
def test_a_patience_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="^RADIT_JOIN_SECONDS: expected 0 < x <= 100.0, got"):
        seconds_of({"RADIT_JOIN_SECONDS": text}, "RADIT_JOIN_SECONDS", 45.0, 100.0)
