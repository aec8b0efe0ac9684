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

PassagesFormat = Literal["auto", "jsonl", "atlas", "dpr", "kilt", "beir", "text"]
Quoting = Literal["auto", "csv", "none"]  # of tables; auto refuses what is not clear
Words = Annotated[int, Range(2, 100_000)]  # a chunk has fewer


@dataclass(frozen=True)
class GeneratedWorld(Settings):
    """A fictional world, generated from the seed: entities, passages on them, questions with answers."""

    train_entities: PositiveInt = 600
    dev_entities: PositiveInt = 100
    test_entities: PositiveInt = 150
    pretraining_entities: PositiveInt = 2400
    train_questions_per_entity: Annotated[int, Range(1, 6)] = 6  # of six facts
    test_questions_per_entity: Annotated[int, Range(1, 6)] = 3  # of dev entities too
    documents: PositiveInt = 12_000  # pre-training texts of the base language model, on other entities
    encoder_groups: PositiveInt = 3000  # groups of (query, passage) pairs of the base dual encoder
    fact_queries: Fraction = 0.03  # of those queries: they ask for a fact, the others for the entity as such


@dataclass(frozen=True)
class Folder(Settings):
    """A folder of real text: `passages.jsonl` and questions (`data/sources/folder.py` has the form).

    Files in other forms are found by their names, or named here, relative to `folder`.
    """

    folder: str = "data/wiki"
    passages_file: str = ""  # or a folder of *.txt; empty: found by its name
    passages_format: PassagesFormat = "auto"
    train_file: str = ""  # alone, a tenth of it becomes the test part
    test_file: str = ""
    questions_format: Literal["auto", "json", "beir", "table"] = "auto"
    quoting: Quoting = "auto"  # in tables; auto refuses what is not clear
    train_questions: PositiveInt = 5000
    dev_questions: PositiveInt = 500  # held out of the train questions, to choose checkpoints with
    test_questions: PositiveInt = 1000
    max_words: Words = 200  # a longer passage is split into equal chunks of fewer words
    draw_by: Literal["question", "passage"] = added("question")  # passage: a group's train questions together


@dataclass(frozen=True)
class Instructions(Settings):
    """The paper's data: a corpus, and the datasets of D_L and D_R (`data/sources/instructions.py`)."""

    corpus: str = "data/corpus"  # a folder
    passages_file: str = ""  # in it, or a folder of *.txt; empty: found by its name
    passages_format: PassagesFormat = "auto"
    quoting: Quoting = "auto"  # in tables; auto refuses what is not clear
    max_words: Words = 200  # a longer section is split into equal chunks of fewer words
    datasets: str = "data/raw"  # NAME/ with a publisher's files, or what finetuning.tfds_builders wrote
    lm_ft_datasets: tuple[str, ...] = ()  # empty: all of D_L, or none beside lm_ft_benchmarks
    r_ft_datasets: tuple[str, ...] = ()  # empty: all of D_R
    lm_ft_benchmarks: tuple[str, ...] = ()  # evaluation tasks to learn from (`data/eval_tasks/registry.py`)
    benchmark_examples: PositiveInt = 64  # of each of them
    lm_ft_cap: PositiveInt = 7500  # examples of each dataset of D_L but dialogues
    lm_ft_weights: tuple[str, ...] = ()  # NAME=WEIGHT, how often a dataset's examples are seen; else once
    r_ft_weights: tuple[str, ...] = ()  # likewise in D_R
    dialogue_fraction: FractionBelowOne = 0.05  # of LM-ft's instances, its corpus text included
    held_out_fraction: FractionBelowOne = 0.01  # of a train part, which becomes a missing dev part
    lm_ft_dev_examples: PositiveInt = 50  # of each dataset of D_L
    r_ft_dev_examples: PositiveInt = 1000  # of all datasets of D_R together; as many others are evaluated on
    on_error: Literal["stop", "skip"] = "stop"  # at a line of a dataset that does not have its form
    expected_chunks: NonNegativeInt = 0  # the corpus stage warns of another number; 0: any
    expected_r_ft_tasks: NonNegativeInt = 0  # likewise of the train examples of D_R's datasets

    @property
    def passages(self) -> str:
        """The corpus: its file, or the folder in which it is found by its name."""
        return os.path.join(self.corpus, self.passages_file) if self.passages_file else self.corpus
