"""The ablation on the corpus' own questions: answers, likelihoods, rankings and their figures."""

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
from radit_jax.evaluation.systems import CONTEXTS, GAINS, LMS, SYSTEMS
from radit_jax.evaluation.task_suite import TOO_LONG
from radit_jax.lm.answering import Retrieval, generate_answers
from radit_jax.lm.scoring import NO_CHUNK, PairScorer, every_pair
from radit_jax.method.losses import ensemble_log_prob
from radit_jax.retrieval.search import Searcher, chunk_log_probs
from radit_jax.runtime.monitoring.progress import Progress
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.text.metrics import exact_match, f1, is_yes_no, recall_at_k, reciprocal_ranks
from radit_jax.text.statistics import Figure, bootstrap_interval, paired_gain

CUTOFFS = (1, 5, 10)
QuestionResult = Mapping[str, Any]  # a question's answers, metrics and likelihood under one system
_ensemble: Any = jax.jit(ensemble_log_prob)


class SystemInputs(NamedTuple):
    """What a system answers with: its language model, and each question's chunks with their weights."""

    lm: str
    rows: Int[np.ndarray, "Q K"]  # NO_CHUNK: closed book
    log_probs: Float[np.ndarray, "Q K"]  # log p_R


class RetrievedChunks(NamedTuple):
    """A retriever's ranking for each question, and log p_R of its first K."""

    rows: Int[np.ndarray, "Q D"]  # the best first, as deep as the rankings are judged
    log_probs: Float[np.ndarray, "Q K"]


def questions_that_fit(
    questions: Sequence[Question], tokenizer: LmTokenizer, settings: EvaluateConfig
) -> list[Question]:
    """The questions that fit into a row without a Background, with a generated or gold answer."""
    max_prompt_length = settings.sequence_length - 1 - settings.max_new_tokens

    def fit(question: Question) -> bool:
        example = question_example(question, question.answers[0])
        prompt = tokenizer.encode(tokenizer.opening + example.prompt)
        return len(prompt) <= max_prompt_length and fits(tokenizer, example, settings.sequence_length)

    fitting = [question for question in questions if fit(question)]
    if left_out := len(questions) - len(fitting):
        row = f"questions too long for the row of evaluate.sequence_length {settings.sequence_length}"
        if not fitting:
            raise ValueError(f"evaluate: expected questions that fit, got none. {row}: {left_out}. Raise it.")
        print(f"   warning: evaluate: {row}: {left_out}; left out", flush=True)
    return fitting


