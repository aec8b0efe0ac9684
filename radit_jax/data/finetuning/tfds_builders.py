"""Builds the datasets of the table as TFDS, in ArrayRecord files that Grain reads; needs no TensorFlow.

    python -m radit_jax.data.finetuning.tfds_builders gsm8k --manual_dir=data/raw  # data/raw/gsm8k
    python -m radit_jax.data.finetuning.tfds_builders all --hub                    # Hugging Face's

A dataset that fails keeps no other from being built: it is listed at the end, and the exit code is 1. Nothing
here was run against the hub; tests stand in for its rows and its errors.

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
    Dataset,
    OnError,
    hub_rows,
    read_items,
    read_rows,
    task_named,
)
from radit_jax.data.finetuning.sources import Split
from radit_jax.data.records import Item
from radit_jax.errors import exit_command, run_command

DATA_DIR = "data/tfds"
VERSION = "1.0.0"
_SPLITS: tuple[Split, ...] = ("train", "dev", "test")


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A dataset of the table, in the form of `Item`; its configurations say where it is read from."""

    VERSION = tfds.core.Version(VERSION)
    RELEASE_NOTES = {"1.0.0": "The form of radit_jax.data.records.Item."}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="raw", description="the publisher's files"),
        tfds.core.BuilderConfig(name="hub", description="the Hugging Face hub"),
    ]
    TASK: Dataset
    on_error: OnError = "stop"

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.TASK.name}, read for retrieval-augmented instruction tuning.",
            features=tfds.features.FeaturesDict(_features()),
            homepage=self.TASK.raw.url,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        self.counts: dict[str, Counter[str]] = {}
        if self._hub:
            return {split: self._generate_examples(None, split) for split in self.TASK.hub.splits}
        folder = epath.Path(dl_manager.manual_dir) / self.TASK.name
        present = [split for split in self.TASK.raw.files if self._present(folder, split)]
        if not present:
            wanted = ", ".join(self.TASK.raw.files.values())
            raise ValueError(
                f"{folder}: none of {wanted} came, needed is one at least; get it from {self.TASK.raw.url}"
            )
        return {split: self._generate_examples(folder, split) for split in present}

    def _generate_examples(self, folder: Any, split: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        counts = self.counts[split] = Counter(read=0, kept=0)
        if self._hub:
            rows = hub_rows(self.TASK, split)
            items = read_rows(self.TASK, rows, split, on_error=self.on_error, counts=counts)
        else:
            items = read_items(self.TASK, folder, split, on_error=self.on_error, counts=counts)
        for item in items:
            yield item.id, dataclasses.asdict(item)

    @property
    def _hub(self) -> bool:
        return self.builder_config is not None and self.builder_config.name == "hub"

    def _present(self, folder: epath.Path, split: Split) -> bool:
        """Whether the split has files, and, where one file holds all splits, questions."""
        pattern = self.TASK.raw.files[split]
        if not folder.exists() or not [*folder.glob(pattern), *folder.glob(f"{pattern}.gz")]:
            return False
        return not self.TASK.raw.split_field or any(True for _ in read_items(self.TASK, folder, split))


def _features() -> dict[str, Any]:
    """Item's fields: a string is a text, a tuple of strings a sequence of texts."""
    text = tfds.features.Text
    return {
        field.name: text() if field.type in (str, "str") else tfds.features.Sequence(text())
        for field in dataclasses.fields(Item)
    }


def _builder_class(task: Dataset) -> type[_Builder]:
    instructions = (
        f"{' and '.join(sorted(set(task.raw.files.values())))} in {task.name}/, from {task.raw.url}"
    )
    members = {"TASK": task, "MANUAL_DOWNLOAD_INSTRUCTIONS": instructions, "__module__": __name__}
    return type(f"Radit{task.name.title().replace('_', '')}", (_Builder,), {**members, "name": _name(task)})


def _name(task: Dataset) -> str:
    return f"radit_{task.name}"


BUILDERS = {name: _builder_class(task) for name, task in DATASETS.items()}
globals().update({builder.__name__: builder for builder in BUILDERS.values()})


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
    task_named(name)
    if not hub and (manual_dir is None or not epath.Path(manual_dir).exists()):
        raise ValueError(
            f"{name}: --manual_dir={manual_dir} came, needed is a folder with {name}/ in it, or --hub; "
            f"get the files from {DATASETS[name].raw.url}"
        )
    builder: Any = BUILDERS[name](
        data_dir=data_dir, config="hub" if hub else "raw", file_format=tfds.core.FileFormat.ARRAY_RECORD
    )
    builder.on_error = on_error
    builder.counts = {}
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=manual_dir and epath.Path(manual_dir))
    )
    return {split: dict(counts) for split, counts in builder.counts.items()}


