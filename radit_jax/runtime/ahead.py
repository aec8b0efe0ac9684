"""Work ahead of what waits for it: the host prepares what comes next while the devices compute."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

IN_FLIGHT = 2  # batches that the devices have been given beyond the one that is waited for
T = TypeVar("T")


def prefetched(items: Iterable[T]) -> Iterator[T]:
    """`items`, none of which is None; a thread makes the next one while one is used."""
    # `None` says that there is no next item.
    rest = iter(items)
    with ThreadPoolExecutor(1) as thread:
        next_item = thread.submit(next, rest, None)
        while (item := next_item.result()) is not None:
            next_item = thread.submit(next, rest, None)
            yield item


def delayed(items: Iterable[T], count: int) -> Iterator[T]:
    """`items`, each when `count` more have been made.

    >>> made = (print("made", number) or number for number in range(3))
    >>> for number in delayed(made, 1):
    ...     print("used", number)
    made 0
    made 1
    used 0
    made 2
    used 1
    used 2
    """
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting
