"""Other processes of a host work in order, and end with the one that started them."""

import math
import os
import signal
import subprocess
import sys
import time

import pytest

from radit_jax.runtime.distributed.worker_processes import map_in_order, num_cores


@pytest.mark.parametrize("num_processes", [1, 2])
def test_results_come_in_order_and_few_items_are_taken_before_they_are_used(num_processes):
    taken = []
    items = (taken.append(number) or number for number in range(20))
    results = map_in_order(math.sqrt, items, num_processes)
    assert next(results) == 0.0
    assert len(taken) <= 2 * num_processes + 1
    assert list(results) == [math.sqrt(number) for number in range(1, 20)]


def test_an_error_is_raised_where_its_result_would_be():
    results = map_in_order(math.sqrt, [4.0, -1.0, 9.0], 2)
    assert next(results) == 2.0
    with pytest.raises(ValueError, match="math domain error|nonnegative"):
        next(results)


def test_the_end_of_a_process_is_one_error():
    with pytest.raises(ValueError, match="worker processes: expected 2 to go on, got the end of one"):
        list(map_in_order(os._exit, [1], 2))


def test_the_cores_are_those_that_this_process_may_use():
    assert 1 <= num_cores() <= os.cpu_count()


PARENT = """
import os, signal, subprocess, sys
from radit_jax.runtime.distributed.worker_processes import map_in_order

if __name__ == "__main__":
    results = map_in_order(subprocess.check_output, [["sh", "-c", "echo $PPID"]] * 9, 2)
    print(next(results).decode(), next(results).decode(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_when_the_process_that_started_them_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    killed = subprocess.run([sys.executable, str(tmp_path / "parent.py")], stdout=subprocess.PIPE, text=True)
    assert killed.returncode == -signal.SIGKILL
    workers = {int(number) for number in killed.stdout.split()}
    assert workers
    deadline = time.monotonic() + 20
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))


def is_running(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    # A process whose end nobody has asked for is still listed.
    with open(f"/proc/{number}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"
