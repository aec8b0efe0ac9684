"""Tuning the retriever: what R-ft trains, what its steps read, and the questions that choose a checkpoint.

`QueryTower` is the paper's choice. The chunk tower stays as it is, so a step reads the chunks' stored
embeddings. `BothTowers` is an ablation: a step encodes the texts of the chunks, and checkpoints are chosen
by how they rank the untuned retriever's candidates, because the corpus is embedded again only after training.
"""

import abc
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import numpy as np
import optax
from jaxtyping import Bool, Float, Int

from radit_jax.config import RFtConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.data.batches.packing import pack_lengths, pack_texts
from radit_jax.data.records import Question
from radit_jax.method.steps import RftBatch, RftTextBatch, make_r_ft_step, make_r_ft_text_step
from radit_jax.models.bert import PackedTexts
from radit_jax.retrieval.search import Encoder, Searcher
from radit_jax.runtime.distributed.mesh import put_batch
from radit_jax.runtime.pretrained.model_io import Model
from radit_jax.text.metrics import is_yes_no, reciprocal_ranks

ROW_LENGTHS = (32, 64, 128)  # tokens; tried for rows that queries share, besides the longest query's length
VALIDATION_DEPTH = 10  # MRR@10 is the paper's measure of R-ft's checkpoints


@dataclass(frozen=True)
class DevelopmentQuestions:
    """Q questions that choose a checkpoint. A question's hits are the chunks that hold an answer.

    Where no candidate of the untuned retriever holds one, or where the answer is yes or no, the hit is the
    candidate that helps the language model most. It stays the hit whatever is retrieved later, because later
    candidates would have to be scored at every validation.
    """

    questions: Sequence[Question]
    helpful_rows: Int[np.ndarray, " Q"]  # the most helpful candidate; −1 where none counts

    @classmethod
    def judged_by_answers(cls, questions: Sequence[Question]) -> "DevelopmentQuestions":
        """Questions without candidates: those whose answer is yes or no are left out."""
        judged = [question for question in questions if not is_yes_no(question.answers)]
        return cls(judged, np.full(len(judged), -1))

    @classmethod
    def judged_by_lm(
        cls, corpus: Corpus, retrieved: Retrieved, answer_log_probs: Float[np.ndarray, "Q K"]
    ) -> "DevelopmentQuestions":
        """The questions of `retrieved`, with the log p_LM of each one's answer under its K candidates."""
        by_id = {question.id: question for question in corpus.questions("dev")}
        questions = [_without_yes_no(by_id[example.id]) for example in retrieved.examples]
        # The most helpful candidate counts only where no candidate holds an answer.
        best_candidates = answer_log_probs.argmax(axis=1)
        most_helpful = retrieved.chunk_rows[np.arange(len(questions)), best_candidates]
        has_answer = corpus.holds_answer(questions, retrieved.chunk_rows).any(axis=1)
        return cls(questions, np.where(has_answer, -1, most_helpful))

    @property
    def texts(self) -> list[str]:
        """What the questions ask, as it is searched with."""
        return [question.question for question in self.questions]

    def hits(self, corpus: Corpus, chunk_rows: Int[np.ndarray, "Q K"]) -> Bool[np.ndarray, "Q K"]:
        """Which of the chunks at `chunk_rows` count as right; −1 is no chunk and never does."""
        is_helpful = (chunk_rows == self.helpful_rows[:, None]) & (chunk_rows >= 0)
        return corpus.holds_answer(self.questions, chunk_rows) | is_helpful


def _without_yes_no(question: Question) -> Question:
    """The question without its answers where they are yes or no: almost any chunk holds such a word."""
    return replace(question, answers=()) if is_yes_no(question.answers) else question


@dataclass(frozen=True)
class PackedQueries:
    """The examples' queries as token ids, and the one shape of rows that holds the queries of any batch.

    Queries are short and of all lengths. With one query a row, about half of all positions would be padding.
    """

    ids: Sequence[Sequence[int]]  # by the number of the example
    num_rows: int
    row_length: int  # tokens

    @classmethod
    def fit(
        cls, ids: Sequence[Sequence[int]], batches: Iterable[Sequence[int]], unit: int
    ) -> "PackedQueries":
        """Choose the row length that takes the fewest positions; the number of rows is a multiple of `unit`.

        `batches` are the numbers of the examples in each batch that will be asked for.
        """
        # How many rows of each length hold the batch that needs most of them.
        lengths = np.array([len(query) for query in ids], np.int64)
        lengths_of_batches = [lengths[example_numbers] for example_numbers in batches]
        longest = int(lengths.max(initial=1))
        shapes = []
        for row_length in {longest, *ROW_LENGTHS}:
            if row_length >= longest:
                shapes.append((_num_rows(lengths_of_batches, row_length, unit), row_length))
        # Of shapes with as many positions, the one with fewer rows.
        num_rows, row_length = min(shapes, key=lambda shape: (shape[0] * shape[1], shape))
        return cls(ids, num_rows, row_length)

    def batch(self, example_numbers: Sequence[int]) -> PackedTexts:
        """The queries of these examples, in this order."""
        texts = [self.ids[number] for number in example_numbers]
        return pack_texts(texts, row_length=self.row_length, num_rows=self.num_rows)


