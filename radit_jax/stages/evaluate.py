"""evaluate: the ablation. Five systems answer the test questions; both retrievers are judged; what chunks do.

Every figure has a 95 % interval from a bootstrap over groups of questions (entities, passages); a gain is the
paired difference in exact match.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from radit_jax.config import EvaluateConfig, MeshConfig, ScoreConfig
from radit_jax.data.corpus import Corpus
from radit_jax.data.examples import question_example
from radit_jax.data.records import Question
from radit_jax.lm.answering import answer
from radit_jax.lm.scoring import NO_CHUNK, PairScorer
from radit_jax.method.losses import ensemble_log_prob, retrieval_log_prob
from radit_jax.retrieval.search import Searcher
from radit_jax.runtime.models import load_model
from radit_jax.runtime.store import StageFolder
from radit_jax.text.metrics import exact_match, f1, is_yes_no, recall_at_k, reciprocal_ranks
from radit_jax.text.statistics import Figure, bootstrap_interval, paired_gain

LMS = ("base_lm", "lm_ft_lm")
RETRIEVERS = ("base", "r_ft")
SYSTEMS = {  # name -> its language model and its retriever
    "closed_book": ("base_lm", None),
    "base": ("base_lm", "base"),
    "lm_ft": ("lm_ft_lm", "base"),
    "r_ft": ("base_lm", "r_ft"),
    "radit": ("lm_ft_lm", "r_ft"),
}
GAINS = ("lm_ft-base", "r_ft-base", "radit-lm_ft", "radit-base")
CUTOFFS = (1, 5, 10)


def run(
    inputs: Mapping[str, StageFolder],
    output: StageFolder,
    *,
    evaluate: EvaluateConfig,
    temperature: float,
    seed: int,
    mesh: MeshConfig,
) -> dict[str, Any]:
    """Answer, score and rank; write `results.json` and `predictions.jsonl`."""
    exam = Exam.load(inputs, output, evaluate, temperature, seed, mesh)
    found = {name: exam.search(name) for name in RETRIEVERS}
    marks = {
        system: exam.sit(system, lm, *(found[retriever] if retriever else exam.given("none")))
        for system, (lm, retriever) in SYSTEMS.items()
    }
    top = found["base"][0][:, :1]
    contexts = {
        lm: {
            kind: exam.sit(f"{lm}-{kind}", lm, *exam.given(kind, top))
            for kind in ("gold", "retrieved", "random", "none")
        }
        for lm in LMS
    }
    results = {
        "fingerprint": output.fingerprint,
        "systems": {
            name: exam.figures(mark, ("exact_match", "f1", "answer_nll")) for name, mark in marks.items()
        },
        "gains": {name: exam.gain(*(marks[system] for system in name.split("-"))) for name in GAINS},
        "context": {
            lm: {kind: exam.figures(mark, ("exact_match", "answer_nll")) for kind, mark in kinds.items()}
            for lm, kinds in contexts.items()
        },
        "retrieval": {name: exam.retrieval(rows) for name, (rows, _) in found.items()},
        "num_questions": len(exam.questions),
    }
    output.write_json("results.json", results)
    output.write_jsonl("predictions.jsonl", exam.predictions(marks, found["r_ft"]))
    return {
        "num_questions": len(exam.questions),
        "exact_match": results["systems"]["radit"]["exact_match"]["value"],
    }


@dataclass(frozen=True)
class Exam:
    """The test questions, and all that is needed to sit them."""

    inputs: Mapping[str, StageFolder]
    output: StageFolder
    corpus: Corpus
    questions: Sequence[Question]
    searcher: Searcher
    settings: EvaluateConfig
    temperature: float
    seed: int
    mesh: MeshConfig
    models: dict[str, PairScorer]

    @classmethod
    def load(
        cls,
        inputs: Mapping[str, StageFolder],
        output: StageFolder,
        settings: EvaluateConfig,
        temperature: float,
        seed: int,
        mesh: MeshConfig,
    ) -> "Exam":
        corpus = Corpus(inputs["corpus"])
        score = ScoreConfig(batch_size=settings.batch_size, sequence_length=settings.sequence_length)
        models = {
            lm: PairScorer.load(inputs[stage].check("lm"), score, mesh)
            for lm, stage in (("base_lm", "base_lm"), ("lm_ft_lm", "lm_ft"))
        }
        searcher = Searcher.load(inputs, mesh)
        questions = corpus.questions("test")
        return cls(inputs, output, corpus, questions, searcher, settings, temperature, seed, mesh, models)

    def search(self, name: str) -> tuple[Int[np.ndarray, "Q K"], Float[np.ndarray, "Q K"]]:
        """The k chunks of each question under one of the retrievers, and log p_R of them."""
        searcher = self.searcher
        if name == "r_ft":
            searcher = searcher.with_params(load_model(self.inputs["r_ft"].check("query_encoder")).params)
        depth = max(self.settings.chunks_per_answer, *CUTOFFS)
        rows, scores = searcher.search([question.question for question in self.questions], depth)
        k = self.settings.chunks_per_answer
        log_probs = retrieval_log_prob(
            jnp.asarray(scores[:, :k]), jnp.ones((len(rows), k), bool), self.temperature
        )
        return rows, np.asarray(log_probs)

    def given(
        self, kind: str, top: Int[np.ndarray, "Q 1"] | None = None
    ) -> tuple[Int[np.ndarray, "Q 1"], Float[np.ndarray, "Q 1"]]:
        """One chunk for each question, with all the weight: gold where one is known, the top one, any, none."""
        count = len(self.questions)
        if kind == "gold":
            rows = [self.corpus.rows[q.gold_chunks[0]] if q.gold_chunks else NO_CHUNK for q in self.questions]
        elif kind == "retrieved":
            rows = top[:, 0]
        elif kind == "random":
            rows = np.random.default_rng([self.seed, 3]).integers(len(self.corpus.chunks), size=count)
        else:
            rows = np.full(count, NO_CHUNK)
        return np.asarray(rows)[:, None], np.zeros((count, 1), np.float32)

    def sit(
        self, name: str, lm: str, rows: Int[np.ndarray, "Q D"], log_probs: Float[np.ndarray, "Q K"]
    ) -> list[dict[str, Any]]:
        """Each question's answers and marks under one language model and its chunks; kept once made."""
        file = f"{name}.jsonl"
        if not self.output.has(file):
            rows = rows[:, : log_probs.shape[1]]
            texts = [question.question for question in self.questions]
            answers = answer(
                self.models[lm].model,
                texts,
                rows,
                log_probs,
                self.corpus.chunks,
                self.settings,
                f"evaluate {name}",
            )
            nlls = self._answer_nll(lm, rows, log_probs)
            self.output.write_jsonl(file, map(self._mark, self.questions, answers, nlls))
        return self.output.read_jsonl(file)

    def _answer_nll(
        self, lm: str, rows: Int[np.ndarray, "Q K"], log_probs: Float[np.ndarray, "Q K"]
    ) -> Float[np.ndarray, " Q"]:
        """−log p of each first gold answer under Eq. 2, in nats per answer token, without a terminator."""
        examples = [question_example(question, question.answers[0]) for question in self.questions]
        pairs = np.stack([np.repeat(np.arange(len(rows)), rows.shape[1]), rows.ravel()], axis=1)
        scored = self.models[lm].score(examples, pairs, self.corpus.chunks)
        answer_log_probs = scored.answer_log_probs.reshape(rows.shape)
        mixed = ensemble_log_prob(
            jnp.asarray(answer_log_probs), jnp.asarray(log_probs), jnp.ones(rows.shape, bool)
        )
        tokenizer = self.models[lm].model.tokenizer
        counts = np.array([len(tokenizer.encode(example.answer)) for example in examples])
        return -np.asarray(mixed) / np.maximum(counts, 1)

    @staticmethod
    def _mark(question: Question, answers: Sequence[Any], nll: float) -> dict[str, Any]:
        best = answers[0].text
        return {
            "answers": [{"answer": text, "probability": probability} for text, probability in answers],
            "exact_match": exact_match(best, question.answers),
            "f1": f1(best, question.answers),
            "answer_nll": float(nll),
        }

    def figures(self, marks: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> dict[str, Figure]:
        return {metric: self._interval([mark[metric] for mark in marks]) for metric in metrics}

    def gain(self, after: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]) -> Figure:
        scores = (np.array([mark["exact_match"] for mark in marks]) for marks in (after, before))
        groups = [question.group for question in self.questions]
        return paired_gain(*scores, groups, samples=self.settings.bootstrap_samples, seed=self.seed)

    def retrieval(self, rows: Int[np.ndarray, "Q D"]) -> dict[str, Figure]:
        """Recall of gold chunks, where known, and of chunks that hold an answer, yes and no left out; MRR@10."""
        holds, gold = (
            self.corpus.holds_answer(self.questions, rows),
            self.corpus.is_gold(self.questions, rows),
        )
        with_gold = np.array([bool(question.gold_chunks) for question in self.questions])
        open_ended = np.array([not is_yes_no(question.answers) for question in self.questions])
        figures = {}
        for name, hits, counted in (("gold", gold, with_gold), ("answer", holds, open_ended)):
            for cutoff in CUTOFFS:
                figures[f"{name}_recall@{cutoff}"] = self._interval(recall_at_k(hits, cutoff), counted)
        return {**figures, "mrr": self._interval(reciprocal_ranks(holds[:, :10]), open_ended)}

    def _interval(self, values: Sequence[float], counted: Bool[np.ndarray, " Q"] | None = None) -> Figure:
        counted = np.ones(len(self.questions), bool) if counted is None else counted
        groups = [question.group for question, count in zip(self.questions, counted, strict=True) if count]
        chosen = np.asarray(values, np.float64)[counted]
        return bootstrap_interval(chosen, groups, samples=self.settings.bootstrap_samples, seed=self.seed)

    def predictions(
        self,
        marks: Mapping[str, Sequence[Mapping[str, Any]]],
        found: tuple[Int[np.ndarray, "Q D"], Float[np.ndarray, "Q K"]],
    ) -> list[dict[str, Any]]:
        """RA-DIT's answers with the chunks behind them, and each system's best answer beside."""
        rows, log_probs = found
        lines = []
        for number, question in enumerate(self.questions):
            chunks = self.corpus.chunks.take(rows[number, : log_probs.shape[1]])
            lines.append(
                {
                    "id": question.id,
                    "question": question.question,
                    "gold": list(question.answers),
                    "answers": marks["radit"][number]["answers"],
                    "chunks": [
                        {"id": chunk.id, "title": chunk.title, "text": chunk.text, "p_R": float(p)}
                        for chunk, p in zip(chunks, np.exp(log_probs[number]), strict=True)
                    ],
                    "systems": {
                        system: mark[number]["answers"][0]["answer"] for system, mark in marks.items()
                    },
                }
            )
        return lines
