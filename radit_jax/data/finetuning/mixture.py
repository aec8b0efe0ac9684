"""The mixtures that LM-ft and R-ft train on, drawn from the datasets of the table.

    D_L   10 % unsupervised text, 5 % oasst1, 85 % of the other datasets with at most 7,500 examples of each
    D_R   95 % text of the corpus, 5 % of all its datasets together

Shares of D_L are of instances, which is what LM-ft trains on: an example has one for each retrieved chunk, or
a single one under its own Background. A dataset's weight says how often its examples are seen: at 2 twice, at
0.5 half of them.

Which examples are drawn depends on the seed and their ids alone, not on the order of files: every id has a
random place, and the first places are taken. So a larger draw contains a smaller one.
"""

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from etils import epath

from radit_jax.data.finetuning.asked_elsewhere import AskedElsewhere, division_key
from radit_jax.data.finetuning.datasets import (
    DATASETS,
    Dataset,
    Mixture,
    OnError,
    read_items,
    split_files,
    task_named,
)
from radit_jax.data.finetuning.sources import Split
from radit_jax.data.finetuning.templates import item_example, item_question
from radit_jax.data.records import Example, Item, Question
from radit_jax.runtime.distributed import processes

MAX_WEIGHT = 1000  # of a dataset: beyond it a mistake
ASKED_ELSEWHERE = "asked elsewhere"  # why an item is left out: in another part, or in another dataset's


@dataclass(frozen=True)
class Drawn:
    """Examples of tasks in a mixed order, each with its question and all its gold answers, and its item."""

    examples: list[Example]
    questions: list[Question]
    items: list[Item]
    counts: dict[str, dict[str, int]]  # by task: read, kept, skipped by reason, drawn, instances


@dataclass(frozen=True)
class ReadOptions:
    """Where the datasets are read from, and what of them is left out."""

    folder: epath.PathLike  # as in `open_items`
    seed: int
    held_out: float = 0.0  # the share of a task's train part that is its dev part where it has none
    on_error: OnError = "stop"
    without: AskedElsewhere = field(default_factory=AskedElsewhere)

    def items(self, task: Dataset, split: Split, counts: dict[str, Counter[str]]) -> Iterator[Item]:
        """A split's items, but those that are in `without`, which are counted."""
        counts[task.name] = Counter(read=0, kept=0)
        return self._without(self._whole(task, split, counts[task.name]), counts[task.name])

    def _without(self, items: Iterable[Item], count: Counter[str]) -> Iterator[Item]:
        for item in items:
            if item in self.without:
                count[ASKED_ELSEWHERE] += 1
            else:
                yield item

    def _whole(self, task: Dataset, split: Split, count: Counter[str]) -> Iterator[Item]:
        if split == "test" or not self.held_out or has_split(task, self.folder, "dev"):
            return open_items(task, self.folder, split, on_error=self.on_error, counts=count)
        items = open_items(task, self.folder, "train", on_error=self.on_error, counts=count)
        return self._divided(items, split, count)

    def _divided(self, items: Iterable[Item], split: Split, count: Counter[str]) -> Iterator[Item]:
        """Those items of a train part that are the split's, where `held_out` of them are the dev part's."""
        bound = round(self.held_out * 2**64)
        for item in items:
            is_dev = int.from_bytes(_place(division_key(item), self.seed, "hold out")[:8]) < bound
            count["held out"] += is_dev
            if is_dev == (split == "dev"):
                yield item


def asked_in_dev_and_test(reading: ReadOptions, tasks: Iterable[Dataset]) -> AskedElsewhere:
    """The questions of all dev and test parts that there are, none of which belongs into a train part.

    ECQA divides CommonsenseQA anew and MathQA annotates AQuA-RAT again, so one dataset's dev question may
    stand in another's train part.
    """
    asked = AskedElsewhere()
    for task in tasks:
        for split in ("dev", "test"):
            if split == "dev" or has_split(task, reading.folder, split):
                for item in reading.items(task, split, {}):
                    asked.add(item)
    return asked


def lm_ft_tasks(
    reading: ReadOptions,
    names: Sequence[str] | None = None,
    *,
    split: Split = "train",
    cap: int = 7_500,
    dialogue_share: float = 0.05,
    text_share: float = 0.10,
    weights: Mapping[str, float] | None = None,
    num_chunks: int = 3,
) -> Drawn:
    """The tasks of D_L: at most `cap` of each, and so many dialogues that they are their share of instances.

    `text_share` is that of the text examples that will be added. Where there are fewer dialogues, all are
    taken. `names` are the tasks to draw from, by default all of D_L; `num_chunks` is how many instances an
    example without a Background of its own has.
    """
    weights = weights or {}
    tasks, counts = tasks_of("lm_ft", names), {}
    drawn: list[tuple[Dataset, Item]] = []
    for task in (task for task in tasks if task.category != "dialogue"):
        found = _first(reading.items(task, split, counts), cap, reading.seed)
        drawn += [(task, item) for item in _repeated(found, weights.get(task.name, 1.0))]
    others = sum(_instances(task, num_chunks) for task, _ in drawn)
    dialogues = round(others * dialogue_share / (1 - dialogue_share - text_share) / num_chunks)
    if not drawn:
        dialogues = cap
    for task in (task for task in tasks if task.category == "dialogue"):
        found = _first(reading.items(task, split, counts), dialogues, reading.seed)
        drawn += [(task, item) for item in found]
    for task in tasks:
        number = sum(own is task for own, _ in drawn)
        counts[task.name]["instances"] = number * _instances(task, num_chunks)
    return _mixed(drawn, "lm_ft", reading.seed, counts)


