"""Builds the datasets of the table as TFDS, in ArrayRecord files that Grain reads; needs no TensorFlow.

    python -m radit_jax.data.finetuning.tfds_builders gsm8k --manual_dir=data/raw  # data/raw/gsm8k
    python -m radit_jax.data.finetuning.tfds_builders all --hub                    # Hugging Face's

Where a dataset fails, the others are built all the same: it is listed at the end, and the exit code is 1.
Nothing here was run against the hub; tests stand in for its rows and its errors.

Importing this module registers a builder per dataset, `radit_gsm8k` and so on, so that TFDS' own command
finds them too (it needs TensorFlow and Beam, which the extra `[tfds]` brings):

    tfds build radit_gsm8k/raw --imports=radit_jax.data.finetuning.tfds_builders \\
        --manual_dir=data/raw --data_dir=data/tfds --file_format=array_record
"""

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from radit_jax.data.finetuning.datasets import (
    DATASETS,
    Counts,
    Dataset,
    OnError,
    dataset_named,
    hub_rows,
    read_items,
    read_rows,
)
from radit_jax.data.finetuning.sources import Split
from radit_jax.data.records import Item
from radit_jax.errors import exit_command, run_command

DATA_DIR = "data/tfds"
VERSION = "1.0.0"


# ---- the builders ----


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A dataset of the table, in the form of `Item`; its configurations say where it is read from."""

    VERSION = tfds.core.Version(VERSION)
    RELEASE_NOTES = {"1.0.0": "The form of radit_jax.data.records.Item."}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="raw", description="the publisher's files"),
        tfds.core.BuilderConfig(name="hub", description="the Hugging Face hub"),
    ]
    DATASET: Dataset  # set by `_builder_class`
    on_error: OnError = "stop"  # as in `read_items`

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.DATASET.name}, read for retrieval-augmented instruction tuning.",
            features=tfds.features.FeaturesDict(_features()),
            homepage=self.DATASET.raw.url,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        """The examples of every split that there is."""
        self.counts: dict[str, Counts] = {}
        # The hub has all its splits; of the publisher's files some may be missing.
        if self._hub:
            return {split: self._generate_examples(None, split) for split in self.DATASET.hub.splits}
        folder = epath.Path(dl_manager.manual_dir) / self.DATASET.name
        present = [split for split in self.DATASET.raw.files if self._present(folder, split)]
        if not present:
            patterns = ", ".join(self.DATASET.raw.files.values())
            raise ValueError(
                f"{folder}: expected one at least of {patterns}, got none. Get it from "
                f"{self.DATASET.raw.url}."
            )
        return {split: self._generate_examples(folder, split) for split in present}

    def _generate_examples(self, folder: Any, split: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        """(id, fields) of every item of a split, counted."""
        counts = self.counts[split] = Counter(read=0, kept=0)
        if self._hub:
            rows = hub_rows(self.DATASET, split)
            items = read_rows(self.DATASET, rows, split, on_error=self.on_error, counts=counts)
        else:
            items = read_items(self.DATASET, folder, split, on_error=self.on_error, counts=counts)
        for item in items:
            yield item.id, dataclasses.asdict(item)

    @property
    def _hub(self) -> bool:
        return self.builder_config is not None and self.builder_config.name == "hub"

    def _present(self, folder: epath.Path, split: Split) -> bool:
        """Whether the split has files, and, where one file holds all splits, questions."""
        raw = self.DATASET.raw
        pattern = raw.files[split]
        if not folder.exists() or not [*folder.glob(pattern), *folder.glob(f"{pattern}.gz")]:
            return False
        if not raw.split_field:
            return True
        # One question is enough to know.
        return any(True for _ in read_items(self.DATASET, folder, split))


def _features() -> dict[str, Any]:
    """Item's fields: a string is a text, a tuple of strings a sequence of texts."""
    features = {}
    for field in dataclasses.fields(Item):
        # An annotation is a string where its module postpones annotations.
        text = tfds.features.Text()
        is_string = field.type in (str, "str")
        features[field.name] = text if is_string else tfds.features.Sequence(text)
    return features


def _builder_class(dataset: Dataset) -> type[_Builder]:
    """The class that TFDS knows the dataset by: `RaditGsm8K`, whose name is `radit_gsm8k`."""
    files = " and ".join(sorted(set(dataset.raw.files.values())))
    members = {
        "DATASET": dataset,
        "MANUAL_DOWNLOAD_INSTRUCTIONS": f"{files} in {dataset.name}/, from {dataset.raw.url}",
        "__module__": __name__,
        "name": _name(dataset),
    }
    class_name = "Radit" + dataset.name.title().replace("_", "")
    return type(class_name, (_Builder,), members)


def _name(dataset: Dataset) -> str:
    return f"radit_{dataset.name}"


# TFDS finds a builder as an attribute of the module that defines it.
BUILDERS = {name: _builder_class(dataset) for name, dataset in DATASETS.items()}
globals().update({builder.__name__: builder for builder in BUILDERS.values()})


# ---- building, and reading what was built ----