def built_items(
    task: Dataset, data_dir: epath.PathLike, split: Split, counts: Counter[str]
) -> Iterator[Item]:
    """A split's items of what was built into `data_dir`, of the publisher's files before the hub's.

    A split that was not built is empty. They come in the order that TFDS shuffled them into.
    """
    if split in built_splits(task, data_dir):
        builder = _builder(task, data_dir)
        for features in builder.as_data_source(split):
            counts.update(read=1, kept=1)
            yield _item(features)


def built_splits(task: Dataset, data_dir: epath.PathLike) -> tuple[str, ...]:
    """The splits of what was built into `data_dir`."""
    return tuple(_builder(task, data_dir).info.splits)


def _builder(task: Dataset, data_dir: epath.PathLike) -> Any:
    """The builder of what was built."""
    configs = [config for config in ("raw", "hub") if _built(task, data_dir, config)]
    if not configs:
        raise ValueError(
            f"{epath.Path(data_dir) / _name(task)}: it holds no version {VERSION}, which is needed; "
            f"run python -m radit_jax.data.finetuning.tfds_builders {task.name}"
        )
    return BUILDERS[task.name](data_dir=data_dir, config=configs[0])


def _built(task: Dataset, data_dir: epath.PathLike, config: str) -> bool:
    return (epath.Path(data_dir) / _name(task) / config / VERSION / "dataset_info.json").exists()


def _item(features: Mapping[str, Any]) -> Item:
    """An `Item` of what TFDS decodes: bytes, and arrays of bytes."""
    return Item(**{name: _text(value) for name, value in features.items()})


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else tuple(text.decode() for text in value)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        "python -m radit_jax.data.finetuning.tfds_builders", description=(__doc__ or "").partition("\n")[0]
    )
    p.add_argument("names", nargs="+", metavar="NAME", help=f"all, or of {', '.join(DATASETS)}")
    p.add_argument("--manual_dir", metavar="FOLDER", help="holds NAME/ with the publisher's files")
    p.add_argument("--hub", action="store_true", help="read the Hugging Face hub instead")
    p.add_argument("--data_dir", default=DATA_DIR, metavar="FOLDER", help=f"default: {DATA_DIR}")
    p.add_argument(
        "--on_error", choices=("stop", "skip"), default="stop", help="at a line that is unreadable"
    )
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return run_command(lambda: build_datasets(options))


def build_datasets(options: argparse.Namespace) -> None:
    """Build the datasets that the command line names, and print what was counted.

    Of several one that fails keeps no other from being built: what is wrong with it is printed at once, and
    all that failed are in the error at the end.
    """
    names = list(DATASETS) if options.names == ["all"] else options.names
    failed = []
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
        print(f"{name} {split}: {', '.join(f'{reason} {n:,}' for reason, n in count.items())}")
    if not counts:
        folder = epath.Path(options.data_dir) / _name(DATASETS[name])
        print(f"{name}: built before, in {folder}; delete that to build it anew")


if __name__ == "__main__":
    exit_command(main)
