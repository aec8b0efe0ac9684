"""What an experiment leaves to its files: the shapes of checkpoints, and how much a small folder holds."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from etils import epath

from radit_jax.config import DecoderConfig, Experiment, Folder
from radit_jax.data.readers.documents import Passages
from radit_jax.data.sources.folder import read_folder, source_files
from radit_jax.data.sources.small_data import SMALL_BYTES
from radit_jax.runtime.pretrained.checkpoint_info import describe


class FolderSize(NamedTuple):
    """What was counted in a folder."""

    chunks: int
    chunk_words: int  # of a chunk, on average
    train_questions: int
    test_questions: int


def folder_size(experiment: Experiment) -> FolderSize | None:
    """What the experiment's own folder holds; None for other data, and for what takes long to read."""
    data = experiment.data
    if not isinstance(data, Folder) or not epath.Path(data.folder).is_dir():
        return None
    num_bytes = sum(file.stat().length for file in source_files(data))
    if num_bytes > SMALL_BYTES:
        return None
    corpus = read_folder(data, experiment.seed)
    assert isinstance(corpus.chunks, Passages)
    num_chunks = len(corpus.chunks)
    # Lengths are those of the passages as models read them.
    num_words = sum(len(chunk.passage.split()) for chunk in corpus.chunks)
    return FolderSize(
        num_chunks,
        max(1, round(num_words / num_chunks)),
        len(corpus.questions["train"]),
        len(corpus.questions["test"]),
    )


def with_shapes(experiment: Experiment) -> Experiment:
    """The experiment with its checkpoints' shapes, by their small files, where it does not state them.

    Raises ValueError where a checkpoint is not there, or is no network that is known here.
    """
    base = experiment.base
    lm, retriever = base.lm, base.retriever
    if lm.checkpoint and lm.model is None:
        with _naming("base.lm.model"):
            shape = describe(lm.checkpoint, expected="decoder").config
        assert isinstance(shape, DecoderConfig)
        lm = replace(lm, model=shape)
    # The towers are alike, up to their prompts.
    if retriever.checkpoint and retriever.model is None:
        with _naming("base.retriever.model"):
            tower = describe(
                retriever.checkpoint,
                expected="encoder",
                side="query",
                num_layers=retriever.num_layers or None,
                pooling=retriever.pooling,
                normalize=retriever.normalize,
            ).config
        assert not isinstance(tower, DecoderConfig)
        retriever = replace(retriever, model=tower)
    return replace(experiment, base=replace(base, lm=lm, retriever=retriever))


@contextlib.contextmanager
def _naming(field: str) -> Iterator[None]:
    """Say in an error that a shape may be stated where its checkpoint is not here."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error} Or state its shape in {field}.") from None
