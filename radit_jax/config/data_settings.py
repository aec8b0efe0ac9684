"""The settings of a run's data: one of three sources of chunks and questions."""

import os
from dataclasses import dataclass
from typing import Annotated, Literal

from radit_jax.config.ranges import (
    Fraction,
    FractionBelowOne,
    NonNegativeInt,
    PositiveInt,
    Range,
    Settings,
    added,
)

PassagesFormat = Literal[
    "auto",
    "jsonl",
    "atlas",
    "dpr",
    "kilt",
    "beir",
    "csv",
    "parquet",
    "text",
    "markdown",
    "html",
    "pdf",
    "documents",
]
Quoting = Literal["auto", "csv", "none"]  # of tables; auto refuses what is not clear
Words = Annotated[int, Range(2, 100_000)]  # a chunk has fewer


@dataclass(frozen=True)
class GeneratedWorld(Settings):
    """A fictional world, generated from the seed: entities, passages on them, questions with answers."""

    train_entities: PositiveInt = 600  # entities whose questions train
    dev_entities: PositiveInt = 100  # entities whose questions choose checkpoints
    test_entities: PositiveInt = 150  # entities whose questions are evaluated on
    pretraining_entities: PositiveInt = 2400  # entities of the texts that train the base models
    # questions on a train entity, of its six facts
    train_questions_per_entity: Annotated[int, Range(1, 6)] = 6
    # questions on a test or dev entity, of its six facts
    test_questions_per_entity: Annotated[int, Range(1, 6)] = 3
    documents: PositiveInt = 12_000  # pre-training texts of the base language model, on entities of their own
    encoder_groups: PositiveInt = 3000  # groups of (query, passage) pairs that train the base dual encoder
    # share of those queries that ask for a fact; the others ask for the entity as such
    fact_queries: Fraction = 0.03


@dataclass(frozen=True)
class Folder(Settings):
    """A folder of real text: `passages.jsonl` and questions (`data/sources/folder.py` has the form).

    Files in other forms are found by their names, or named here, relative to `folder`.
    """

    folder: str = "data/wiki"  # path of the folder with passages and questions
    passages_file: str = ""  # file of passages, or a folder of *.txt; empty: found by its name
    # form of the passages' file; auto: its name tells
    passages_format: PassagesFormat = "auto"
    train_file: str = ""  # questions that train; alone, a tenth becomes the test part; empty: found by name
    test_file: str = ""  # file of questions that are evaluated on; empty: found by its name
    # form of the questions' files; auto: their names tell
    questions_format: Literal["auto", "json", "beir", "table", "parquet"] = "auto"
    quoting: Quoting = "auto"  # quotes in tables; auto refuses what is not clear
    train_questions: PositiveInt = 5000  # questions that train, at most, drawn
    dev_questions: PositiveInt = 500  # questions held out of the train part, to choose checkpoints with
    test_questions: PositiveInt = 1000  # questions that are evaluated on, at most, drawn
    max_words: Words = 200  # words; a passage of as many or more is split into equal chunks of fewer
    # what is drawn; passage: all train questions of a passage together
    draw_by: Literal["question", "passage"] = added("question")


@dataclass(frozen=True)
class Instructions(Settings):
    """The paper's data: a corpus, and the datasets of D_L and D_R (`data/sources/instructions.py`)."""

    corpus: str = "data/corpus"  # path of the corpus' folder
    passages_file: str = ""  # file of passages in it, or a folder of *.txt; empty: found by its name
    # form of the passages' file; auto: its name tells
    passages_format: PassagesFormat = "auto"
    quoting: Quoting = "auto"  # quotes in tables; auto refuses what is not clear
    max_words: Words = 200  # words; a section of as many or more is split into equal chunks of fewer
    # folder of NAME/ with a publisher's files, or what finetuning.tfds_builders wrote
    datasets: str = "data/raw"
    lm_ft_datasets: tuple[str, ...] = ()  # datasets of D_L; empty: all, or none beside lm_ft_benchmarks
    r_ft_datasets: tuple[str, ...] = ()  # datasets of D_R; empty: all of them
    # evaluation tasks that LM-ft learns from (`data/eval_tasks/registry.py`)
    lm_ft_benchmarks: tuple[str, ...] = ()
    benchmark_examples: PositiveInt = 64  # examples of each of those tasks
    lm_ft_cap: PositiveInt = 7500  # examples of each dataset of D_L, at most; not of dialogues
    # NAME=WEIGHT in D_L, how often a dataset's examples are seen; else once
    lm_ft_weights: tuple[str, ...] = ()
    # NAME=WEIGHT in D_R, how often a dataset's examples are seen; else once
    r_ft_weights: tuple[str, ...] = ()
    # share of LM-ft's instances, corpus text included, that are dialogues
    dialogue_fraction: FractionBelowOne = 0.05
    held_out_fraction: FractionBelowOne = 0.01  # share of a train part that becomes a missing dev part
    lm_ft_dev_examples: PositiveInt = 50  # dev examples of each dataset of D_L
    # dev examples of all datasets of D_R together; as many others are evaluated on
    r_ft_dev_examples: PositiveInt = 1000
    # at a line of a dataset that does not have its form: stop, or skip and count it
    on_error: Literal["stop", "skip"] = "stop"
    expected_chunks: NonNegativeInt = 0  # chunks of the corpus; the stage warns of another number; 0: any
    # train examples of D_R's datasets; the stage warns of another number; 0: any
    expected_r_ft_tasks: NonNegativeInt = 0

    @property
    def passages(self) -> str:
        """The corpus: its file, or the folder in which it is found by its name."""
        return os.path.join(self.corpus, self.passages_file) if self.passages_file else self.corpus
