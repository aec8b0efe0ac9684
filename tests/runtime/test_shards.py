"""Which shards a process makes, what it waits for, and on which devices a model lies."""

from types import SimpleNamespace

import pytest

from radit_jax.errors import Stopped
from radit_jax.runtime import shards
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.memory import DoesNotFitError
from radit_jax.runtime.shards import Shards, load_on_own_devices
from radit_jax.runtime.storage.stage_folder import StageFolder

SIZES = {"a": 4, "b": 4, "c": 4, "d": 4, "e": 2}


@pytest.fixture
def folder(tmp_path):
    return StageFolder(tmp_path / "embed" / ("a" * 12))


class Program(processes.ProcessGroup):
    """One of three processes; the others agree with it at once."""

    def __init__(self, number):
        super().__init__(processes.ProcessTopology("h:1", 3, number))
        self.met = []

    def broadcast(self, where, value=None):
        if self.is_multiprocess:
            self.met.append(where)
        if self.stop_signal:
            raise Stopped(where, self.stop_signal)
        return value

    def on_process_zero(self, where, function):
        return function()


@pytest.fixture
def as_process(monkeypatch):
    def become(number):
        program = Program(number)
        monkeypatch.setattr(processes, "_process_group", program)
        return program

    return become


def test_of_the_missing_shards_a_process_makes_every_third_and_all_meet_after_each_turn(folder, as_process):
    folder.write("b", b"of an earlier run")
    made = {}
    for number in range(3):
        program = as_process(number)
        of_process = Shards.find(folder, SIZES)
        assert of_process.missing == ["a", "c", "d", "e"]
        assert list(of_process.turns()) == [["a", "c", "d"], ["e"]]
        assert len(program.met) == 2
        made[number] = of_process.own
    assert made == {0: ["a", "e"], 1: ["c"], 2: ["d"]}


def test_a_bar_counts_what_the_process_makes_and_its_part_of_what_was_made(folder, as_process):
    folder.write("b", b"of an earlier run")
    as_process(0)
    bar = Shards.find(folder, SIZES).progress("embed", "passages")
    assert (bar.total, bar.done) == (6, 0)  # 18 units over three processes: this one makes all of its part
    as_process(1)
    bar = Shards.find(folder, SIZES).progress("embed", "passages")
    assert (bar.total, bar.done) == (6, 2)


def test_a_process_writes_its_own_by_itself_and_one_that_is_stopped_leaves_the_turn(folder, as_process):
    program = as_process(1)
    written = []

    def write(name, value):
        assert not processes.is_multiprocess()
        written.append((name, value))
        if len(written) == 1:
            program.stop_signal = 15

    def made():
        yield "first"
        processes.stop_if_asked("in the middle of the second")
        raise AssertionError("it goes on")

    of_process = Shards.find(folder, {str(number): 1 for number in range(6)})
    with pytest.raises(Stopped):
        of_process.write_each(made(), write)
    assert written == [("1", "first")]


def test_with_a_model_on_all_devices_all_make_each_shard_together(folder, as_process):
    as_process(2)
    together = Shards.find(folder, SIZES, own=False)
    assert together.own == list(SIZES)
    written = []

    def write(name, value):
        assert processes.is_multiprocess()
        written.append(name)

    together.write_each(SIZES.values(), write)
    assert written == list(SIZES)


def load_model(loaded, fails=False):
    def load(own):
        loaded.append(own)
        if own and fails:
            raise DoesNotFitError("the model: expected …")
        return SimpleNamespace(params=None)

    return load_on_own_devices(load, lambda model: model.params)


def test_a_model_is_on_a_processs_own_devices_unless_any_process_has_too_little_room(as_process, monkeypatch):
    loaded = []
    assert load_model(loaded)[1] is False
    assert loaded == [False]  # a single process has all devices
    as_process(0)
    others = [False]
    monkeypatch.setattr(shards, "any_process", lambda flag: flag or others[0])
    loaded.clear()
    assert load_model(loaded)[1] is True and loaded == [True]
    loaded.clear()
    assert load_model(loaded, fails=True)[1] is False and loaded == [True, False]
    others[0], loaded[:] = True, []
    assert load_model(loaded)[1] is False and loaded == [True, False]
