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
    Counts,
    Dataset,
    Mixture,
    OnError,
    dataset_named,
    read_items,
    split_files,
)
from radit_jax.data.finetuning.sources import Split
from radit_jax.data.finetuning.templates import item_example, item_question
from radit_jax.data.records import Example, Item, Question
from radit_jax.runtime.distributed import processes

MAX_WEIGHT = 1000  # of a dataset: beyond it a mistake
ASKED_ELSEWHERE = "asked elsewhere"  # why an item is left out: in another part, or in another dataset's


@dataclass(frozen=True)
class Drawn:
    """Examples drawn from datasets, in a mixed order."""

    examples: list[Example]
    questions: list[Question]  # of each example, with all its gold answers
    items: list[Item]  # of each example
    counts: dict[str, dict[str, int]]  # by dataset: read, kept, skipped by reason, drawn, instances


@dataclass(frozen=True)
class ReadOptions:
    """Where the datasets are read from, and what of them is left out."""

    folder: epath.PathLike  # as in `open_items`
    seed: int  # what is drawn and held out depends on it, and on ids, alone
    held_out: float = 0.0  # the share of a dataset's train part that is its dev part where it has none
    on_error: OnError = "stop"  # at a record of another form
    without: AskedElsewhere = field(default_factory=AskedElsewhere)  # questions that are left out

    def items(self, dataset: Dataset, split: Split, counts: dict[str, Counts]) -> Iterator[Item]:
        """A split's items, but those that are in `without`, which are counted into `counts[dataset.name]`."""
        count = counts[dataset.name] = Counter(read=0, kept=0)
        return self._without(self._whole(dataset, split, count), count)

    def _without(self, items: Iterable[Item], count: Counts) -> Iterator[Item]:
        for item in items:
            if item in self.without:
                count[ASKED_ELSEWHERE] += 1
            else:
                yield item

    def _whole(self, dataset: Dataset, split: Split, count: Counts) -> Iterator[Item]:
        """All items of a split; where a dataset has no dev part, one is held out of its train part."""
        if split == "test" or not self.held_out or has_split(dataset, self.folder, "dev"):
            return open_items(dataset, self.folder, split, on_error=self.on_error, counts=count)
        items = open_items(dataset, self.folder, "train", on_error=self.on_error, counts=count)
        return self._divided(items, split, count)

    def _divided(self, items: Iterable[Item], split: Split, count: Counts) -> Iterator[Item]:
        """Those items of a train part that are the split's, where `held_out` of them are the dev part's."""
        # A key's random place, read as a number of 64 bits, is below the bound for that share of the keys.
        bound = round(self.held_out * 2**64)
        for item in items:
            place = _place(division_key(item), self.seed, "hold out")
            is_dev = int.from_bytes(place[:8]) < bound
            count["held out"] += is_dev
            if is_dev == (split == "dev"):
                yield item


def asked_in_dev_and_test(reading: ReadOptions, datasets: Iterable[Dataset]) -> AskedElsewhere:
    """The questions of all dev and test parts that there are, which no train part may have.

    ECQA divides CommonsenseQA again and MathQA annotates AQuA-RAT again, so one dataset's dev question may
    stand in another's train part.
    """
    asked = AskedElsewhere()
    for dataset in datasets:
        for split in ("dev", "test"):
            # There is always a dev part: held out where the dataset has none.
            if split == "dev" or has_split(dataset, reading.folder, split):
                for item in reading.items(dataset, split, {}):
                    asked.add(item)
    return asked


# ---- drawing ----