@dataclass(frozen=True)
class CorpusQuestionEval:
    """The ablation on questions of the corpus; what each system answered is kept once made."""

    output: StageFolder
    corpus: Corpus
    questions: Sequence[Question]
    settings: EvaluateConfig
    seed: int  # of the bootstrap, and of the random chunks
    models: Mapping[str, PairScorer]  # by language model

    def run(self, retrieved: Mapping[str, RetrievedChunks], *, too_long: int = 0) -> dict[str, Any]:
        """Evaluate all systems, write `results.json` and predictions, and return facts for the manifest.

        `retrieved` is by retriever. `too_long` is how many questions were left out because they do not fit.
        """
        inputs = self.system_inputs(retrieved)
        marks = {name: self.evaluate(name, own, inputs.values()) for name, own in inputs.items()}
        systems, gains = {}, {}
        for name in SYSTEMS:
            systems[name] = self.figures(marks[name], ("exact_match", "f1", "answer_nll"))
        for name, (after, before) in GAINS.items():
            gains[name] = self.gain(marks[after], marks[before])
        results = {
            "fingerprint": self.output.fingerprint,
            "systems": systems,
            "gains": gains,
            "context": {lm: self._context_figures(lm, marks) for lm in LMS},
            "retrieval": {name: self.retrieval_figures(chunks.rows) for name, chunks in retrieved.items()},
            "num_questions": len(self.questions),
            TOO_LONG: too_long,
        }
        self.output.write_json("results.json", results)
        lines = self.predictions({name: marks[name] for name in SYSTEMS}, retrieved["r_ft"])
        self.output.write_jsonl("predictions.jsonl", lines)
        return {
            "num_questions": len(self.questions),
            TOO_LONG: too_long,
            "exact_match": systems["radit"]["exact_match"]["value"],
        }

    # ---- what a system answers with ----

    def retrieve(self, searcher: Searcher, temperature: float) -> RetrievedChunks:
        """Each question's ranking under a retriever, k deep or more, and log p_R of the first k."""
        k = self.settings.chunks_per_answer
        queries = [question.question for question in self.questions]
        rows, scores = searcher.search(queries, max(k, *CUTOFFS))
        return RetrievedChunks(rows, chunk_log_probs(scores[:, :k], temperature))

    def system_inputs(self, retrieved: Mapping[str, RetrievedChunks]) -> dict[str, SystemInputs]:
        """The five systems, and then each language model with one chunk of each kind, as `base_lm-gold`."""
        one_chunk = {kind: self.one_chunk(kind, retrieved["base"].rows[:, 0]) for kind in CONTEXTS}
        inputs = {}
        for name, system in SYSTEMS.items():
            if system.retriever is None:
                inputs[name] = SystemInputs(system.lm, *one_chunk["none"])
            else:
                rows, log_probs = retrieved[system.retriever]
                inputs[name] = SystemInputs(system.lm, rows[:, : log_probs.shape[1]], log_probs)
        for lm in LMS:
            for kind in CONTEXTS:
                inputs[f"{lm}-{kind}"] = SystemInputs(lm, *one_chunk[kind])
        return inputs

    def one_chunk(
        self, kind: str, top_rows: Int[np.ndarray, " Q"]
    ) -> tuple[Int[np.ndarray, "Q 1"], Float[np.ndarray, "Q 1"]]:
        """One chunk for each question, with all the weight: gold where known, the top one, any or none."""
        count = len(self.questions)
        rows = np.full(count, NO_CHUNK)
        if kind == "gold":
            rows = [self._gold_row(question) for question in self.questions]
        elif kind == "retrieved":
            rows = top_rows
        elif kind == "random":
            rows = np.random.default_rng([self.seed, 3]).integers(len(self.corpus.chunks), size=count)
        return np.asarray(rows)[:, None], np.zeros((count, 1), np.float32)

    def _gold_row(self, question: Question) -> int:
        return self.corpus.rows[question.gold_chunks[0]] if question.gold_chunks else NO_CHUNK

    # ---- answers and likelihoods ----

    def evaluate(
        self, name: str, system: SystemInputs, all_systems: Iterable[SystemInputs]
    ) -> list[dict[str, Any]]:
        """Each question's answers with their metrics under one system; kept once made."""
        file = f"{name}.jsonl"
        if not self.output.has(file):
            prompts = [asked_prompt(question) for question in self.questions]
            retrieval = Retrieval(self.corpus.chunks, system.rows, system.log_probs)
            with Progress(len(prompts), f"evaluate {name}", "questions") as bar:
                model = self.models[system.lm].model
                answers, _ = generate_answers(model, prompts, retrieval, self.settings, bar=bar)
            nlls = self._answer_nll(system, all_systems)
            self.output.write_jsonl(file, map(self._question_result, self.questions, answers, nlls))
        return self.output.read_jsonl(file)

    def _answer_nll(
        self, system: SystemInputs, all_systems: Iterable[SystemInputs]
    ) -> Float[np.ndarray, " Q"]:
        """−log p of each first gold answer under Eq. 2, in nats per answer token, without a terminator."""
        file = f"{system.lm}-pairs.npz"
        if not self.output.has(file):
            rows = [other.rows for other in all_systems if other.lm == system.lm]
            self._score_pairs(file, system.lm, rows)
        scored = self.output.read_arrays(file)
        place_of = {pair: place for place, pair in enumerate(map(tuple, scored["pairs"].tolist()))}
        places = np.zeros(system.rows.shape, np.int64)
        for question, rows in enumerate(system.rows.tolist()):
            places[question] = [place_of[question, row] for row in rows]
        log_probs = scored["answer_log_probs"][places]
        mixed = _ensemble(log_probs, system.log_probs, np.ones(log_probs.shape, bool))
        return -np.asarray(mixed) / np.maximum(scored["answer_token_counts"], 1)

    def _score_pairs(self, file: str, lm: str, rows: Sequence[Int[np.ndarray, "Q _"]]) -> None:
        """Score the gold answers once under every chunk that any system with this language model has."""
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
    def _question_result(question: Question, answers: Sequence[Any], nll: float) -> dict[str, Any]:
        best = answers[0].text
        return {
            "answers": [{"answer": text, "probability": probability} for text, probability in answers],
            "exact_match": exact_match(best, question.answers),
            "f1": f1(best, question.answers),
            "answer_nll": float(nll),
        }

    # ---- figures ----

    def figures(
        self,
        marks: Sequence[QuestionResult],
        metrics: Sequence[str],
        counted: Bool[np.ndarray, " Q"] | None = None,
    ) -> dict[str, Figure]:
        """The metrics' means with their intervals, over all questions or those that are `counted`."""
        figures = {}
        for metric in metrics:
            figures[metric] = self._interval([mark[metric] for mark in marks], counted)
        return figures

    def _context_figures(
        self, lm: str, marks: Mapping[str, Sequence[QuestionResult]]
    ) -> dict[str, dict[str, Figure]]:
        """A language model's figures under one chunk of each kind; under gold ones where they are known."""
        figures = {}
        for kind in CONTEXTS:
            counted = self.with_gold if kind == "gold" else None
            figures[kind] = self.figures(marks[f"{lm}-{kind}"], ("exact_match", "answer_nll"), counted)
        return figures

    @property
    def with_gold(self) -> Bool[np.ndarray, " Q"]:
        """Which questions have a known gold chunk."""
        return np.array([bool(question.gold_chunks) for question in self.questions], bool)

    def gain(self, after: Sequence[QuestionResult], before: Sequence[QuestionResult]) -> Figure:
        """What exact match gains from one system to another on the same questions."""
        scored = np.array([mark["exact_match"] for mark in after])
        baseline = np.array([mark["exact_match"] for mark in before])
        groups = [question.resampling_group for question in self.questions]
        return paired_gain(scored, baseline, groups, samples=self.settings.bootstrap_samples, seed=self.seed)

    def retrieval_figures(self, rows: Int[np.ndarray, "Q D"]) -> dict[str, Figure]:
        """Recall of gold chunks, where known, and of chunks that hold an answer; MRR@10 of the latter."""
        holds_answer = self.corpus.holds_answer(self.questions, rows)
        is_gold = self.corpus.is_gold(self.questions, rows)
        open_ended = np.array([not is_yes_no(question.answers) for question in self.questions])
        figures = {}
        for name, hits, counted in (("gold", is_gold, self.with_gold), ("answer", holds_answer, open_ended)):
            for cutoff in CUTOFFS:
                figures[f"{name}_recall@{cutoff}"] = self._interval(recall_at_k(hits, cutoff), counted)
        figures["mrr"] = self._interval(reciprocal_ranks(holds_answer[:, :10]), open_ended)
        return figures

    def _interval(self, values: Any, counted: Bool[np.ndarray, " Q"] | None = None) -> Figure:
        counted = np.ones(len(self.questions), bool) if counted is None else counted
        places = np.flatnonzero(counted).tolist()
        groups = [self.questions[place].resampling_group for place in places]
        chosen = np.asarray(values, np.float64)[counted]
        return bootstrap_interval(chosen, groups, samples=self.settings.bootstrap_samples, seed=self.seed)

    # ---- predictions ----

    def predictions(
        self, marks: Mapping[str, Sequence[QuestionResult]], retrieved: RetrievedChunks
    ) -> list[dict[str, Any]]:
        """RA-DIT's answers with the chunks that they are from, and each system's best answer."""
        rows, log_probs = retrieved
        lines = []
        for number, question in enumerate(self.questions):
            chunks = []
            records = self.corpus.chunks.take(rows[number, : log_probs.shape[1]])
            for chunk, p in zip(records, np.exp(log_probs[number]), strict=True):
                chunks.append({"id": chunk.id, "title": chunk.title, "text": chunk.text, "p_R": float(p)})
            lines.append(
                {
                    "id": question.id,
                    "group": question.group,
                    "question": question.question,
                    "gold": list(question.answers),
                    "answers": marks["radit"][number]["answers"],
                    "chunks": chunks,
                    "systems": {name: mark[number]["answers"][0]["answer"] for name, mark in marks.items()},
                }
            )
        return lines
