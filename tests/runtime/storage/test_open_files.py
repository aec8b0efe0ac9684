"""The number of files that a process may open is raised to what its user may."""

import resource
import subprocess
import sys

import numpy as np
import pytest

from radit_jax.runtime.storage.open_files import MappedArrays, max_open, raise_file_limit

RAISE = """
import resource, sys
from radit_jax.runtime.storage.open_files import raise_file_limit
soft, hard = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
raise_file_limit()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("soft", "hard", "raised"), [(64, 512, 512), (512, 512, 512)])
def test_the_soft_limit_becomes_the_hard_one(soft, hard, raised):
    command = [sys.executable, "-c", RAISE, str(soft), str(hard)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(raised), str(hard)]
    assert not run.stderr


def test_at_most_65536_are_asked_for_and_none_are_given_up(monkeypatch):
    asked = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    for limits in [(1024, resource.RLIM_INFINITY), (1024, 1 << 30), (1 << 20, 1 << 30)]:
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        raise_file_limit()
    assert asked == [(65_536, resource.RLIM_INFINITY), (65_536, 1 << 30)]


def test_a_limit_that_cannot_be_raised_is_a_line_on_stderr(monkeypatch, capsys):
    def refuse(*_):
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    raise_file_limit()
    assert "warning: this process may open 1024 files at once, not 4096" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("soft", "most", "stay"), [(1024, 1000, 256), (1024, 100, 100), (3, 9, 1), (resource.RLIM_INFINITY, 9, 9)]
)
def test_a_quarter_of_what_may_be_open_is_for_one_kind(monkeypatch, soft, most, stay):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    assert max_open(most) == stay


@pytest.fixture
def three_stay(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (12, 12))


def test_arrays_are_opened_when_they_are_read_and_the_last_used_stay(three_stay):
    opened = []

    def load(name):
        opened.append(name)
        return np.full(2, int(name))

    arrays = MappedArrays(["0", "1", "2", "3"], load)
    assert opened == [] and len(arrays) == 4
    assert [int(array[0]) for array in arrays] == [0, 1, 2, 3]
    arrays[3], arrays[0]  # noqa: B018 - the first one was closed, for the last
    assert opened == ["0", "1", "2", "3", "0"]


def test_an_array_that_was_replaced_is_refused(three_stay):
    lengths = {"a": 2, "b": 2, "c": 2, "d": 2}
    arrays = MappedArrays(list("abcd"), lambda name: np.zeros(lengths[name]))
    assert [array.shape for array in arrays] == [(2,)] * 4
    lengths["a"] = 3
    with pytest.raises(ValueError, match=r"a: expected the \(2,\) numbers .* before, got \(3,\)"):
        arrays[0]