def r_ft_tasks(
    reading: ReadOptions,
    names: Sequence[str] | None = None,
    *,
    split: Split = "train",
    count: int | None = None,
    weights: Mapping[str, float] | None = None,
) -> Drawn:
    """The tasks of D_R: `count` examples of all datasets together, or all of them. As `lm_ft_tasks`.

    The paper's 900,000 corpus examples ask for `share_count(900_000, 0.05)` of them, 47,368.
    """
    weights = weights or {}
    counts: dict[str, Counter[str]] = {}
    found: list[tuple[Dataset, Item]] = []
    for task in tasks_of("r_ft", names):
        items = list(reading.items(task, split, counts))
        if task.name in weights:
            items = _repeated(_first(items, len(items), reading.seed), weights[task.name])
        found += [(task, item) for item in items]
    if count is not None:
        found = heapq.nsmallest(count, found, key=lambda pair: _place(pair[1].id, reading.seed))
    return _mixed(found, "r_ft", reading.seed, counts)


def parse_weights(setting: str, pairs: Sequence[str]) -> dict[str, float]:
    """A weight by dataset from `NAME=WEIGHT` pairs; `setting` is their name, for errors.

    >>> parse_weights("data.lm_ft_weights", ["gsm8k=2", "ecqa=0.5"])
    {'gsm8k': 2.0, 'ecqa': 0.5}
    """
    weights: dict[str, float] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not 0 < weight < MAX_WEIGHT:
            raise ValueError(
                f"{setting}: expected NAME=WEIGHT with a weight above 0 and below {MAX_WEIGHT}, got "
                f"{pair!r}. Write gsm8k=2."
            )
        weights[task_named(name.strip()).name] = weight
    return weights


def share_count(others: int, share: float) -> int:
    """How many examples, beside `others`, are `share` of all.

    >>> share_count(900_000, 0.05), share_count(90, 0.1)
    (47368, 10)
    """
    return round(others * share / (1 - share))


def open_items(
    task: Dataset, folder: epath.PathLike, split: Split, *, on_error: OnError, counts: Counter[str]
) -> Iterator[Item]:
    """A split's items, of the ArrayRecord files that `tfds_builders` wrote into `folder`, or else of the
    publisher's files in `folder/{task.name}`. A split that the task does not have is empty."""
    root = epath.Path(folder)
    if (root / f"radit_{task.name}").exists():
        from radit_jax.data.finetuning.tfds_builders import built_items  # TFDS takes a second to import

        yield from built_items(task, root, split, counts)
    elif split in task.raw.files:
        yield from read_items(task, root / task.name, split, on_error=on_error, counts=counts)


def tasks_of(mixture: Mixture, names: Sequence[str] | None) -> list[Dataset]:
    """The tasks to draw from, in the table's order: those named, or all of the mixture."""
    members = [name for name, task in DATASETS.items() if mixture in task.mixtures]
    for name in names or ():
        if mixture not in task_named(name).mixtures:
            raise ValueError(
                f"{mixture}: task {name!r} came, needed is one of {', '.join(members)}; leave it out"
            )
    return [DATASETS[name] for name in members if names is None or name in names]


def has_split(task: Dataset, folder: epath.PathLike, split: Split) -> bool:
    """Whether `open_items` would find a split of the task in `folder`."""
    root = epath.Path(folder)
    if (root / f"radit_{task.name}").exists():
        from radit_jax.data.finetuning.tfds_builders import built_splits

        return split in built_splits(task, root)
    pattern, files = task.raw.files.get(split, ""), root / task.name
    return bool(pattern and files.exists()) and any((*files.glob(pattern), *files.glob(f"{pattern}.gz")))


def files_read(task: Dataset, folder: epath.PathLike) -> list[epath.Path]:
    """The files that `open_items` reads for a task's splits, those that they are joined with among them."""
    root = epath.Path(folder)
    built = root / f"radit_{task.name}"
    if built.exists():
        return [*built.glob("*/*/*.json"), *built.glob("*/*/*.array_record*")]
    found: list[epath.Path] = []
    for split in task.raw.files:
        found += split_files(task, root / task.name, split) if has_split(task, root, split) else []
    for pattern in task.raw.beside:
        found += root.glob(pattern)
    return list(dict.fromkeys(found))


def _instances(task: Dataset, num_chunks: int) -> int:
    """What LM-ft trains on of one example of a task."""
    return 1 if task.category in ("reading", "summary") else num_chunks


def _repeated(items: Sequence[Item], weight: float) -> list[Item]:
    """`weight` times as many items, the first ones once more than the others where it comes out uneven."""
    if not items:
        return []
    times, more = divmod(round(weight * len(items)), len(items))
    return [*items] * times + [*items[:more]]


def _first(items: Iterable[Item], count: int, seed: int) -> list[Item]:
    return heapq.nsmallest(count, items, key=lambda item: _place(item.id, seed))


def _place(name: str, seed: int, purpose: str = "draw") -> bytes:
    processes.stop_if_asked("the datasets")  # every item that is read is placed
    return hashlib.sha256(f"{seed} {purpose} {name}".encode()).digest()


def _mixed(
    drawn: Sequence[tuple[Dataset, Item]], mixture: Mixture, seed: int, counts: dict[str, Counter[str]]
) -> Drawn:
    for name, count in counts.items():
        count["drawn"] = sum(task.name == name for task, _ in drawn)
    # By places of their own: what was drawn of a large dataset has the first of the others.
    pairs = sorted(drawn, key=lambda pair: _place(pair[1].id, seed, "mix"))
    items = [item for _, item in pairs]
    examples = [item_example(item, task, mixture, seed) for task, item in pairs]
    questions = [item_question(item, e.prompt) for item, e in zip(items, examples, strict=True)]
    return Drawn(examples, questions, items, {name: dict(count) for name, count in counts.items()})