def _num_rows(lengths_of_batches: Sequence[Int[np.ndarray, " B"]], row_length: int, unit: int) -> int:
    """The rows that any batch fits into, rounded up to a multiple of `unit`."""
    used = [len(pack_lengths(lengths, row_length=row_length)) for lengths in lengths_of_batches]
    return -(-max(used, default=1) // unit) * unit


@dataclass(frozen=True)
class Learner(abc.ABC):
    """What R-ft trains: its parameters, its step with the batches, its validation, and the tuned models."""

    searcher: Searcher  # with the untuned query encoder
    corpus: Corpus
    queries: PackedQueries
    development: DevelopmentQuestions

    reach: ClassVar[int]  # the rank in the untuned retriever's list from which training may bring a chunk up

    @property
    @abc.abstractmethod
    def params(self) -> Any:
        """The parameters before the first step."""

    @property
    @abc.abstractmethod
    def step_factory(self) -> Callable[..., Any]:
        """What makes the step: `make_r_ft_step`, or one that is called in the same way."""

    @final
    def make_step(
        self,
        tx: optax.GradientTransformation,
        r_ft: RFtConfig,
        temperature: float,
        state_shardings: Any,
    ) -> Callable[..., Any]:
        """The jitted step on Eq. 5: from state and batch to state and metrics."""
        return self.step_factory(
            self.searcher.encoder.module,
            tx,
            temperature=temperature,
            direction=r_ft.direction,
            state_shardings=state_shardings,
        )

    @abc.abstractmethod
    def batch(
        self,
        example_numbers: Sequence[int],
        chunk_rows: Int[np.ndarray, "B K"],
        target_log_probs: Float[np.ndarray, "B K"],
    ) -> Any:
        """The step's batch on the devices: B examples with their K chunks, where −1 is no chunk."""

    @abc.abstractmethod
    def has_hit_within_reach(self) -> bool:
        """Whether any development question has a hit among the untuned retriever's first `reach` chunks."""

    @abc.abstractmethod
    def validate(self, params: Any) -> dict[str, float]:
        """MRR@10 and answer recall over the development questions, by name."""

    @abc.abstractmethod
    def tuned(self, params: Any) -> dict[str, Model]:
        """The models that R-ft leaves, by the names of their folders."""


@final
@dataclass(frozen=True)
class QueryTower(Learner):
    """The query encoder learns, over the stored embeddings of the chunks."""

    reach: ClassVar[int] = 100

    @property
    def params(self) -> Any:
        """The untuned query encoder's parameters."""
        return self.searcher.encoder.model.params

    @property
    def step_factory(self) -> Callable[..., Any]:
        """A step on stored chunk embeddings."""
        return make_r_ft_step

    def batch(
        self,
        example_numbers: Sequence[int],
        chunk_rows: Int[np.ndarray, "B K"],
        target_log_probs: Float[np.ndarray, "B K"],
    ) -> RftBatch:
        """The queries' tokens, and the stored embeddings [B, K, D] of their chunks."""
        queries = self.queries.batch(example_numbers)
        embeddings = self.searcher.embeddings[chunk_rows]
        arrays = (queries, embeddings, target_log_probs, chunk_rows >= 0)
        return RftBatch(*put_batch(arrays, self.searcher.encoder.mesh))

    def has_hit_within_reach(self) -> bool:
        """Whether any question has a hit among the first `reach` chunks of the whole index."""
        # A validation's depth mostly suffices, and it is searched much faster.
        for most in (VALIDATION_DEPTH, self.reach):
            depth = min(most, len(self.corpus.chunks))
            chunk_rows, _ = self.searcher.search(self.development.texts, depth)
            if self.development.hits(self.corpus, chunk_rows).any():
                return True
        return False

    def validate(self, params: Any) -> dict[str, float]:
        """MRR@10 and answer recall among what these parameters retrieve from the whole index."""
        tuned = self.searcher.with_params(params)
        chunk_rows, _ = tuned.search(self.development.texts, VALIDATION_DEPTH)
        return _ranking_figures(self.development.hits(self.corpus, chunk_rows))

    def tuned(self, params: Any) -> dict[str, Model]:
        """The query encoder alone."""
        return {"query_encoder": self.searcher.encoder.model._replace(params=params)}


@final
@dataclass(frozen=True)
class BothTowers(Learner):
    """The query encoder and the chunk encoder learn; parameters are {"query": ..., "chunk": ...}."""

    chunk_encoder: Encoder  # the untuned one

    reach: ClassVar[int] = VALIDATION_DEPTH

    @property
    def params(self) -> Any:
        """The untuned parameters of both encoders."""
        return {"query": self.searcher.encoder.model.params, "chunk": self.chunk_encoder.model.params}

    @property
    def step_factory(self) -> Callable[..., Any]:
        """A step that encodes the chunks too, as their own tower does."""
        return functools.partial(make_r_ft_text_step, chunk_module=self.chunk_encoder.module)

    def batch(
        self,
        example_numbers: Sequence[int],
        chunk_rows: Int[np.ndarray, "B K"],
        target_log_probs: Float[np.ndarray, "B K"],
    ) -> RftTextBatch:
        """The queries' tokens, and the tokens [B, K, U] of their chunks."""
        queries = self.queries.batch(example_numbers)
        tokens, mask = self.chunk_encoder.tokenize(self._passages(chunk_rows))
        by_example = (*chunk_rows.shape, -1)  # [B·K, U] to [B, K, U]
        texts = (tokens.reshape(by_example), mask.reshape(by_example))
        arrays = (queries, *texts, target_log_probs, chunk_rows >= 0)
        return RftTextBatch(*put_batch(arrays, self.searcher.encoder.mesh))

    def has_hit_within_reach(self) -> bool:
        """Whether any question has a hit among the candidates, which training only ranks."""
        return bool(self._candidate_hits.any())

    def validate(self, params: Any) -> dict[str, float]:
        """MRR@10 and answer recall of the untuned retriever's candidates, as these parameters rank them."""
        # Rank the candidates by Eq. 1; equal scores stay in the untuned retriever's order.
        query_encoder = self.searcher.encoder.with_params(params["query"])
        chunk_encoder = self.chunk_encoder.with_params(params["chunk"])
        chunks = chunk_encoder.embed(self._passages(self._candidate_rows))
        queries = query_encoder.embed(self.development.texts)
        by_question = (*self._candidate_rows.shape, -1)  # [Q·K, D] to [Q, K, D]
        scores = np.einsum("qd,qkd->qk", queries, chunks.reshape(by_question))
        order = np.argsort(-scores, axis=1, kind="stable")
        return _ranking_figures(np.take_along_axis(self._candidate_hits, order, axis=1))

    def tuned(self, params: Any) -> dict[str, Model]:
        """Both encoders."""
        return {
            "query_encoder": self.searcher.encoder.model._replace(params=params["query"]),
            "chunk_encoder": self.chunk_encoder.model._replace(params=params["chunk"]),
        }

    @functools.cached_property
    def _candidate_rows(self) -> Int[np.ndarray, "Q K"]:
        """The untuned retriever's candidates for the development questions."""
        chunk_rows, _ = self.searcher.search(self.development.texts, VALIDATION_DEPTH)
        return chunk_rows

    @functools.cached_property
    def _candidate_hits(self) -> Bool[np.ndarray, "Q K"]:
        return self.development.hits(self.corpus, self._candidate_rows)

    def _passages(self, chunk_rows: Int[np.ndarray, "B K"]) -> list[str]:
        """The texts of the chunks, and of any chunk where there is none: masks leave it out."""
        any_rows = np.maximum(chunk_rows, 0).ravel()
        return [chunk.passage for chunk in self.corpus.chunks.take(any_rows)]


def _ranking_figures(hits: Bool[np.ndarray, "Q K"]) -> dict[str, float]:
    return {
        "mrr@10": float(reciprocal_ranks(hits).mean()),
        "answer_recall@1": float(hits[:, 0].mean()),
        "answer_recall@10": float(hits.any(axis=1).mean()),
    }


def check_within_reach(learner: Learner) -> None:
    """Refuse to train where no development question has a hit that training may bring up."""
    if not learner.has_hit_within_reach():
        raise ValueError(
            "r_ft: expected a development question with a chunk that holds an answer, got none among the "
            f"first {learner.reach} of any of the {len(learner.development.questions)}, so no checkpoint can "
            "be chosen. Raise data.dev_questions, or give questions that the corpus answers."
        )


def check_best_has_hit(best: tuple[int, float] | None) -> tuple[int, float]:
    """The best checkpoint's step and MRR@10, which is not 0: that would keep the untuned encoder as tuned."""
    assert best is not None, "the last step is always validated"
    _, mrr = best
    if mrr == 0:
        raise ValueError(
            "r_ft: expected a development question with a chunk that holds an answer among its first "
            f"{VALIDATION_DEPTH}, got none at any validation, so no checkpoint can be chosen. Raise "
            "data.dev_questions, or give questions that the corpus answers."
        )
    return best
