"""The watchdog over training steps."""

import threading
import time

import pytest

from radit_jax.runtime.distributed import processes
from radit_jax.runtime.monitoring import watchdog as module
from radit_jax.runtime.monitoring.watchdog import Watchdog, end_hanging, watching


def test_a_wait_beyond_the_limit_is_told_once():
    told = []
    came = threading.Event()

    def tell(what, seconds):
        told.append((what, seconds))
        came.set()

    watchdog = Watchdog(tell, limit=0.05)
    with watchdog.waiting_for("step 3"):
        assert came.wait(20)
        time.sleep(0.2)
    watchdog.close()
    ((what, seconds),) = told
    assert what == "step 3" and seconds > 0.05


def test_many_short_waits_and_work_between_them_are_no_hang():
    watchdog = Watchdog(lambda what, seconds: pytest.fail(what), limit=60.0)
    begin = time.monotonic()
    for number in range(3):
        with watchdog.waiting_for(f"step {number}"):
            # By the time of each wait alone, however long the waits are together.
            assert watchdog._wait is not None
            since = watchdog._wait.since
            assert since >= begin
            assert watchdog.overdue(since + 59) is None
            assert watchdog.overdue(since + 61) == (f"step {number}", since)
        assert watchdog._wait is None
        assert watchdog.overdue(since + 3600) is None
    watchdog.close()
    assert not watchdog._thread.is_alive()


def test_one_process_says_where_it_is_and_goes_on(capfd):
    end_hanging("lm_ft: step 3", 1800.4)
    said = capfd.readouterr().err
    assert "lm_ft: step 3 has not ended for 1800 s (RADIT_HANG_SECONDS sets the limit). It goes on." in said
    assert "test_one_process_says_where_it_is_and_goes_on" in said  # the stack


def test_one_of_several_processes_ends_as_one_that_was_stopped(monkeypatch, capfd):
    codes = []
    monkeypatch.setattr(processes, "is_multiprocess", lambda: True)
    monkeypatch.setattr(module.os, "_exit", codes.append)
    end_hanging("lm_ft: step 3", 1800.4)
    assert codes == [75]
    assert "the same command goes on from the last checkpoint" in capfd.readouterr().err


def test_the_environment_sets_the_limit():
    with watching("lm_ft", {"RADIT_HANG_SECONDS": "5"}) as watchdog:
        assert watchdog._limit == 5
    with watching("lm_ft", {}) as watchdog:
        assert watchdog._limit == module.HANG_SECONDS
    with (
        pytest.raises(ValueError, match=r"RADIT_HANG_SECONDS: expected 0 < x <= 86400.0, got '0'"),
        watching("lm_ft", {"RADIT_HANG_SECONDS": "0"}),
    ):
        pass
