"""How many files this process holds open at once: few of a corpus' thousands."""

import functools
import os
import sys
from collections.abc import Callable, Sequence

import numpy as np

_MOST_MAPPED = 1 << 14  # arrays: a mapped one takes no memory of its own
_MOST_ALLOWED = 1 << 16  # some programs that are started from here close every number up to the limit


def raise_file_limit() -> None:
    """Let this process open as many files as its user may (`ulimit -Hn`); if it cannot, say so on stderr."""
    if os.name == "nt":  # which has no such limit
        return
    import resource

    # The hard limit may be "none", which is a number below zero.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = _MOST_ALLOWED if hard == resource.RLIM_INFINITY else min(hard, _MOST_ALLOWED)
    if soft == resource.RLIM_INFINITY or soft >= allowed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (ValueError, OSError) as error:
        print(
            f"warning: this process may open {soft} files at once, not {allowed} ({error})", file=sys.stderr
        )


def max_open(most: int) -> int:
    """How many files of one kind may stay open: `most`, or a quarter of what this process may open."""
    if os.name == "nt":
        return min(most, 128)
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else max(1, min(most, soft // 4))


class MappedArrays:
    """Arrays in files, each mapped when it is asked for; those that were used last stay mapped.

    `names` are what errors call the files, and `load` maps the one of a name. A mapped array holds its file
    open, and so does every view of it.
    """

    def __init__(self, names: Sequence[str], load: Callable[[str], np.ndarray]):
        self._names = list(names)
        self._load = functools.lru_cache(max_open(_MOST_MAPPED))(load)
        self._shapes: dict[int, tuple[int, ...]] = {}  # as they were when each file was opened first

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, number: int) -> np.ndarray:
        name = self._names[number]
        array = self._load(name)
        # A file that is opened again may have been replaced in the meantime.
        shape = self._shapes.setdefault(number, array.shape)
        if array.shape != shape:
            raise ValueError(
                f"{name}: expected the {shape} numbers that were there before, got {array.shape}. "
                "Run again when nothing else writes into the folder."
            )
        return array
