"""Sitting the corpus' own questions: answers, likelihoods and rankings, kept once made, and their figures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from radit_jax.config import EvaluateConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.batches.examples import asked_prompt, question_example
from radit_jax.data.batches.prefix_trees import LmTokenizer, answer_token_count, fits
from radit_jax.data.records import Question
from radit_jax.lm.answering import Retrieval, generate_answers
from radit_jax.lm.scoring import NO_CHUNK, PairScorer, every_pair
from radit_jax.method.losses import ensemble_log_prob
from radit_jax.runtime.monitoring.progress import Progress
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.text.metrics import exact_match, f1, is_yes_no, recall_at_k, reciprocal_ranks
from radit_jax.text.statistics import Figure, bootstrap_interval, paired_gain

CUTOFFS = (1, 5, 10)
_ensemble: Any = jax.jit(ensemble_log_prob)


class SystemInputs(NamedTuple):
    """What a system brings to the exam: its language model, its chunks and their weights."""

    lm: str
    rows: Int[np.ndarray, "Q K"]  # NO_CHUNK: closed book
    log_probs: Float[np.ndarray, "Q K"]  # log p_R


def fitting(
    questions: Sequence[Question], tokenizer: LmTokenizer, settings: EvaluateConfig
) -> list[Question]:
    """The questions that a row holds without Background, with their gold answer as with one of ours."""
    room = settings.sequence_length - 1 - settings.max_new_tokens

    def fit(question: Question) -> bool:
        example = question_example(question, question.answers[0])
        prompt = tokenizer.encode(tokenizer.opening + example.prompt)
        return len(prompt) <= room and fits(tokenizer, example, settings.sequence_length)

    kept = [question for question in questions if fit(question)]
    if left_out := len(questions) - len(kept):
        row = f"questions too long for the row of evaluate.sequence_length {settings.sequence_length}"
        if not kept:
            raise ValueError(f"evaluate: expected questions that fit, got none. {row}: {left_out}. Raise it.")
        print(f"   warning: evaluate: {row}: {left_out}; left out", flush=True)
    return kept


@dataclass(frozen=True)
class CorpusQuestionEval:
    """The corpus' own questions, and all that is needed to sit them."""

    output: StageFolder
    corpus: Corpus
    questions: Sequence[Question]
    settings: EvaluateConfig
    seed: int
    models: Mapping[str, PairScorer]

    def given(
        self, kind: str, top: Int[np.ndarray, " Q"]
    ) -> tuple[Int[np.ndarray, "Q 1"], Float[np.ndarray, "Q 1"]]:
        """One chunk for each question, with all the weight: gold where known, the top one, any, none."""
        count = len(self.questions)
        rows = np.full(count, NO_CHUNK)
        if kind == "gold":
            rows = [self.corpus.rows[q.gold_chunks[0]] if q.gold_chunks else NO_CHUNK for q in self.questions]
        elif kind == "retrieved":
            rows = top
        elif kind == "random":
            rows = np.random.default_rng([self.seed, 3]).integers(len(self.corpus.chunks), size=count)
        return np.asarray(rows)[:, None], np.zeros((count, 1), np.float32)

    def sit(
        self, name: str, sitting: SystemInputs, all_sittings: Iterable[SystemInputs]
    ) -> list[dict[str, Any]]:
        """Each question's answers and marks in one sitting; kept once made."""
        file = f"{name}.jsonl"
        if not self.output.has(file):
            prompts = [asked_prompt(question) for question in self.questions]
            retrieval = Retrieval(self.corpus.chunks, sitting.rows, sitting.log_probs)
            with Progress(len(prompts), f"evaluate {name}", "questions") as bar:
                model = self.models[sitting.lm].model
                answers, _ = generate_answers(model, prompts, retrieval, self.settings, bar=bar)
            nlls = self._answer_nll(sitting, all_sittings)
            self.output.write_jsonl(file, map(self._mark, self.questions, answers, nlls))
        return self.output.read_jsonl(file)

    def _answer_nll(
        self, sitting: SystemInputs, all_sittings: Iterable[SystemInputs]
    ) -> Float[np.ndarray, " Q"]:
        """−log p of each first gold answer under Eq. 2, in nats per answer token, without a terminator."""
        file = f"{sitting.lm}-pairs.npz"
        if not self.output.has(file):
            self._score_pairs(
                file, sitting.lm, [other.rows for other in all_sittings if other.lm == sitting.lm]
            )
        scored = self.output.read_arrays(file)
        place = {pair: number for number, pair in enumerate(map(tuple, scored["pairs"].tolist()))}
        numbers = [[place[q, row] for row in rows] for q, rows in enumerate(sitting.rows.tolist())]
        own = scored["answer_log_probs"][np.array(numbers)]
        mixed = _ensemble(own, sitting.log_probs, np.ones(own.shape, bool))
        return -np.asarray(mixed) / np.maximum(scored["answer_token_counts"], 1)

    def _score_pairs(self, file: str, lm: str, rows: Sequence[Int[np.ndarray, "Q _"]]) -> None:
        """Score the gold answers under every chunk that any sitting of a language model has, each once."""
        examples = [question_example(question, question.answers[0]) for question in self.questions]
        pairs = np.unique(every_pair(np.concatenate(rows, axis=1)), axis=0)
        with Progress(len(pairs), f"evaluate {lm}", "pairs") as bar:
            scored = self.models[lm].score(examples, pairs, self.corpus.chunks, bar)
        tokenizer = self.models[lm].model.tokenizer
        counts = np.array([answer_token_count(tokenizer, example) for example in examples])
        self.output.write_arrays(
            file, pairs=pairs, answer_log_probs=scored.answer_log_probs, answer_token_counts=counts
        )

    @staticmethod
    def _mark(question: Question, answers: Sequence[Any], nll: float) -> dict[str, Any]:
        best = answers[0].text
        return {
            "answers": [{"answer": text, "probability": probability} for text, probability in answers],
            "exact_match": exact_match(best, question.answers),
            "f1": f1(best, question.answers),
            "answer_nll": float(nll),
        }

    def figures(
        self,
        marks: Sequence[Mapping[str, Any]],
        metrics: Sequence[str],
        counted: Bool[np.ndarray, " Q"] | None = None,
    ) -> dict[str, Figure]:
        """The metrics' means with their intervals, over all questions or those that are `counted`."""
        return {metric: self._interval([mark[metric] for mark in marks], counted) for metric in metrics}

    @property
    def with_gold(self) -> Bool[np.ndarray, " Q"]:
        """Which questions have a known gold chunk."""
        return np.array([bool(question.gold_chunks) for question in self.questions], bool)

    def gain(self, after: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]) -> Figure:
        scored, baseline = (np.array([mark["exact_match"] for mark in marks]) for marks in (after, before))
        groups = [question.resampling_group for question in self.questions]
        return paired_gain(scored, baseline, groups, samples=self.settings.bootstrap_samples, seed=self.seed)

    def retrieval(self, rows: Int[np.ndarray, "Q D"]) -> dict[str, Figure]:
        """Recall of gold chunks, where known, and of chunks that hold an answer; MRR@10 of the latter."""
        holds, gold = (
            self.corpus.holds_answer(self.questions, rows),
            self.corpus.is_gold(self.questions, rows),
        )
        open_ended = np.array([not is_yes_no(question.answers) for question in self.questions])
        figures = {}
        for name, hits, counted in (("gold", gold, self.with_gold), ("answer", holds, open_ended)):
            for cutoff in CUTOFFS:
                figures[f"{name}_recall@{cutoff}"] = self._interval(recall_at_k(hits, cutoff), counted)
        return {**figures, "mrr": self._interval(reciprocal_ranks(holds[:, :10]), open_ended)}

    def _interval(self, values: Any, counted: Bool[np.ndarray, " Q"] | None = None) -> Figure:
        counted = np.ones(len(self.questions), bool) if counted is None else counted
        groups = [
            question.resampling_group
            for question, count in zip(self.questions, counted, strict=True)
            if count
        ]
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
                    "group": question.group,
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
