"""Which items make up the batch of each step."""

from collections.abc import Callable
from typing import Any

import grain


def shuffled(count: int, *, batch_size: int, seed: int) -> Callable[[int], list[int]]:
    """The numbers below `count` that step s, from 0, takes; epochs follow each other in fresh orders.

    They depend on the arguments and the step only, so a run that resumes needs no iterator's state.

    >>> numbers = shuffled(3, batch_size=6, seed=0)
    >>> sorted(numbers(0))
    [0, 0, 1, 1, 2, 2]
    """
    order: Any = grain.MapDataset.range(count).seed(seed).shuffle().repeat()
    return lambda step: [order[i] for i in range(step * batch_size, (step + 1) * batch_size)]
