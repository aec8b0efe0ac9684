"""Laying candidate answers out for `score_answers`, in rows after prompts that have been read.

    unique_answers    greedy answers → the candidates of each question
    scoring_batches   the candidates of each prompt → batches of rows, several for a prompt with many
    pack_answers      the candidates of each row → tokens, positions and targets (`PackedAnswers`)

All of it is numpy on the host. Rows are as long as the candidates of a usual prompt: longer ones would be
empty for the most part, and each row reads the keys and values of its prompt again.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from radit_jax.lm.prefix_sharing import DevicePlacement, padded_size, round_up
from radit_jax.method.answer_scoring import NOTHING, STOP, PackedAnswers
from radit_jax.method.generation import Answer, Stops

ROWS_PER_SCORING = 16  # enough to keep a CPU busy, few enough that little of the last batch is empty
SLOT_UNIT = 16  # the length of a row is a multiple of this, see `padded_size`

Candidates = Sequence[Answer | None]  # by number; None is not scored


class ScoringBatch(NamedTuple):
    """R rows of candidates in W groups of r, each row after a prompt of its group."""

    prompts: Int[np.ndarray, "W r"]  # numbers of prompts in their groups
    answers: PackedAnswers  # on the host

    def rows_of_prompts(self, num_prompts: int) -> Int[np.ndarray, " R"]:
        """The number of each row's prompt among all `num_prompts`, which lie group after group."""
        num_groups = len(self.prompts)
        group_size = num_prompts // num_groups
        first = np.arange(num_groups) * group_size
        return (first[:, None] + self.prompts).ravel()


def scoring_batches(
    candidates: Sequence[Candidates],
    stops: Stops,
    *,
    max_new_tokens: int,
    num_answers: int,
    placement: DevicePlacement,
) -> Iterator[ScoringBatch]:
    """Batches of rows that hold the candidates of each prompt, `num_answers` at most.

    A row has room for a longest answer and for the candidates of an average prompt. What does not fit in a
    prompt's row gets another row, and a prompt without candidates has none.
    """
    num_prompts = len(candidates)
    num_groups = placement.num_groups(num_prompts)
    group_size = num_prompts // num_groups
    rows_per_group = round_up(ROWS_PER_SCORING, num_groups) // num_groups
    rows_per_group = min(rows_per_group, group_size)

    # 1) The slots of each candidate, and the room of a row.
    slots = [_slots_of(answers, stops, max_new_tokens) for answers in candidates]
    num_scored = sum(map(bool, slots))
    total = sum(sum(by_number.values()) for by_number in slots)
    average = -(-total // max(1, num_scored))
    room = padded_size(max(max_new_tokens - 1, average), SLOT_UNIT)

    # 2) The rows of each group: a prompt's number in the group, and the candidates of the row.
    by_group: list[list[tuple[int, Candidates]]] = [[] for _ in range(num_groups)]
    for number, answers in enumerate(candidates):
        group, prompt = divmod(number, group_size)
        for numbers in _divide(slots[number], room):
            row = [answer if other in numbers else None for other, answer in enumerate(answers)]
            by_group[group].append((prompt, row))

    # 3) A few rows of each group at a time. Empty rows complete the groups that have fewer.
    most_rows = max(map(len, by_group))
    for start in range(0, most_rows, rows_per_group):
        prompts = np.zeros((num_groups, rows_per_group), np.int32)
        rows: list[Candidates] = [()] * prompts.size
        for group, of_group in enumerate(by_group):
            for place, (prompt, row) in enumerate(of_group[start : start + rows_per_group]):
                prompts[group, place] = prompt
                rows[group * rows_per_group + place] = row
        packed = pack_answers(
            rows,
            stops,
            max_new_tokens=max_new_tokens,
            num_answers=num_answers,
            num_slots=room,
        )
        yield ScoringBatch(prompts, packed)


def _slots_of(answers: Candidates, stops: Stops, max_new_tokens: int) -> dict[int, int]:
    """The slots that each candidate takes, by number: none for its first token, which the prompt predicts."""
    slots = {}
    for number, answer in enumerate(answers):
        if answer is not None:
            slots[number] = len(outcome(answer, stops, max_new_tokens)) - 1
    return slots


def _divide(slots: Mapping[int, int], room: int) -> list[list[int]]:
    """The candidates' numbers by row: the longest first, each in the first row with room for it."""
    rows: list[list[int]] = []
    left: list[int] = []  # free slots of each row
    for number in sorted(slots, key=lambda number: -slots[number]):
        needed = slots[number]
        fitting = (row for row, free in enumerate(left) if free >= needed)
        row = next(fitting, len(rows))
        if row == len(rows):
            rows.append([])
            left.append(room)
        rows[row].append(number)
        left[row] -= needed
    return rows


def pack_answers(
    answers: Sequence[Candidates],
    stops: Stops,
    *,
    max_new_tokens: int,
    num_answers: int,
    num_slots: int = 0,
) -> PackedAnswers:
    """Lay out the candidates of each row, `num_answers` at most, as host arrays of `num_slots` slots or more.

    An answer of `max_new_tokens` tokens was cut off, and a closing piece ends an answer by itself, so no
    terminator is scored after either. `PackedAnswers` shows the layout.
    """
    # 1) Slots for the longest row. The prompt predicts an outcome's first token, so it takes no slot.
    outcomes: list[Mapping[int, Answer]] = []
    row_lengths = []
    for group in answers:
        by_number = {}
        for number, answer in enumerate(group):
            if answer is not None:
                by_number[number] = outcome(answer, stops, max_new_tokens)
        outcomes.append(by_number)
        row_lengths.append(sum(map(len, by_number.values())) - len(by_number))
    slots = padded_size(max(num_slots, *row_lengths), SLOT_UNIT)

    # 2) Each row's outcomes end to end: tokens are read, and the next ones are targets.
    num_rows = len(answers)
    tokens, offsets, continuation_ids = np.zeros((3, num_rows, slots), np.int32)
    targets = np.full((num_rows, slots), NOTHING, np.int32)
    first_targets = np.full((num_rows, num_answers), NOTHING, np.int32)
    for row, by_number in enumerate(outcomes):
        start = 0
        for number, tokens_of in by_number.items():
            length = len(tokens_of) - 1
            place = slice(start, start + length)
            first_targets[row, number] = tokens_of[0]
            tokens[row, place] = tokens_of[:-1]
            targets[row, place] = tokens_of[1:]
            offsets[row, place] = np.arange(length)
            continuation_ids[row, place] = number + 1
            start += length
    arrays: Any = (tokens, offsets, continuation_ids, targets, first_targets)
    return PackedAnswers(*arrays)


def unique_answers(by_chunk: Sequence[Answer]) -> list[Answer]:
    """A question's distinct answers in the order of its chunks: one however many chunks lead to it."""
    return list(dict.fromkeys(by_chunk))


def outcome(answer: Answer, stops: Stops, max_new_tokens: int) -> Answer:
    """The tokens that are scored: the answer's, and STOP where a terminator belongs to it."""
    is_full = len(answer) == max_new_tokens
    return answer if is_full or is_closed(answer, stops) else (*answer, STOP)


def is_closed(answer: Answer, stops: Stops) -> bool:
    """Whether a closing piece ends the answer."""
    return len(answer) > 0 and answer[-1] in stops.closing


def strip_terminator(row: Sequence[int], stops: Stops) -> Answer:
    """The tokens of a generation before its terminator; the filler after a closing piece is one too."""
    answer = itertools.takewhile(lambda token: token not in stops.alone, row)
    return tuple(answer)