def build_dataset(
    name: str,
    *,
    data_dir: epath.PathLike = DATA_DIR,
    manual_dir: epath.PathLike | None = None,
    hub: bool = False,
    on_error: OnError = "stop",
) -> dict[str, dict[str, int]]:
    """Write a dataset into `data_dir` and return the counts of each split: read, kept, skipped by reason.

    `manual_dir` holds a folder of the dataset's name with the publisher's files. What was built before is
    kept, and there are no counts then.
    """
    dataset = dataset_named(name)
    if not hub and (manual_dir is None or not epath.Path(manual_dir).exists()):
        raise ValueError(
            f"{name}: expected --manual_dir=FOLDER with {name}/ in it, or --hub, got "
            f"--manual_dir={manual_dir}. Get the files from {dataset.raw.url}."
        )
    builder: Any = BUILDERS[name](
        data_dir=data_dir,
        config="hub" if hub else "raw",
        file_format=tfds.core.FileFormat.ARRAY_RECORD,
    )
    builder.on_error = on_error
    builder.counts = {}  # filled while it reads
    manual_folder = manual_dir and epath.Path(manual_dir)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_folder))
    return {split: dict(counts) for split, counts in builder.counts.items()}


def built_items(dataset: Dataset, data_dir: epath.PathLike, split: Split, counts: Counts) -> Iterator[Item]:
    """A split's items of what was built into `data_dir`, of the publisher's files before the hub's.

    A split that was not built is empty. They come in the order that TFDS shuffled them into.
    """
    if split in built_splits(dataset, data_dir):
        builder = _builder(dataset, data_dir)
        for features in builder.as_data_source(split):
            counts.update(read=1, kept=1)  # what was skipped when it was built is not known any more
            yield _item(features)


def built_splits(dataset: Dataset, data_dir: epath.PathLike) -> tuple[str, ...]:
    """The splits of what was built into `data_dir`."""
    return tuple(_builder(dataset, data_dir).info.splits)


def _builder(dataset: Dataset, data_dir: epath.PathLike) -> Any:
    """The builder of what was built; of the publisher's files where both were."""
    # The order in which they are preferred.
    configs = [config for config in ("raw", "hub") if _built(dataset, data_dir, config)]
    if not configs:
        folder = epath.Path(data_dir) / _name(dataset)
        raise ValueError(
            f"{folder}: expected version {VERSION}, got none. Run python -m "
            f"radit_jax.data.finetuning.tfds_builders {dataset.name}."
        )
    return BUILDERS[dataset.name](data_dir=data_dir, config=configs[0])


def _built(dataset: Dataset, data_dir: epath.PathLike, config: str) -> bool:
    folder = epath.Path(data_dir) / _name(dataset) / config / VERSION
    return (folder / "dataset_info.json").exists()  # which TFDS writes last


def _item(features: Mapping[str, Any]) -> Item:
    """An `Item` of what TFDS decodes: bytes, and arrays of bytes."""
    return Item(**{name: _text(value) for name, value in features.items()})


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else tuple(text.decode() for text in value)


# ---- the command ----


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    first_line = (__doc__ or "").partition("\n")[0]
    p = argparse.ArgumentParser("python -m radit_jax.data.finetuning.tfds_builders", description=first_line)
    p.add_argument("names", nargs="+", metavar="NAME", help=f"all, or of {', '.join(DATASETS)}")
    p.add_argument("--manual_dir", metavar="FOLDER", help="holds NAME/ with the publisher's files")
    p.add_argument("--hub", action="store_true", help="read the Hugging Face hub instead")
    p.add_argument("--data_dir", default=DATA_DIR, metavar="FOLDER", help=f"default: {DATA_DIR}")
    p.add_argument(
        "--on_error", choices=("stop", "skip"), default="stop", help="at a line that is unreadable"
    )
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the datasets that the command line names; the exit code."""
    options = parser().parse_args(arguments)
    return run_command(lambda: build_datasets(options))


def build_datasets(options: argparse.Namespace) -> None:
    """Build the datasets that the command line names, and print what was counted.

    Where one of several fails, what is wrong with it is printed at once, the others are built, and the error
    at the end lists all that failed.
    """
    names = list(DATASETS) if options.names == ["all"] else options.names
    failed: list[str] = []
    # Each by itself, so that one that fails costs no other.
    for name in names:
        try:
            _build_and_tell(name, options)
        except (ValueError, OSError) as error:
            if len(names) == 1:
                raise
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed.append(name)
    if failed:
        raise ValueError(
            f"expected {len(names)} datasets, got {len(names) - len(failed)}. Not built: {', '.join(failed)}."
        )


def _build_and_tell(name: str, options: argparse.Namespace) -> None:
    counts = build_dataset(
        name,
        data_dir=options.data_dir,
        manual_dir=options.manual_dir,
        hub=options.hub,
        on_error=options.on_error,
    )
    for split, count in counts.items():
        numbers = [f"{reason} {number:,}" for reason, number in count.items()]
        print(f"{name} {split}: {', '.join(numbers)}")
    # TFDS reads nothing where it finds a dataset that it has built.
    if not counts:
        folder = epath.Path(options.data_dir) / _name(DATASETS[name])
        print(f"{name}: built before, in {folder}; delete that folder to build it again")


if __name__ == "__main__":
    exit_command(main)
