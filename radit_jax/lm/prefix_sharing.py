"""Laying prompts out for `prefill_shared`, so that a prefix that several of them share is read once.

A chunk that several questions retrieved begins several prompts. Three steps save reading it again:

    group_by_shared_chunks   orders the questions so that those that share chunks are in one batch
    split_shared_prefixes    cuts each prompt of a batch into a shared prefix and a suffix of its own
    build_prefill_batch      pads them to rows, each distinct prefix once in every device group

All of it is numpy on the host. Rows are padded to few widths, because each is compiled.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from radit_jax.lm.scoring import NO_CHUNK, ChunkRows
from radit_jax.method.generation import Answer, PrefillBatch, TokenIds, TokenRows

PROMPTS_PER_PREFILL = 32  # enough to keep a CPU busy, few enough to be of similar length
SUFFIX_SLOTS = 32  # the narrowest row of suffixes; a prompt that shares no prefix has a suffix of this length
MAX_WHOLE_PROMPT = 2 * SUFFIX_SLOTS  # tokens; cut in two it would have no fewer slots, and more shapes


class DevicePlacement(NamedTuple):
    """How rows reach the devices that compute, and come back; the default is one process with one device."""

    put_rows: Callable[[Any], Any] = lambda rows: rows  # puts host arrays whose first axis counts rows
    gather: Callable[[Any], np.ndarray] = np.asarray  # brings a device array to the host
    data_parallel_size: int = 1  # a multiple of this many rows is divided among the devices

    def num_rows(self, count: int) -> int:
        """The least number of rows, `count` or more, that can be divided among the devices."""
        return round_up(count, self.data_parallel_size)

    def num_groups(self, count: int) -> int:
        """How many groups `count` rows form on the devices; no row moves from one group to another."""
        return 1 if count % self.data_parallel_size else self.data_parallel_size


ONE_DEVICE = DevicePlacement()


class Prompt(NamedTuple):
    """A prompt in two parts: the prefix may be shared with other prompts, the suffix is never empty."""

    prefix: Answer
    suffix: Answer


# ---- shared prefixes ----


def split_shared_prefixes(prompts: Sequence[TokenIds]) -> list[Prompt]:
    """Cut each prompt after the prefix that it shares with others.

    A shared prefix has at least half of each of its prompts. Prompts of `MAX_WHOLE_PROMPT` tokens or fewer
    stay whole.

    >>> passage = tuple(range(80))
    >>> for prompt in split_shared_prefixes([passage + (7, 8), (1, 3), passage + (9,)]):
    ...     print(len(prompt.prefix), prompt.suffix)
    80 (7, 8)
    0 (1, 3)
    80 (9,)
    """
    texts = [tuple(map(int, prompt)) for prompt in prompts]
    split = [Prompt((), ())] * len(texts)
    for group in _group_by_prefix(texts):
        # A prompt by itself is cut where its suffix fills the narrowest row, a short one nowhere.
        is_shared = len(group.members) > 1
        cut = group.shared_length if is_shared else max(0, group.longest - SUFFIX_SLOTS)
        if group.longest <= MAX_WHOLE_PROMPT:
            cut = 0
        for index in group.members:
            text = texts[index]
            split[index] = Prompt(prefix=text[:cut], suffix=text[cut:])
    return split


@dataclass
class _PrefixGroup:
    """Texts that begin with the same `shared_length` tokens, which are never all of a text."""

    members: list[int]  # numbers of the texts
    shared_length: int
    longest: int  # tokens of the longest text


def _group_by_prefix(texts: Sequence[Answer]) -> list[_PrefixGroup]:
    """The texts in groups that share a prefix worth reading once; a text without one is a group by itself."""
    groups: list[_PrefixGroup] = []
    # Sorted, texts with a common prefix are next to each other.
    for index in sorted(range(len(texts)), key=texts.__getitem__):
        text = texts[index]
        if groups:
            # Join the last group if the prefix that is left is still worth reading once.
            group = groups[-1]
            prefix = texts[group.members[0]][: group.shared_length]
            shared_length = _common_prefix_length(prefix, text[:-1])
            longest = max(group.longest, len(text))
            if 2 * shared_length >= longest:
                group.members.append(index)
                group.shared_length = shared_length
                group.longest = longest
                continue
        length = len(text)
        groups.append(_PrefixGroup([index], shared_length=length - 1, longest=length))
    return groups


def _common_prefix_length(a: Answer, b: Answer) -> int:
    """How many tokens both begin with."""
    length = 0
    for token, other in zip(a, b, strict=False):
        if token != other:
            break
        length += 1
    return length


# ---- batches of prompts ----


def prefill_batches(
    prompts: Sequence[TokenIds], capacity: int, placement: DevicePlacement
) -> Iterator[tuple[list[int], PrefillBatch]]:
    """Batches of prompts with the numbers of the prompts in each; all batches have the same size.

    That size follows from `capacity`, the most prompts that a call may have, and not from how many there are.
    Prompts are ordered by the length of their prefix, so that those of a batch are of similar length. The
    last prompt is repeated to fill the last batch.
    """
    split = split_shared_prefixes(prompts)
    batch_size = placement.num_rows(min(PROMPTS_PER_PREFILL, capacity))

    def by_length(index: int) -> tuple[int, Answer, int, Answer]:
        prefix, suffix = split[index]
        return len(prefix), prefix, len(suffix), suffix

    order = sorted(range(len(split)), key=by_length)
    num_missing = -len(order) % batch_size
    order += order[-1:] * num_missing
    for numbers in _batches(order, batch_size):
        batch = [split[index] for index in numbers]
        yield numbers, build_prefill_batch(batch, placement)


def build_prefill_batch(prompts: Sequence[Prompt], placement: DevicePlacement) -> PrefillBatch:
    """Lay prompts out for `prefill_shared`; every device group keeps its own distinct prefixes."""
    # 1) Find each group's prefixes: the distinct ones, unless nearly every prompt has its own. Then sharing
    # saves nothing, and the prefixes are those of the prompts, in their order.
    num_prompts = len(prompts)
    group_size = num_prompts // placement.num_groups(num_prompts)
    by_prompt = _batches([prompt.prefix for prompt in prompts], group_size)
    prefixes = [list(dict.fromkeys(group_prefixes)) for group_prefixes in by_prompt]
    slots = _prefix_slots(max(map(len, prefixes)), group_size)
    if slots == group_size:
        prefixes = by_prompt

    # 2) Number each prompt's prefix, and fill every group up to the same number of prefixes.
    num_groups = len(by_prompt)
    prefix_of = np.zeros((num_groups, group_size), np.int32)
    padded_prefixes: list[Answer] = []
    for row, group_prefixes in enumerate(prefixes):
        prefix_of[row] = [group_prefixes.index(prefix) for prefix in by_prompt[row]]
        num_empty = slots - len(group_prefixes)
        padded_prefixes += group_prefixes
        padded_prefixes += [()] * num_empty

    # 3) Pad both parts to rows. All prompts that are read whole have one width, where that holds them.
    prefix_rows = _pad_rows(padded_prefixes, 2 * SUFFIX_SLOTS)
    suffixes = [prompt.suffix for prompt in prompts]
    min_width = SUFFIX_SLOTS if prefix_rows.tokens.size else MAX_WHOLE_PROMPT
    suffix_rows = _pad_rows(suffixes, min_width)
    return PrefillBatch(
        prefixes=placement.put_rows(prefix_rows),
        prefix_of=prefix_of,
        suffixes=placement.put_rows(suffix_rows),
    )


def _prefix_slots(num_prefixes: int, group_size: int) -> int:
    """Room for the prefixes of a group: an eighth of its prompts, a quarter, half, three quarters or all."""
    eighth = -(-group_size // 8)
    sizes = (eighth, 2 * eighth, 4 * eighth, 6 * eighth)
    enough = [size for size in sizes if num_prefixes <= size < group_size]
    return min(enough, default=group_size)


def _pad_rows(texts: Sequence[TokenIds], min_width: int) -> TokenRows:
    """The texts as rows of `min_width` slots or more; of width 0 where all of them are empty."""
    lengths = np.array([len(text) for text in texts], np.int32)
    longest = int(lengths.max())
    width = 0
    if longest:
        width = max(min_width, padded_size(longest))
    tokens = np.zeros((len(texts), width), np.int32)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text
    arrays: Any = (tokens, lengths)
    return TokenRows(*arrays)


def _batches(items: list[Any], size: int) -> list[list[Any]]:
    """The items in lists of `size`; the last may be shorter."""
    starts = range(0, len(items), size)
    return [items[start : start + size] for start in starts]


def padded_size(size: int, unit: int = 32) -> int:
    """`size` rounded up to 1 to 8 units, 5 to 8 double units, 5 to 8 quadruple units, and so on.

    Few distinct sizes are compiled, and less than a fifth of each is padding, or at most a unit.

    >>> [padded_size(size) for size in (1, 33, 129, 257, 513)]
    [32, 64, 160, 320, 640]
    """
    while 8 * unit < size:
        unit *= 2
    return max(unit, round_up(size, unit))


def round_up(size: int, unit: int) -> int:
    """`size` rounded up to a multiple of `unit`."""
    return -(-size // unit) * unit


# ---- questions that share chunks ----


Heap = list[tuple[int, int]]  # (− chunks shared with the batch, question), the least first


def group_by_shared_chunks(rows: ChunkRows, batch_size: int) -> list[int]:
    """An order of the questions in which those that share chunks are in the same batch.

    A batch begins with the first question that is left. Each next question is the one that shares the most
    chunks with the batch so far; where none shares any, it is again the first that is left.

    >>> group_by_shared_chunks(np.array([[0, 1], [2, 3], [1, 4], [3, 0]]), batch_size=2)
    [0, 2, 1, 3]
    """
    questions_of_chunk: dict[int, list[int]] = defaultdict(list)
    for question, chunk_rows in enumerate(rows.tolist()):
        for chunk in set(chunk_rows) - {NO_CHUNK}:
            questions_of_chunk[chunk].append(question)

    # A dictionary without values: an ordered set that a question leaves in constant time.
    remaining = dict.fromkeys(range(len(rows)))
    order: list[int] = []
    while remaining:
        order += _next_batch(rows, questions_of_chunk, remaining, batch_size)
    return order


def _next_batch(
    rows: ChunkRows,
    questions_of_chunk: Mapping[int, Sequence[int]],
    remaining: dict[int, None],
    batch_size: int,
) -> list[int]:
    """The next batch of questions, removed from `remaining`."""
    batch: list[int] = []
    chunks_of_batch = {NO_CHUNK}
    num_shared: Counter[int] = Counter()  # chunks that a question shares with the batch
    # An entry stays when its count grows, and a better one joins it.
    heap: Heap = []
    while remaining and len(batch) < batch_size:
        question = _pop_remaining(heap, remaining)
        del remaining[question]
        batch.append(question)

        # Count the chunks that it brings for all other questions that have them.
        chunks = set(rows[question].tolist())
        new_chunks = chunks - chunks_of_batch
        chunks_of_batch |= new_chunks
        for chunk in sorted(new_chunks):
            for other in questions_of_chunk[chunk]:
                if other in remaining:
                    num_shared[other] += 1
                    entry = (-num_shared[other], other)
                    heapq.heappush(heap, entry)
    return batch


def _pop_remaining(heap: Heap, remaining: Mapping[int, None]) -> int:
    """The best question of the heap that is still remaining, or else the first that remains."""
    while heap:
        _, question = heapq.heappop(heap)
        if question in remaining:
            return question
    return next(iter(remaining))
