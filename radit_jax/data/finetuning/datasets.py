"""The 22 datasets of D_L and D_R: one table, and one function that reads any of them.

    for item in read_items(DATASETS["gsm8k"], "data/raw/gsm8k", "train"):
        …

A dataset is read from its publisher's files, or from the hub. Numbers of training examples and membership in
D_L and D_R are those of the tables of arXiv 2310.01352.
"""

import importlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from etils import epath

from radit_jax.data.finetuning.items import Items, Skip
from radit_jax.data.finetuning.raw import Record
from radit_jax.data.finetuning.sources import HUB, RAW, Hub, Raw, Split
from radit_jax.data.records import Item

Category = Literal["dialogue", "open_qa", "reading", "summary", "chain_of_thought"]
Metric = Literal["exact_match", "f1", "rouge_l"]
Mixture = Literal["lm_ft", "r_ft"]
OnError = Literal["stop", "skip"]
Counts = Counter[str]  # of questions: read, kept, and "skipped: REASON"

HUB_PARQUET = "refs/convert/parquet"  # where the hub keeps its own conversion of a dataset with a script
UNREADABLE = "unreadable"  # the reason for skipping what does not have the official form


@dataclass(frozen=True)
class Dataset:
    """A fine-tuning dataset."""

    name: str  # also that of its folder
    category: Category  # which template its examples have
    mixtures: tuple[Mixture, ...]  # D_L is lm_ft's, D_R is r_ft's
    train_size: int  # the paper's count
    metric: Metric  # what its development examples are judged by (our choice)
    raw: Raw  # its publisher's files
    hub: Hub  # its form on the Hugging Face hub

    def category_in(self, mixture: Mixture) -> Category:
        """In D_R the context of reading comprehension is left to retrieval (our reading of the paper)."""
        return "open_qa" if mixture == "r_ft" and self.category == "reading" else self.category


# ---- the table ----

BOTH: tuple[Mixture, ...] = ("lm_ft", "r_ft")
LM_FT: tuple[Mixture, ...] = ("lm_ft",)
R_FT: tuple[Mixture, ...] = ("r_ft",)

_TABLE: tuple[tuple[str, Category, tuple[Mixture, ...], int, Metric], ...] = (
    # name, category, mixtures, train_size, metric
    ("oasst1", "dialogue", BOTH, 31_598, "rouge_l"),
    ("commonsense_qa", "open_qa", BOTH, 9_741, "exact_match"),
    ("math_qa", "open_qa", BOTH, 29_837, "exact_match"),
    ("web_questions", "open_qa", BOTH, 3_778, "exact_match"),
    ("wiki_qa", "open_qa", BOTH, 20_360, "rouge_l"),  # candidate sentences; those with label 1 are kept
    ("yahoo_answers_qa", "open_qa", BOTH, 87_362, "rouge_l"),
    ("freebase_qa", "open_qa", R_FT, 20_358, "exact_match"),
    ("ms_marco", "open_qa", R_FT, 80_143, "rouge_l"),  # questions with an answer
    ("coqa", "reading", LM_FT, 108_647, "f1"),
    ("drop", "reading", LM_FT, 77_400, "f1"),
    ("narrativeqa", "reading", LM_FT, 32_747, "rouge_l"),
    ("newsqa", "reading", LM_FT, 74_160, "f1"),  # as MRQA filtered it, which is the hub's form
    ("pubmed_qa", "reading", BOTH, 1_000, "exact_match"),
    ("quail", "reading", LM_FT, 10_246, "exact_match"),
    ("quarel", "reading", BOTH, 1_941, "exact_match"),
    ("squad_v2", "reading", LM_FT, 130_319, "f1"),
    ("cnn_dailymail", "summary", LM_FT, 287_113, "rouge_l"),
    ("aqua_rat", "chain_of_thought", LM_FT, 97_467, "exact_match"),
    ("ecqa", "chain_of_thought", LM_FT, 7_598, "exact_match"),
    ("gsm8k", "chain_of_thought", LM_FT, 7_473, "exact_match"),
    ("competition_math", "chain_of_thought", LM_FT, 7_500, "exact_match"),
    ("strategyqa", "chain_of_thought", LM_FT, 2_290, "exact_match"),
)
DATASETS = {row[0]: Dataset(*row, raw=RAW[row[0]], hub=HUB[row[0]]) for row in _TABLE}


def dataset_named(name: str) -> Dataset:
    """The dataset of that name; another name is an error that lists them."""
    if name not in DATASETS:
        known = ", ".join(sorted(DATASETS))
        raise ValueError(f"dataset: expected one of {known}, got {name!r}. Name one of these.")
    return DATASETS[name]


# ---- reading ----


def read_items(
    dataset: Dataset,
    folder: epath.PathLike,
    split: Split,
    *,
    on_error: OnError = "stop",
    counts: Counts | None = None,
) -> Iterator[Item]:
    """The items of a split of the publisher's files in `folder`, in their order.

    `counts` gets how many were read, kept, and skipped for which reason: read = kept + the skipped. A record
    that does not have the official form stops the reading, or is skipped and counted as one question.
    """
    raw = dataset.raw
    files = split_files(dataset, folder, split)
    records = itertools.chain.from_iterable(map(raw.records, files))
    return _items(dataset, _of_split(raw, records, split), raw.items, raw.form, on_error, counts)


def read_rows(
    dataset: Dataset,
    rows: Iterable[Mapping[str, Any]],
    split: Split,
    *,
    on_error: OnError = "stop",
    counts: Counts | None = None,
) -> Iterator[Item]:
    """As `read_items`, from `rows` in the hub's form, each a dictionary."""
    hub = dataset.hub
    form = f"fields {', '.join(hub.fields)}"
    return _items(dataset, _hub_records(hub, rows, split), hub.items, form, on_error, counts)


