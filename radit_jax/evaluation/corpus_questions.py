"""The ablation on the corpus' own questions: answers, likelihoods, rankings and their figures.

Letters of axes: Q questions, K chunks that an answer is mixed over, D ranks to which a ranking is judged.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from radit_jax.config import EvaluateConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.batches.examples import asked_prompt, question_example
from radit_jax.data.batches.prefix_trees import answer_token_count
from radit_jax.data.records import Question
from radit_jax.evaluation.questions import TOO_LONG
from radit_jax.evaluation.systems import CONTEXTS, GAINS, LMS, SYSTEMS
from radit_jax.lm.answering import Answer, Retrieval, generate_answers
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

    rows: Int[np.ndarray, "Q D"]  # the best first; D is at least K
    log_probs: Float[np.ndarray, "Q K"]


@dataclass(frozen=True)
class CorpusQuestionEval:
    """The ablation on questions of the corpus. Each system's answers are stored when they are made."""

    output: StageFolder
    corpus: Corpus
    questions: Sequence[Question]
    settings: EvaluateConfig
    seed: int  # of the bootstrap, and of the random chunks
    models: Mapping[str, PairScorer]  # by language model

    def run(
        self,
        retrieved: Mapping[str, RetrievedChunks],
        *,
        too_long: int = 0,
    ) -> dict[str, Any]:
        """Evaluate all systems, write `results.json` and predictions, and return facts for the manifest.

        `retrieved` is by retriever. `too_long` is how many questions were left out because they do not fit.
        """
        # 1) Answers, metrics and likelihoods, for the five systems and for one chunk of each kind.
        inputs = self.system_inputs(retrieved)
        by_system = {}
        for name, system in inputs.items():
            by_system[name] = self.evaluate(name, system, inputs.values())

        # 2) Figures: the systems, what they gain, how each LM uses a chunk, and how chunks are ranked.
        systems = {}
        for name in SYSTEMS:
            systems[name] = self.figures(by_system[name], ("exact_match", "f1", "answer_nll"))
        gains = {}
        for name, (after, before) in GAINS.items():
            gains[name] = self.gain(by_system[after], by_system[before])
        context = {lm: self._context_figures(lm, by_system) for lm in LMS}
        retrieval = {name: self.retrieval_figures(chunks.rows) for name, chunks in retrieved.items()}

        # 3) Files for people and for other programs.
        num_questions = len(self.questions)
        results = {
            "fingerprint": self.output.fingerprint,
            "systems": systems,
            "gains": gains,
            "context": context,
            "retrieval": retrieval,
            "num_questions": num_questions,
            TOO_LONG: too_long,
        }
        self.output.write_json("results.json", results)
        lines = self.predictions({name: by_system[name] for name in SYSTEMS}, retrieved["r_ft"])
        self.output.write_jsonl("predictions.jsonl", lines)
        return {
            "num_questions": num_questions,
            TOO_LONG: too_long,
            "exact_match": systems["radit"]["exact_match"]["value"],
        }

    # ---- what a system answers with ----

    def retrieve(
        self,
        searcher: Searcher,
        temperature: float,
    ) -> RetrievedChunks:
        """Each question's ranking under a retriever, k deep or more, and log p_R of the first k."""
        # Recall and MRR look deeper than answering does.
        k = self.settings.chunks_per_answer
        queries = [question.question for question in self.questions]
        rows, scores = searcher.search(queries, max(k, *CUTOFFS))
        return RetrievedChunks(rows, chunk_log_probs(scores[:, :k], temperature))

    def system_inputs(self, retrieved: Mapping[str, RetrievedChunks]) -> dict[str, SystemInputs]:
        """The five systems, and then each language model with one chunk of each kind, as `base_lm-gold`."""
        top_rows = retrieved["base"].rows[:, 0]
        one_chunk = {kind: self.one_chunk(kind, top_rows) for kind in CONTEXTS}

        # The five systems.
        inputs = {}
        for name, system in SYSTEMS.items():
            if system.retriever is None:
                inputs[name] = SystemInputs(system.lm, *one_chunk["none"])
                continue
            rows, log_probs = retrieved[system.retriever]
            k = log_probs.shape[1]
            inputs[name] = SystemInputs(system.lm, rows[:, :k], log_probs)

        # One chunk of each kind.
        for lm in LMS:
            for kind in CONTEXTS:
                inputs[f"{lm}-{kind}"] = SystemInputs(lm, *one_chunk[kind])
        return inputs

    def one_chunk(
        self,
        kind: str,
        top_rows: Int[np.ndarray, " Q"],
    ) -> tuple[Int[np.ndarray, "Q 1"], Float[np.ndarray, "Q 1"]]:
        """One chunk for each question, with all the weight: gold where known, the top one, any or none."""
        # How a language model uses a chunk shows best with one: its quality is known, and nothing is mixed.
        num_questions = len(self.questions)
        if kind == "gold":
            rows = np.asarray([self._gold_row(question) for question in self.questions])
        elif kind == "retrieved":
            rows = np.asarray(top_rows)
        elif kind == "random":
            rng = np.random.default_rng([self.seed, 3])
            rows = rng.integers(len(self.corpus.chunks), size=num_questions)
        else:
            rows = np.full(num_questions, NO_CHUNK)
        return rows[:, None], np.zeros((num_questions, 1), np.float32)

    def _gold_row(self, question: Question) -> int:
        if not question.gold_chunks:
            return NO_CHUNK
        return self.corpus.rows[question.gold_chunks[0]]

    # ---- answers and likelihoods ----

    def evaluate(
        self,
        name: str,
        system: SystemInputs,
        all_systems: Iterable[SystemInputs],
    ) -> list[dict[str, Any]]:
        """Each question's answers with their metrics under one system, from its file if it has one."""
        # Answers take long. A run that goes on after a kill answers only what has no file yet.
        file = f"{name}.jsonl"
        if not self.output.has(file):
            answers = self._answers(name, system)
            nlls = self._answer_nll(system, all_systems)
            results = map(self._question_result, self.questions, answers, nlls)
            self.output.write_jsonl(file, results)
        return self.output.read_jsonl(file)

    def _answers(self, name: str, system: SystemInputs) -> list[list[Answer]]:
        """Each question's generated answers, the best first."""
        model = self.models[system.lm].model
        prompts = [asked_prompt(question) for question in self.questions]
        retrieval = Retrieval(self.corpus.chunks, system.rows, system.log_probs)
        with Progress(len(prompts), f"evaluate {name}", "questions") as bar:
            answers, _ = generate_answers(
                model,
                prompts,
                retrieval,
                self.settings,
                bar=bar,
            )
        return answers

    def _answer_nll(
        self,
        system: SystemInputs,
        all_systems: Iterable[SystemInputs],
    ) -> Float[np.ndarray, " Q"]:
        """−log p of each first gold answer under Eq. 2, in nats per answer token, without a terminator."""
        file = f"{system.lm}-pairs.npz"
        if not self.output.has(file):
            rows = [other.rows for other in all_systems if other.lm == system.lm]
            self._score_pairs(file, system.lm, rows)
        stored = self.output.read_arrays(file)

        # Where the score of each (question, chunk) pair is stored.
        pairs = map(tuple, stored["pairs"].tolist())
        place_of = {pair: place for place, pair in enumerate(pairs)}
        places = np.zeros(system.rows.shape, np.int64)
        for question, rows in enumerate(system.rows.tolist()):
            places[question] = [place_of[question, row] for row in rows]

        # Eq. 2 over each question's chunks.
        log_probs = stored["answer_log_probs"][places]
        chunk_mask = np.ones(log_probs.shape, bool)
        mixed = _ensemble(log_probs, system.log_probs, chunk_mask)
        return -np.asarray(mixed) / np.maximum(stored["answer_token_counts"], 1)

    def _score_pairs(
        self,
        file: str,
        lm: str,
        rows: Sequence[Int[np.ndarray, "Q _"]],
    ) -> None:
        """Score the gold answers once under every chunk that any system with this language model has."""
        # Systems share many chunks; `unique` leaves each pair once.
        scorer = self.models[lm]
        examples = [question_example(question, question.answers[0]) for question in self.questions]
        all_rows = np.concatenate(rows, axis=1)
        pairs = np.unique(every_pair(all_rows), axis=0)
        with Progress(len(pairs), f"evaluate {lm}", "pairs") as bar:
            scored = scorer.score(examples, pairs, self.corpus.chunks, bar)

        # The likelihoods are reported per token of the answer.
        tokenizer = scorer.model.tokenizer
        counts = [answer_token_count(tokenizer, example) for example in examples]
        self.output.write_arrays(
            file,
            pairs=pairs,
            answer_log_probs=scored.answer_log_probs,
            answer_token_counts=np.array(counts),
        )

    @staticmethod
    def _question_result(
        question: Question,
        answers: Sequence[Any],
        nll: float,
    ) -> dict[str, Any]:
        # The metrics judge the most probable answer, the likelihood the first gold one.
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
        results: Sequence[QuestionResult],
        metrics: Sequence[str],
        counted: Bool[np.ndarray, " Q"] | None = None,
    ) -> dict[str, Figure]:
        """The metrics' means with their intervals, over all questions or those that are `counted`."""
        figures = {}
        for metric in metrics:
            values = [result[metric] for result in results]
            figures[metric] = self._interval(values, counted)
        return figures

    def _context_figures(
        self,
        lm: str,
        by_system: Mapping[str, Sequence[QuestionResult]],
    ) -> dict[str, dict[str, Figure]]:
        """A language model's figures under one chunk of each kind; under gold ones where they are known."""
        figures = {}
        for kind in CONTEXTS:
            results = by_system[f"{lm}-{kind}"]
            counted = self.with_gold if kind == "gold" else None
            figures[kind] = self.figures(
                results,
                ("exact_match", "answer_nll"),
                counted,
            )
        return figures

    @property
    def with_gold(self) -> Bool[np.ndarray, " Q"]:
        """Which questions have a known gold chunk."""
        return np.array([bool(question.gold_chunks) for question in self.questions], bool)

    def gain(
        self,
        after: Sequence[QuestionResult],
        before: Sequence[QuestionResult],
    ) -> Figure:
        """How much exact match grows from one system to another on the same questions."""
        return paired_gain(
            np.array([result["exact_match"] for result in after]),
            np.array([result["exact_match"] for result in before]),
            [question.resampling_group for question in self.questions],
            samples=self.settings.bootstrap_samples,
            seed=self.seed,
        )

    def retrieval_figures(self, rows: Int[np.ndarray, "Q D"]) -> dict[str, Figure]:
        """Recall of gold chunks, where known, and of chunks that hold an answer; MRR@10 of the latter."""
        is_gold = self.corpus.is_gold(self.questions, rows)
        holds_answer = self.corpus.holds_answer(self.questions, rows)
        # A "no" in a chunk answers nothing, so questions of yes or no stay out of answer recall.
        open_ended = np.array([not is_yes_no(question.answers) for question in self.questions])

        # Each kind of recall is over the questions that it is defined for.
        figures = {}
        for cutoff in CUTOFFS:
            recall = recall_at_k(is_gold, cutoff)
            figures[f"gold_recall@{cutoff}"] = self._interval(recall, self.with_gold)
        for cutoff in CUTOFFS:
            recall = recall_at_k(holds_answer, cutoff)
            figures[f"answer_recall@{cutoff}"] = self._interval(recall, open_ended)
        figures["mrr"] = self._interval(reciprocal_ranks(holds_answer[:, :10]), open_ended)
        return figures

    def _interval(
        self,
        values: Any,
        counted: Bool[np.ndarray, " Q"] | None = None,
    ) -> Figure:
        """The mean of the counted questions' values with its interval; all are counted if none are named."""
        if counted is None:
            counted = np.ones(len(self.questions), bool)
        places = np.flatnonzero(counted).tolist()
        return bootstrap_interval(
            np.asarray(values, np.float64)[counted],
            [self.questions[place].resampling_group for place in places],
            samples=self.settings.bootstrap_samples,
            seed=self.seed,
        )

    # ---- predictions ----

    def predictions(
        self,
        by_system: Mapping[str, Sequence[QuestionResult]],
        retrieved: RetrievedChunks,
    ) -> list[dict[str, Any]]:
        """RA-DIT's answers with the chunks that they are from, and each system's best answer."""
        # As a person reads it: the question, what RA-DIT answered on what evidence, and the others' answers.
        lines = []
        for index, question in enumerate(self.questions):
            best_answers = {}
            for name, results in by_system.items():
                best_answers[name] = results[index]["answers"][0]["answer"]
            lines.append(
                {
                    "id": question.id,
                    "group": question.group,
                    "question": question.question,
                    "gold": list(question.answers),
                    "answers": by_system["radit"][index]["answers"],
                    "chunks": self._weighted_chunks(retrieved.rows[index], retrieved.log_probs[index]),
                    "systems": best_answers,
                }
            )
        return lines

    def _weighted_chunks(
        self,
        rows: Int[np.ndarray, " D"],
        log_probs: Float[np.ndarray, " K"],
    ) -> list[dict[str, Any]]:
        """The first K of a question's chunks with their p_R."""
        chunks = []
        records = self.corpus.chunks.take(rows[: len(log_probs)])
        for chunk, p in zip(records, np.exp(log_probs), strict=True):
            chunks.append({"id": chunk.id, "title": chunk.title, "text": chunk.text, "p_R": float(p)})
        return chunks
