"""A finished run in memory: both retrievers and the tuned language model, ready to answer by Eq. 2."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from radit_jax.config import EvaluateConfig, MeshConfig
from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.lm.answering import Answer, Retrieval, generate_answers, questions_per_batch
from radit_jax.retrieval.ranking import Rows, Scores
from radit_jax.retrieval.search import Searcher, chunk_log_probs
from radit_jax.runtime.distributed.answering_mesh import answering_mesh, tokens_at_once
from radit_jax.runtime.distributed.memory import naming_remedy
from radit_jax.runtime.distributed.mesh import row_layout
from radit_jax.runtime.monitoring.progress import Progress
from radit_jax.runtime.pretrained.model_io import Model, abstract_model, load_model
from radit_jax.runtime.storage.top_level_folder import TopLevelFolder
from radit_jax.text.prompts import question_prompt

TUNED, BASE = "chunks", "base_chunks"  # what each retriever finds, by its name in a result


class FoundChunks(NamedTuple):
    """The chunks of Q questions under one retriever, the best first."""

    rows: Rows  # Q by K
    log_probs: Scores  # log p_R, Q by K, in nats

    def part(self, places: list[int]) -> "FoundChunks":
        """The chunks of these questions only."""
        return FoundChunks(self.rows[places], self.log_probs[places])


@dataclass(frozen=True)
class AnsweringSystem:
    """An export whose models are on the devices."""

    chunks: Chunks
    searchers: Mapping[str, Searcher]  # by name in a result; after R-ft last, as it weights Eq. 2
    lm: Model
    settings: EvaluateConfig
    temperature: float  # of p_R

    @classmethod
    def load(cls, export: TopLevelFolder) -> "AnsweringSystem":
        """Read the models, the chunks and the index of an export.

        Where both encoders learnt, the exported vectors of chunks do not fit the base query encoder, which is
        left out.
        """
        # The export says how it was evaluated; its tasks are not asked here.
        stored = export.read_json("answering.json")
        settings = EvaluateConfig(**{**stored["evaluate"], "tasks": ()}).answering()
        with naming_remedy("answering"):
            # 1) The retrievers, which search one index.
            inputs: Any = {"retriever": export, "embeddings": export, "index": export}
            tuned = Searcher.load(inputs, MeshConfig())
            searchers = {}
            if not stored.get("both_encoders"):
                base = load_model(export.verified_path("base_query_encoder"))
                searchers[BASE] = tuned.with_params(base.params)
            searchers[TUNED] = tuned

            # 2) The language model.
            path = export.verified_path("lm")
            to_load = abstract_model(path, settings.dtype)
            mesh = answering_mesh(MeshConfig(), to_load, num_tokens=tokens_at_once(settings))
            lm = load_model(path, dtype=settings.dtype, mesh=mesh, frozen=True)
            module = lm.module.clone(layout=row_layout(mesh))
        lm = lm._replace(module=module)
        return cls(Chunks(export), searchers, lm, settings, stored["temperature"])

    @property
    def questions_per_batch(self) -> int:
        """How many questions the language model answers together."""
        return questions_per_batch(self.chunks_per_answer, self.settings)

    @property
    def chunks_per_answer(self) -> int:
        """K: how many chunks an answer is mixed over; a small corpus has fewer than the settings say."""
        return min(self.settings.chunks_per_answer, len(self.chunks))

    def one_at_a_time(self) -> "AnsweringSystem":
        """The same models, which answer one question in a batch: what is fastest for a single one."""
        settings = replace(self.settings, prompts_per_batch=self.chunks_per_answer)
        return replace(self, settings=settings)

    def why_too_long(self, question: str) -> str:
        """The error of a question that no row holds even without a Background; empty for one that fits."""
        # The shortest prompt that the question can have, and what the row holds besides its answer.
        prompt = self.lm.tokenizer.encode_prompt(question_prompt(question))
        room = self.settings.sequence_length - self.settings.max_new_tokens
        if len(prompt) <= room:
            return ""
        return (
            f"expected a question of at most {room} tokens, as the row of evaluate.sequence_length "
            f"{self.settings.sequence_length} holds an answer too, got {len(prompt)}."
        )

    def retrieve(self, questions: Sequence[str]) -> dict[str, FoundChunks]:
        """Each retriever's chunks for the questions, by the retriever's name in a result."""
        retrieved = {}
        with naming_remedy("answering"):
            for name, searcher in self.searchers.items():
                # A batch no larger than what is asked: padding would take most of a single question's time.
                batch_size = min(len(questions), self.questions_per_batch)
                vectors = searcher.encoder.embed(questions, batch_size)
                rows, scores = searcher.index.search(vectors, self.chunks_per_answer)
                log_probs = chunk_log_probs(scores, self.temperature)
                retrieved[name] = FoundChunks(rows, log_probs)
        return retrieved

    def answer(
        self,
        questions: Sequence[str],
        retrieved: FoundChunks,
        bar: Progress | None = None,
    ) -> list[list[dict[str, Any]]]:
        """The answers of Eq. 2 to each question over its chunks, the best first, as JSON holds them.

        All questions must fit.
        """
        prompts = [question_prompt(question) for question in questions]
        retrieval = Retrieval(self.chunks, *retrieved)
        with naming_remedy("answering"):
            answers, _ = generate_answers(self.lm, prompts, retrieval, self.settings, bar=bar)
        return [_as_json(candidates) for candidates in answers]

    def describe_chunks(self, retrieved: Mapping[str, FoundChunks], place: int) -> dict[str, Any]:
        """One question's chunks under each retriever with their p_R, as JSON holds them."""
        described = {}
        for name, (rows, log_probs) in retrieved.items():
            chunks = self.chunks.take(rows[place])
            described[name] = _with_probabilities(chunks, np.exp(log_probs[place]))
        return described


def _as_json(candidates: Iterable[Answer]) -> list[dict[str, Any]]:
    return [{"text": answer.text, "probability": answer.probability} for answer in candidates]


def _with_probabilities(chunks: Iterable[Any], probabilities: Any) -> list[dict[str, Any]]:
    entries = []
    for chunk, p in zip(chunks, probabilities, strict=True):
        entries.append({"p_R": float(p), "title": chunk.title, "text": chunk.text})
    return entries