def draw_lm_ft(
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
    """Draw D_L's examples: at most `cap` of each dataset, and as many dialogues as make up their share.

    An instance is an example under one Background: a retrieved chunk, of which an example has `num_chunks`,
    or the single one of its own. `dialogue_share` and `text_share` are fractions of all instances, to which
    the caller adds those of the corpus' text afterwards. Where there are too few dialogues, all are taken.

    `names` are the datasets to draw from, by default all of D_L. `weights` say how often a dataset's examples
    are seen, once where it has no weight.
    """
    weights = weights or {}
    datasets = datasets_of("lm_ft", names)
    counts: dict[str, Counts] = {}
    drawn: list[tuple[Dataset, Item]] = []
    # 1) Draw from every dataset but the dialogues.
    for dataset in datasets:
        if dataset.category != "dialogue":
            items = _first(reading.items(dataset, split, counts), cap, reading.seed)
            items = _repeated(items, weights.get(dataset.name, 1.0))
            drawn += [(dataset, item) for item in items]
    # 2) Draw dialogues for their share of instances; each has `num_chunks`, because it retrieves.
    other_instances = sum(_instances(dataset, num_chunks) for dataset, _ in drawn)
    other_share = 1 - dialogue_share - text_share
    num_dialogues = round(other_instances * dialogue_share / other_share / num_chunks)
    if not drawn:  # with nothing else to be a share of, dialogues have a cap like any dataset
        num_dialogues = cap
    for dataset in datasets:
        if dataset.category == "dialogue":
            items = _first(reading.items(dataset, split, counts), num_dialogues, reading.seed)
            drawn += [(dataset, item) for item in items]
    # 3) Count the instances of each dataset.
    for dataset in datasets:
        num_drawn = sum(source is dataset for source, _ in drawn)
        counts[dataset.name]["instances"] = num_drawn * _instances(dataset, num_chunks)
    return _mixed(drawn, "lm_ft", reading.seed, counts)


def draw_r_ft(
    reading: ReadOptions,
    names: Sequence[str] | None = None,
    *,
    split: Split = "train",
    count: int | None = None,
    weights: Mapping[str, float] | None = None,
) -> Drawn:
    """Draw D_R's examples: `count` of all datasets together, or all of them. As `draw_lm_ft`.

    The paper's 900,000 corpus examples ask for `share_count(900_000, 0.05)` of them, 47,368.
    """
    weights = weights or {}
    counts: dict[str, Counts] = {}
    drawn: list[tuple[Dataset, Item]] = []
    for dataset in datasets_of("r_ft", names):
        items = list(reading.items(dataset, split, counts))
        # Where a weight is not a whole number, the first places are seen once more than the others.
        if dataset.name in weights:
            items = _first(items, len(items), reading.seed)
            items = _repeated(items, weights[dataset.name])
        drawn += [(dataset, item) for item in items]
    if count is not None:
        drawn = heapq.nsmallest(count, drawn, key=lambda pair: _place(pair[1].id, reading.seed))
    return _mixed(drawn, "r_ft", reading.seed, counts)


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
            weight = math.nan  # which is in no range
        if not 0 < weight < MAX_WEIGHT:
            raise ValueError(
                f"{setting}: expected NAME=WEIGHT with a weight above 0 and below {MAX_WEIGHT}, got "
                f"{pair!r}. Write gsm8k=2."
            )
        weights[dataset_named(name.strip()).name] = weight
    return weights


def share_count(others: int, share: float) -> int:
    """How many examples are `share` of all, where there are `others` besides.

    >>> share_count(900_000, 0.05), share_count(90, 0.1)
    (47368, 10)
    """
    return round(others * share / (1 - share))


# ---- where a dataset's items are ----


def open_items(
    dataset: Dataset,
    folder: epath.PathLike,
    split: Split,
    *,
    on_error: OnError,
    counts: Counts,
) -> Iterator[Item]:
    """A split's items, of the ArrayRecord files that `tfds_builders` wrote into `folder`, or else of the
    publisher's files in `folder/{dataset.name}`. A split that the dataset does not have is empty."""
    root = epath.Path(folder)
    if _built_folder(dataset, root).exists():
        from radit_jax.data.finetuning.tfds_builders import built_items  # TFDS takes a second to import

        yield from built_items(dataset, root, split, counts)
    elif split in dataset.raw.files:
        yield from read_items(dataset, root / dataset.name, split, on_error=on_error, counts=counts)


def datasets_of(mixture: Mixture, names: Sequence[str] | None) -> list[Dataset]:
    """The datasets to draw from, in the table's order: those named, or all of the mixture."""
    # The table's order decides in which order datasets are read.
    members = [name for name, dataset in DATASETS.items() if mixture in dataset.mixtures]
    for name in names or ():
        if mixture not in dataset_named(name).mixtures:
            raise ValueError(
                f"data.{mixture}_datasets: expected datasets of the mixture ({', '.join(members)}), got "
                f"{name!r}. Leave it out."
            )
    return [DATASETS[name] for name in members if names is None or name in names]


def has_split(dataset: Dataset, folder: epath.PathLike, split: Split) -> bool:
    """Whether `open_items` would find a split of the dataset in `folder`."""
    root = epath.Path(folder)
    if _built_folder(dataset, root).exists():
        from radit_jax.data.finetuning.tfds_builders import built_splits

        return split in built_splits(dataset, root)
    pattern = dataset.raw.files.get(split, "")
    raw_folder = root / dataset.name
    if not pattern or not raw_folder.exists():
        return False
    return any((*raw_folder.glob(pattern), *raw_folder.glob(f"{pattern}.gz")))


def files_read(dataset: Dataset, folder: epath.PathLike) -> list[epath.Path]:
    """The files that `open_items` reads for a dataset's splits, with those that they are joined with."""
    root = epath.Path(folder)
    built = _built_folder(dataset, root)
    if built.exists():
        return [*built.glob("*/*/*.json"), *built.glob("*/*/*.array_record*")]
    files: list[epath.Path] = []
    for split in dataset.raw.files:
        if has_split(dataset, root, split):
            files += split_files(dataset, root / dataset.name, split)
    for pattern in dataset.raw.joined_with:
        files += root.glob(pattern)
    return list(dict.fromkeys(files))


def _built_folder(dataset: Dataset, root: epath.Path) -> epath.Path:
    """Where `tfds_builders` writes a dataset."""
    return root / f"radit_{dataset.name}"


# ---- parts of a draw ----


def _instances(dataset: Dataset, num_chunks: int) -> int:
    """How many instances LM-ft makes of an example: one where it has its own Background, else one a chunk."""
    return 1 if dataset.category in ("reading", "summary") else num_chunks


def _repeated(items: Sequence[Item], weight: float) -> list[Item]:
    """`weight` times as many items, the first ones once more than the others where it comes out uneven."""
    if not items:
        return []
    times, remainder = divmod(round(weight * len(items)), len(items))
    return [*items] * times + [*items[:remainder]]


def _first(items: Iterable[Item], count: int, seed: int) -> list[Item]:
    """The `count` items with the first places, in the order of these."""
    return heapq.nsmallest(count, items, key=lambda item: _place(item.id, seed))


def _place(name: str, seed: int, purpose: str = "draw") -> bytes:
    """The random place of an id, for a purpose: bytes to sort by."""
    processes.stop_if_asked("the datasets")  # every item that is read is placed
    return hashlib.sha256(f"{seed} {purpose} {name}".encode()).digest()


def _mixed(
    drawn: Sequence[tuple[Dataset, Item]],
    mixture: Mixture,
    seed: int,
    counts: dict[str, Counts],
) -> Drawn:
    """The drawn items in a random order, as examples and questions."""
    # How often an item was drawn, those that a weight repeats included.
    for name, count in counts.items():
        count["drawn"] = sum(dataset.name == name for dataset, _ in drawn)
    # Places for this purpose are other ones than those by which items were drawn.
    pairs = sorted(drawn, key=lambda pair: _place(pair[1].id, seed, "mix"))
    items = [item for _, item in pairs]
    examples = [item_example(item, dataset, mixture, seed) for dataset, item in pairs]
    questions = []
    for item, example in zip(items, examples, strict=True):
        questions.append(item_question(item, example.prompt))
    plain_counts = {name: dict(count) for name, count in counts.items()}
    return Drawn(examples, questions, items, plain_counts)