def _hub_records(hub: Hub, rows: Iterable[Mapping[str, Any]], split: Split) -> Iterator[Record]:
    """The hub's rows as records, numbered through."""
    for number, row in enumerate(hub.group(rows), start=1):
        yield Record(f"{hub.id} {split} row {number}", f"{split}-{number}", row)


def hub_rows(dataset: Dataset, split: Split) -> Iterator[Mapping[str, Any]]:
    """A split's rows from the Hugging Face hub, configuration after configuration.

    From version 4 on the package `datasets` runs no scripts, and some of these datasets are scripts. Of those
    the hub's own conversion to Parquet is read.
    """
    try:
        hub = importlib.import_module("datasets")  # optional, and slow to import
    except ImportError:
        raise ValueError(
            f"{dataset.name}: expected the package datasets to read the hub with, got none. Run pip install "
            f"'radit_jax[hub]', or read the publisher's files, from {dataset.raw.url}."
        ) from None
    _check_split(dataset.hub.id, split, dataset.hub.splits)
    for config in dataset.hub.configs:
        yield from _hub_part(hub.load_dataset, dataset, config, split)


def _hub_part(load: Callable[..., Any], dataset: Dataset, config: str | None, split: Split) -> Any:
    """The rows of one configuration, as it is or in the hub's conversion."""
    hub_id = dataset.hub.id
    part = dataset.hub.splits[split]
    try:
        try:
            return load(hub_id, config, split=part)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            return load(hub_id, config, split=part, revision=HUB_PARQUET)
    except Exception as error:  # of the network, of a gate, of a moved dataset: all end alike
        raise ValueError(
            f"{hub_id}: expected its {part} from the hub, got {error}. Check the network and that the "
            "dataset is there; where it is gated, accept its terms and log in (hf auth login); or read the "
            f"publisher's files, from {dataset.raw.url}."
        ) from error


def split_files(dataset: Dataset, folder: epath.PathLike, split: Split) -> list[epath.Path]:
    """The publisher's files of a split, in order."""
    root = epath.Path(folder)
    _check_split(dataset.name, split, dataset.raw.files)
    pattern = dataset.raw.files[split]
    files: list[epath.Path] = []
    if root.exists():
        files = sorted(root.glob(pattern)) or sorted(root.glob(f"{pattern}.gz"))
    if not files:
        raise ValueError(
            f"{root}: expected {pattern}, the {split} part of {dataset.name}, got no such file. Put the "
            f"official one there, from {dataset.raw.url}."
        )
    return files


def _check_split(where: str, split: Split, splits: Iterable[str]) -> None:
    if split not in splits:
        raise ValueError(
            f"{where}: expected a split that it has ({', '.join(splits)}), got {split!r}. Name one of these."
        )


def _of_split(source: Raw, records: Iterable[Record], split: str) -> Iterator[Record]:
    """The records of a split; all of them, where each split has files of its own."""
    split_name = source.split_names.get(split, split)
    if not source.split_field:
        yield from records
        return
    for record in records:
        # A record that is not an object, or does not say its split, is left to its reader.
        fields = record.value if isinstance(record.value, dict) else {}
        if fields.get(source.split_field, split_name) == split_name:
            yield record


def _items(
    dataset: Dataset,
    records: Iterable[Record],
    convert: Callable[[Any, str], Items],
    form: str,
    on_error: OnError,
    counts: Counts | None,
) -> Iterator[Item]:
    """The items of all records, counted, each under the dataset's name; see `read_items`."""
    counts = Counter() if counts is None else counts
    problem = ""
    for record in records:
        # 1) Read the questions of a record, or say what is wrong with it.
        items, mismatch = _convert(record, convert, form)
        if mismatch:
            problem = f"{record.where}: {mismatch}. Get {dataset.name} from {dataset.raw.url}"
            if on_error == "stop":
                raise ValueError(f"{problem}, correct the record, or skip it with on_error='skip'.")
        # 2) Count each question, and give those that are kept.
        for item in items:
            counts["read"] += 1
            if isinstance(item, Skip):
                counts[f"skipped: {item.reason}"] += 1
            else:
                counts["kept"] += 1
                yield replace(item, id=f"{dataset.name}/{item.id}")
    # 3) A file without one question of the expected form is another file.
    if not counts["read"] and not dataset.raw.split_field:
        raise ValueError(f"{dataset.name}: expected records {form}, got none. Get it from {dataset.raw.url}.")
    if problem and counts["read"] == counts[f"skipped: {UNREADABLE}"]:
        raise ValueError(f"{problem}; no record of all {counts['read']} has this form.")


def _convert(
    record: Record, convert: Callable[[Any, str], Items], form: str
) -> tuple[list[Item | Skip], str]:
    """What a record holds, or one `Skip` and what is wrong with it: expected …, got …."""
    unreadable: list[Item | Skip] = [Skip(UNREADABLE)]
    if record.problem:
        return unreadable, record.problem
    try:
        items = list(convert(record.value, record.name))
        for item in items:
            if isinstance(item, Item):
                _check_types(item)
        return items, ""
    except KeyError as error:
        return unreadable, f"expected {form}, got no {error}"
    except (TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        return unreadable, f"expected {form}, got {str(record.value)[:40]!r} ({error})"


def _check_types(item: Item) -> None:
    """TypeError where a field is neither a string nor a tuple of strings."""
    for name, value in vars(item).items():
        texts = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(text, str) for text in texts):
            raise TypeError(f"the {name} is {str(value)[:40]!r}")
