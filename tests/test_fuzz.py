"""Whatever is read, a result comes or an error of our own; tests/fuzzing.py shows a failing input again."""

import gc
import pathlib

import pytest
from fuzz_readers import READERS
from fuzzing import fault, write

# Orbax leaves coroutines behind where an array is damaged, and Python says so when they are collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
MORE = 10  # times as many inputs in the slow tests, the next ones


def faults(name: str, numbers: range) -> str:
    found = [fault(name, READERS[name], number) for number in numbers]
    gc.collect()
    return "\n".join([text for text in found if text][:10])


@pytest.mark.parametrize("name", READERS)
def test_a_broken_input_gives_a_result_or_an_error_of_our_own(name: str) -> None:
    found = faults(name, range(READERS[name].count))
    assert not found, found


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_broken_inputs_do_so_too(name: str) -> None:
    count = READERS[name].count
    found = faults(name, range(count, count * (MORE + 1)))
    assert not found, found


def test_there_are_two_thousand_inputs_and_twenty_thousand_slow_ones() -> None:
    count = sum(reader.count for reader in READERS.values())
    assert count >= 2000 and count * MORE >= 20_000


def test_every_input_is_read_while_it_is_whole(tmp_path: pathlib.Path) -> None:
    for name, reader in READERS.items():
        write(tmp_path / name, reader.files())
        reader.read(tmp_path / name)
