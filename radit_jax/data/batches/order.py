"""Which items make up the batch of each step."""

from collections.abc import Callable
from typing import Any


def shuffled(count: int, *, batch_size: int, seed: int) -> Callable[[int], list[int]]:
    """The numbers below `count` that step s, from 0, takes; epochs follow each other in fresh orders.

    They depend on the arguments and the step only, so a run that resumes needs no iterator's state.

    >>> numbers = shuffled(3, batch_size=6, seed=0)
    >>> sorted(numbers(0))
    [0, 0, 1, 1, 2, 2]
    """
    import grain  # which only training needs

    # No epoch is held in memory: Grain computes what stands at a place of the order.
    numbers = grain.MapDataset.range(count).seed(seed)
    order: Any = numbers.shuffle().repeat()

    def numbers_of(step: int) -> list[int]:
        start = step * batch_size
        return [order[place] for place in range(start, start + batch_size)]

    return numbers_of
