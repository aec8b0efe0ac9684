"""The untuned language model after a few examples, so that LM-ft's gain is not only that of the format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from radit_jax.config import EvaluateConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.batches.examples import asked_prompt
from radit_jax.data.batches.few_shot import Shot
from radit_jax.data.records import Question
from radit_jax.lm.answering import ChunkSearch
from radit_jax.lm.scoring import NO_CHUNK
from radit_jax.text.metrics import is_yes_no
from radit_jax.text.prompts import answer_text

KINDS = ("none", "retrieved", "gold")  # of `CONTEXTS`, what a question and each example have before them


@dataclass(frozen=True)
class FewShotBase:
    """The same examples before every question: train questions with a known gold chunk.

    Their chunks are of the kind that the question has: gold ones, or the untuned retriever's best.
    """

    examples: Sequence[Question]
    rows: Mapping[str, Int[np.ndarray, " S"]]  # by kind: the chunk of each example

    @classmethod
    def draw(
        cls, corpus: Corpus, searcher: ChunkSearch, settings: EvaluateConfig, seed: int
    ) -> "FewShotBase":
        """`settings.shots` examples, drawn from the train questions that are no matter of yes or no.

        ValueError where there are fewer.
        """
        pool = []
        for question in corpus.questions("train"):
            if question.gold_chunks and not is_yes_no(question.answers):
                pool.append(question)
        if len(pool) < settings.shots:
            raise ValueError(
                f"evaluate.shots: expected at most {len(pool)}, the train questions that have a gold chunk "
                f"and are not answered by yes or no, got {settings.shots}. Lower it, or leave it out."
            )
        drawn = np.random.default_rng([seed, 5]).permutation(len(pool))[: settings.shots]
        examples = [pool[number] for number in drawn.tolist()]
        # One chunk of each kind.
        top_rows, _ = searcher.search([example.question for example in examples], 1)
        rows = {
            "none": np.full(len(examples), NO_CHUNK),
            "retrieved": top_rows[:, 0],
            "gold": corpus.first_gold_rows(examples),
        }
        return cls(examples, rows)

    def shots(self, kind: str, corpus: Corpus) -> list[Shot]:
        """The examples, each after its chunk of the kind."""
        shots = []
        rows = self.rows[kind].tolist()
        for example, row in zip(self.examples, rows, strict=True):
            passage = None
            if row != NO_CHUNK:
                (chunk,) = corpus.chunks.take(np.array([row]))
                passage = chunk.passage
            prompt = asked_prompt(example)
            answer = answer_text(example.answers[0])
            shots.append(Shot(passage, prompt, answer))
        return shots

    def record(self) -> list[dict[str, Any]]:
        """What `results.json` says of the examples."""
        lines = []
        for example in self.examples:
            lines.append({"id": example.id, "question": example.question})
        return lines
