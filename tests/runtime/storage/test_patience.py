"""Requests to a store that is busy."""

import errno

import pytest

from radit_jax.runtime.storage import patience
from radit_jax.runtime.storage.patience import is_busy, patiently


class Answer(Exception):
    """An error as gcsfs raises it, with a status; or as botocore does, with a response."""

    def __init__(self, code=None, response=None):
        super().__init__(f"answer {code}")
        self.code, self.response = code, response


@pytest.fixture
def waits(monkeypatch):
    """The seconds that were waited, without waiting."""
    seconds = []
    monkeypatch.setattr(patience.time, "sleep", seconds.append)
    return seconds


def failing(times, error):
    """A request that fails so many times, and then gives what it was asked for."""
    answers = [error] * times

    def request(name, *, version):
        if answers:
            raise answers.pop()
        return name, version

    return request


def test_a_store_that_is_busy_for_a_minute_is_asked_again(waits, capsys):
    assert patiently("gs://lab/x", failing(6, Answer(503)), "x", version=2) == ("x", 2)
    assert waits == [1, 2, 4, 8, 16, 32] and sum(waits) > 60
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "gs://lab/x: the store is busy (answer 503); again in 8 s" and len(said) == 3


def test_a_store_that_stays_busy_is_one_error(waits):
    message = "gs://lab/x: expected an answer within 123 s, got answer 429. Run the same command"
    with pytest.raises(ValueError, match=message):
        patiently("gs://lab/x", failing(99, Answer(429)), "x", version=2)
    assert waits == list(patience.WAITS)


@pytest.mark.parametrize("error", [Answer(403), FileNotFoundError("x"), OSError(errno.ENOSPC, "full")])
def test_any_other_error_is_raised_at_once(waits, error):
    with pytest.raises(type(error)):
        patiently("gs://lab/x", failing(1, error), "x", version=2)
    assert waits == []


def test_each_packages_errors_are_understood():
    assert is_busy(Answer(429)) and is_busy(OSError(errno.EBUSY, "SlowDown"))
    assert is_busy(Answer(response={"ResponseMetadata": {"HTTPStatusCode": 503}}))
    assert not is_busy(Answer(404)) and not is_busy(Answer()) and not is_busy(ValueError("x"))
