"""The 22 datasets of D_L and D_R: one table, and one function that reads any of them.

    for item in read_items(TASKS["gsm8k"], "data/raw/gsm8k", "train"):
        …

A dataset is read from its publisher's files, or from the hub. Numbers of training examples and membership in
D_L and D_R are those of the tables of arXiv 2310.01352.
"""

import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from etils import epath

from radit_jax.data.finetuning.formats import Items, Skip
from radit_jax.data.finetuning.raw import Record
from radit_jax.data.finetuning.sources import HUB, RAW, Hub, Raw, Split
from radit_jax.data.records import Item

Category = Literal["dialogue", "open_qa", "reading", "summary", "chain_of_thought"]
Metric = Literal["exact_match", "f1", "rouge_l"]
Mixture = Literal["lm_ft", "r_ft"]
OnError = Literal["stop", "skip"]

HUB_PARQUET = "refs/convert/parquet"  # where the hub keeps its own conversion of a dataset with a script
UNREADABLE = "unreadable"  # the reason for skipping what does not have the official form


@dataclass(frozen=True)
class Dataset:
    """A fine-tuning dataset."""

    name: str
    category: Category
    mixtures: tuple[Mixture, ...]  # D_L is lm_ft's, D_R is r_ft's
    train_size: int  # the paper's count
    metric: Metric  # what its development examples are judged by (our choice)
    raw: Raw
    hub: Hub

    def category_in(self, mixture: Mixture) -> Category:
        """In D_R the context of reading comprehension is left to retrieval (our reading of the paper)."""
        return "open_qa" if mixture == "r_ft" and self.category == "reading" else self.category


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


def task_named(name: str) -> Dataset:
    """The task of that name; another name is an error that lists them."""
    if name not in DATASETS:
        raise ValueError(
            f"task {name!r} came, needed is one of {', '.join(sorted(DATASETS))}; correct the name"
        )
    return DATASETS[name]


def read_items(
    task: Dataset,
    folder: epath.PathLike,
    split: Split,
    *,
    on_error: OnError = "stop",
    counts: Counter[str] | None = None,
) -> Iterator[Item]:
    """The items of a split of the publisher's files in `folder`, in their order.

    `counts` gets how many were read, kept, and skipped for which reason: read = kept + the skipped. A record
    that does not have the official form stops the reading, or is skipped and counted as one question.
    """
    records = (record for file in split_files(task, folder, split) for record in task.raw.records(file))
    return _items(task, _of_split(task.raw, records, split), task.raw.items, task.raw.form, on_error, counts)


def read_rows(
    task: Dataset,
    rows: Iterable[Mapping[str, Any]],
    split: Split,
    *,
    on_error: OnError = "stop",
    counts: Counter[str] | None = None,
) -> Iterator[Item]:
    """The items of a split in the hub's form, of which `rows` are the dictionaries. As `read_items`."""
    grouped = enumerate(task.hub.group(rows), 1)
    records = (Record(f"{task.hub.id} {split} row {n}", f"{split}-{n}", row) for n, row in grouped)
    form = f"fields {', '.join(task.hub.fields)}"
    return _items(task, records, task.hub.items, form, on_error, counts)


def hub_rows(task: Dataset, split: Split) -> Iterator[Mapping[str, Any]]:
    """A split's rows from the Hugging Face hub, configuration after configuration.

    `datasets` from version 4 runs no scripts, which some of these datasets are: of those the hub's own
    conversion to Parquet is read.
    """
    try:
        hub = importlib.import_module("datasets")  # optional, and slow to import
    except ImportError:
        raise ValueError(
            f"{task.name}: the hub needs the package datasets; pip install 'radit_jax[hub]', or read the "
            f"publisher's files, from {task.raw.url}"
        ) from None
    if split not in task.hub.splits:
        raise ValueError(f"{task.hub.id}: it has no {split}, needed is one of {', '.join(task.hub.splits)}")
    for config in task.hub.configs:
        yield from _hub_part(hub.load_dataset, task, config, split)


def _hub_part(load: Callable[..., Any], task: Dataset, config: str | None, split: Split) -> Any:
    """The rows of one configuration, as it is or in the hub's conversion."""
    part = task.hub.splits[split]
    try:
        try:
            return load(task.hub.id, config, split=part)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            return load(task.hub.id, config, split=part, revision=HUB_PARQUET)
    except Exception as error:  # of the network, of a gate, of a moved dataset: all end alike
        raise ValueError(
            f"{task.hub.id}: expected its {part} from the hub, got {error}. Check the network and that the "
            "dataset is there; where it is gated, accept its terms and log in (hf auth login); or read the "
            f"publisher's files, from {task.raw.url}."
        ) from error


def split_files(task: Dataset, folder: epath.PathLike, split: Split) -> list[epath.Path]:
    """The publisher's files of a split, in order."""
    root = epath.Path(folder)
    if split not in task.raw.files:
        raise ValueError(f"{task.name}: it has no {split}, needed is one of {', '.join(task.raw.files)}")
    pattern = task.raw.files[split]
    found = sorted(root.glob(pattern)) or sorted(root.glob(f"{pattern}.gz")) if root.exists() else []
    if not found:
        raise ValueError(
            f"{root}: no file {pattern} came, needed is the {split} part of {task.name}; "
            f"put the official one there, from {task.raw.url}"
        )
    return found


def _of_split(source: Raw, records: Iterable[Record], split: str) -> Iterator[Record]:
    wanted = source.split_names.get(split, split)
    for record in records:
        whole = not source.split_field or not isinstance(record.value, dict)
        if whole or record.value.get(source.split_field, wanted) == wanted:
            yield record


def _items(
    task: Dataset,
    records: Iterable[Record],
    convert: Callable[[Any, str], Items],
    form: str,
    on_error: OnError,
    counts: Counter[str] | None,
) -> Iterator[Item]:
    counts = Counter() if counts is None else counts
    problem = ""
    for record in records:
        found, what = _convert(record, convert, form)
        if what:
            problem = f"{record.where}: {what}. Get {task.name} from {task.raw.url}"
            if on_error == "stop":
                raise ValueError(f"{problem}, correct the record, or skip it with on_error='skip'.")
        for item in found:
            counts["read"] += 1
            counts["kept" if isinstance(item, Item) else f"skipped: {item.reason}"] += 1
            if isinstance(item, Item):
                yield replace(item, id=f"{task.name}/{item.id}")
    if not counts["read"] and not task.raw.split_field:
        raise ValueError(f"{task.name}: expected records {form}, got none. Get it from {task.raw.url}.")
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
        found = list(convert(record.value, record.name))
        for item in found:
            if isinstance(item, Item):
                _check_types(item)
        return found, ""
    except KeyError as error:
        return unreadable, f"expected {form}, got no {error}"
    except (TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        return unreadable, f"expected {form}, got {str(record.value)[:40]!r} ({error})"


def _check_types(item: Item) -> None:
    for name, value in vars(item).items():
        texts = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(text, str) for text in texts):
            raise TypeError(f"the {name} is {str(value)[:40]!r}")
