"""Examples that are cut from chunks of the corpus: drawn, read and cut in shares of several processes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.records import Chunk, Example
from radit_jax.runtime.distributed import processes

CHUNKS_AT_ONCE = 1024  # in memory while examples are cut from them
SPARE_CHUNKS = 16  # read with them, in place of those that give no example

Cut = Callable[[Chunk], Example | None]


class CutExamples(NamedTuple):
    """Examples cut from the corpus, and what became of the chunks that were drawn for them."""

    examples: list[Example]
    sources: list[int]  # the rows of their chunks
    num_asked: int
    num_skipped: int  # chunks that gave no example


def cut_examples(chunks: Chunks, num_asked: int, cut: Cut, seed: int) -> CutExamples:
    """At most `num_asked` examples, each from a drawn chunk, on every process."""
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(len(chunks)).tolist()
    # A chunk that gives no example is replaced by the next one.
    made = CutExamples([], [], num_asked, 0)
    start = 0
    while start < len(order) and len(made.examples) < num_asked:
        num_missing = num_asked - len(made.examples)
        rows = order[start : start + min(CHUNKS_AT_ONCE, num_missing + SPARE_CHUNKS)]
        made = _with(made, rows, _cut_in_shares(chunks, rows, cut))
        start += len(rows)
    return made


def _cut_in_shares(chunks: Chunks, rows: Sequence[int], cut: Cut) -> list[Example | None]:
    """What each of these chunks gives; of several processes each reads some of them."""

    # What goes to the others is JSON.
    def cut_own(own: Sequence[int]) -> list[dict[str, Any] | None]:
        examples = map(cut, chunks.take(own))
        return [example and dataclasses.asdict(example) for example in examples]

    records = processes.in_shares("examples of the corpus", rows, cut_own)
    return [None if record is None else Example(**record) for record in records]


def _with(made: CutExamples, rows: Sequence[int], examples: Sequence[Example | None]) -> CutExamples:
    """`made` with more examples, up to the number that was asked for."""
    num_skipped = made.num_skipped
    for row, example in zip(rows, examples, strict=True):
        if len(made.examples) == made.num_asked:
            break
        if example is None:
            num_skipped += 1
            continue
        made.examples.append(example)
        made.sources.append(row)
    return made._replace(num_skipped=num_skipped)
