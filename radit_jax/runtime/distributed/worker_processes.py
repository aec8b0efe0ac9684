"""A host's other cores: processes that do work for this one, whose results are used in order.

They are spawned, since a process that runs jax or a tokeniser's threads must not be forked. What they run is
found by its module's name, so the program's main module has to do nothing when it is imported.
"""

import collections
import concurrent.futures
import concurrent.futures.process
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 2  # items for each process that are begun before their results are used


def num_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], num_processes: int
) -> Generator[Result, None, None]:
    """`function` of each item, in order; few results wait to be used, so memory does not grow with the items.

    With fewer than two processes this one does the work. An error of `function` is raised where its result
    would be. ValueError where a process ends before it has answered.
    """
    if num_processes < 2:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    waiting: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
    with concurrent.futures.ProcessPoolExecutor(num_processes, context, _begin) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > _AHEAD * num_processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise ValueError(
                f"worker processes: expected {num_processes} to go on, got the end of one ({error}). Look "
                "whether this host is short of memory, and whether the script that was started runs only "
                "below `if __name__ == '__main__'`; then start the same command again."
            ) from None
        finally:
            # What nobody waits for is not begun.
            pool.shutdown(wait=False, cancel_futures=True)


def _begin() -> None:
    """In a new process: leave stops to the one that started it, and end when that one does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the end of the process that started this one, which a kill gives no time to say so."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
