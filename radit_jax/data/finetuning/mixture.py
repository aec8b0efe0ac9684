"""The mixtures that LM-ft and R-ft train on, drawn from the datasets of the table.

    D_L   10 % unsupervised text, 5 % oasst1, 85 % of the other datasets with at most 7,500 examples of each
    D_R   95 % text of the corpus, 5 % of all its datasets together

Which examples are drawn depends on the seed and their ids alone, not on the order of files: every id has a
random place, and the first places are taken. So a larger draw contains a smaller one.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from etils import epath

from radit_jax.data.finetuning.sources import Split
from radit_jax.data.finetuning.tasks import TASKS, Mixture, OnError, Task, read_items, task_named
from radit_jax.data.finetuning.templates import item_example, item_question
from radit_jax.data.records import Example, Item, Question


@dataclass(frozen=True)
class Drawn:
    """Examples of tasks in a mixed order, each with its question and all its gold answers."""

    examples: list[Example]
    questions: list[Question]
    counts: dict[str, dict[str, int]]  # by task: read, kept, skipped by reason, drawn


def lm_ft_tasks(
    folder: epath.PathLike,
    names: Sequence[str] | None = None,
    *,
    split: Split = "train",
    cap: int = 7_500,
    dialogue_share: float = 0.05,
    text_share: float = 0.10,
    held_out: float = 0.0,
    seed: int,
    on_error: OnError = "stop",
) -> Drawn:
    """The tasks of D_L: at most `cap` of each, and so many dialogues that they are their share of all.

    `share_count(len(drawn.examples), text_share)` is the number of text examples that belong to them. Without
    so many dialogues all there are are taken. `folder` is as in `open_items`; `names` are the tasks to draw
    from, by default all of D_L. `held_out` is the share of a task's train part that stands for its dev part
    where it has none.
    """
    tasks, counts = tasks_of("lm_ft", names), {}
    drawn: list[tuple[Task, Item]] = []
    for task in (task for task in tasks if task.category != "dialogue"):
        found = _read(task, folder, split, on_error, counts, held_out, seed)
        drawn += [(task, item) for item in _first(found, cap, seed)]
    dialogues = round(len(drawn) * dialogue_share / (1 - dialogue_share - text_share))
    if not drawn:
        dialogues = cap
    for task in (task for task in tasks if task.category == "dialogue"):
        found = _read(task, folder, split, on_error, counts, held_out, seed)
        drawn += [(task, item) for item in _first(found, dialogues, seed)]
    return _mixed(drawn, "lm_ft", seed, counts)


def r_ft_tasks(
    folder: epath.PathLike,
    names: Sequence[str] | None = None,
    *,
    split: Split = "train",
    count: int | None = None,
    held_out: float = 0.0,
    seed: int,
    on_error: OnError = "stop",
) -> Drawn:
    """The tasks of D_R: `count` examples of all datasets together, or all of them. As `lm_ft_tasks`.

    The paper's 900,000 corpus examples ask for `share_count(900_000, 0.05)` of them, 47,368.
    """
    counts: dict[str, Counter[str]] = {}
    found = (
        (task, item)
        for task in tasks_of("r_ft", names)
        for item in _read(task, folder, split, on_error, counts, held_out, seed)
    )
    if count is not None:
        found = heapq.nsmallest(count, found, key=lambda pair: _place(pair[1].id, seed))
    return _mixed(list(found), "r_ft", seed, counts)


def share_count(others: int, share: float) -> int:
    """How many examples, beside `others`, are `share` of all.

    >>> share_count(900_000, 0.05), share_count(90, 0.1)
    (47368, 10)
    """
    return round(others * share / (1 - share))


def open_items(
    task: Task, folder: epath.PathLike, split: Split, *, on_error: OnError, counts: Counter[str]
) -> Iterator[Item]:
    """A split's items, of the ArrayRecord files that `radit_jax.data.build` wrote into `folder`, or else of
    the publisher's files in `folder/{task.name}`. A split that the task does not have is empty."""
    root = epath.Path(folder)
    if (root / f"radit_{task.name}").exists():
        from radit_jax.data.build import built_items  # TFDS takes a second to import

        yield from built_items(task, root, split, counts)
    elif split in task.raw.files:
        yield from read_items(task, root / task.name, split, on_error=on_error, counts=counts)


def tasks_of(mixture: Mixture, names: Sequence[str] | None) -> list[Task]:
    """The tasks to draw from, in the table's order: those named, or all of the mixture."""
    members = [name for name, task in TASKS.items() if mixture in task.mixtures]
    for name in names or ():
        if mixture not in task_named(name).mixtures:
            raise ValueError(
                f"{mixture}: task {name!r} came, needed is one of {', '.join(members)}; leave it out"
            )
    return [TASKS[name] for name in members if names is None or name in names]


def has_split(task: Task, folder: epath.PathLike, split: Split) -> bool:
    """Whether `open_items` would find a split of the task in `folder`."""
    root = epath.Path(folder)
    if (root / f"radit_{task.name}").exists():
        from radit_jax.data.build import built_splits

        return split in built_splits(task, root)
    pattern, files = task.raw.files.get(split, ""), root / task.name
    return bool(pattern and files.exists()) and any((*files.glob(pattern), *files.glob(f"{pattern}.gz")))


def _read(
    task: Task,
    folder: epath.PathLike,
    split: Split,
    on_error: OnError,
    counts: dict[str, Counter[str]],
    held_out: float,
    seed: int,
) -> Iterator[Item]:
    count = counts[task.name] = Counter(read=0, kept=0)
    if split == "test" or not held_out or has_split(task, folder, "dev"):
        return open_items(task, folder, split, on_error=on_error, counts=count)
    items = open_items(task, folder, "train", on_error=on_error, counts=count)
    return _divided(items, split, held_out, seed, count)


def _divided(
    items: Iterable[Item], split: Split, held_out: float, seed: int, count: Counter[str]
) -> Iterator[Item]:
    """Those items of a train part that are the split's, where `held_out` of them are the dev part's."""
    bound = round(held_out * 2**64)
    for item in items:
        is_dev = int.from_bytes(_place(item.id, seed, "hold out")[:8]) < bound
        count["held out"] += is_dev
        if is_dev == (split == "dev"):
            yield item


def _first(items: Iterable[Item], count: int, seed: int) -> list[Item]:
    return heapq.nsmallest(count, items, key=lambda item: _place(item.id, seed))


def _place(name: str, seed: int, purpose: str = "draw") -> bytes:
    return hashlib.sha256(f"{seed} {purpose} {name}".encode()).digest()


def _mixed(
    drawn: Sequence[tuple[Task, Item]], mixture: Mixture, seed: int, counts: dict[str, Counter[str]]
) -> Drawn:
    for name, count in counts.items():
        count["drawn"] = sum(task.name == name for task, _ in drawn)
    # By places of their own: what was drawn of a large dataset has the first of the others.
    pairs = sorted(drawn, key=lambda pair: _place(pair[1].id, seed, "mix"))
    examples = [item_example(item, task, mixture, seed) for task, item in pairs]
    return Drawn(
        examples,
        [item_question(item, e.prompt) for (_, item), e in zip(pairs, examples, strict=True)],
        {name: dict(count) for name, count in counts.items()},
    )
