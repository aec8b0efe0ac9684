"""The ablation on the corpus' own questions: answers, likelihoods, rankings and their figures.

Letters of axes: Q questions, K chunks that an answer is mixed over, D ranks to which a ranking is judged.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from radit_jax.config import EvaluateConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.batches.examples import asked_prompt, question_example
from radit_jax.data.batches.few_shot import Shot
from radit_jax.data.batches.prefix_trees import answer_token_count
from radit_jax.data.records import Question
from radit_jax.evaluation.details import (
    GoldLogProbs,
    answer_from_json,
    answer_to_json,
    detail_lines,
    gold_log_probs,
)
from radit_jax.evaluation.few_shot_base import KINDS, FewShotBase
from radit_jax.evaluation.figures import CUTOFFS, QuestionFigures, QuestionResult, ranking_figures
from radit_jax.evaluation.predictions import prediction_lines, question_result
from radit_jax.evaluation.questions import TOO_LONG
from radit_jax.evaluation.systems import (
    CONTEXTS,
    GAINS,
    LMS,
    SYSTEMS,
    RetrievedChunks,
    SystemInputs,
    first_alike,
)
from radit_jax.lm.answering import Answer, Retrieval, generate_answers, make_prompts, questions_per_batch
from radit_jax.lm.prefix_sharing import group_by_shared_chunks
from radit_jax.lm.scoring import NO_CHUNK, PairScorer, every_pair
from radit_jax.lm.sharded_scoring import ShardedScorer
from radit_jax.method.losses import ensemble_log_prob
from radit_jax.retrieval.search import Searcher, chunk_log_probs
from radit_jax.runtime.monitoring.progress import Progress
from radit_jax.runtime.row_parts import read_each
from radit_jax.runtime.shards import Shards
from radit_jax.runtime.storage.fingerprints import shard_name
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.text.statistics import Figure

ANSWERS_PER_SHARD = 160  # questions whose answers a killed run loses at most
PAIRS_PER_SHARD = 2048  # (question, chunk) pairs likewise
_ensemble: Any = jax.jit(ensemble_log_prob)


@dataclass(frozen=True)
class CorpusQuestionEval:
    """The ablation on questions of the corpus. Each system's answers are stored when they are made.

    Retrievers are measured on all of `ranked`. The language models answer `questions`, some of them.
    """

    output: StageFolder
    corpus: Corpus
    ranked: Sequence[Question]
    settings: EvaluateConfig
    seed: int  # of the bootstrap, of the random chunks, and of which questions are answered
    models: Mapping[str, PairScorer]  # by language model

    @functools.cached_property
    def places(self) -> Int[np.ndarray, " Q"]:
        """Where the questions that are answered are among `ranked`."""
        drawn = np.random.default_rng([self.seed, 4]).permutation(len(self.ranked))
        num_answered = self.settings.answered_questions or len(drawn)
        return np.sort(drawn[:num_answered])

    @functools.cached_property
    def questions(self) -> list[Question]:
        """The questions that are answered."""
        return [self.ranked[place] for place in self.places.tolist()]

    @functools.cached_property
    def figures(self) -> QuestionFigures:
        """Means and gains over the questions that are answered."""
        return QuestionFigures(self.questions, self.settings.bootstrap_samples, self.seed)

    def run(
        self,
        retrieved: Mapping[str, RetrievedChunks],
        *,
        few_shot: FewShotBase | None = None,
        too_long: int = 0,
    ) -> dict[str, Any]:
        """Evaluate all systems, write `results.json` and predictions, and return facts for the manifest.

        `retrieved` is by retriever, for each question of `ranked`. `few_shot` are the examples that the base
        LM is asked after as well. `too_long` is how many questions were left out because they do not fit.
        """
        # 1) Answers, metrics and likelihoods, for the five systems and for one chunk of each kind.
        of_questions = {name: chunks.of(self.places) for name, chunks in retrieved.items()}
        inputs = self.system_inputs(of_questions)
        by_system = self._evaluate_all(inputs)

        # 2) Figures: the systems, what they gain, how each LM uses a chunk, and how chunks are ranked.
        systems, gains = {}, {}
        for name in SYSTEMS:
            systems[name] = self.figures.means(by_system[name], ("exact_match", "f1", "answer_nll"))
        for name, (after, before) in GAINS.items():
            gains[name] = self.figures.gain(by_system[after], by_system[before], "exact_match")
        context = {lm: self._context_figures(lm, by_system) for lm in LMS}
        all_questions = QuestionFigures(self.ranked, self.settings.bootstrap_samples, self.seed)
        rows_by_retriever = {name: chunks.rows for name, chunks in retrieved.items()}

        # 3) Files for people and for other programs.
        num_questions = len(self.questions)
        results = {
            "fingerprint": self.output.fingerprint,
            "systems": systems,
            "gains": gains,
            "context": context,
            **ranking_figures(self.corpus, all_questions, rows_by_retriever),
            "num_questions": num_questions,
            "num_ranked": len(self.ranked),
            TOO_LONG: too_long,
        }
        if few_shot is not None:
            results["few_shot"] = self._few_shot_figures(few_shot, inputs, by_system)
        self.output.write_json("results.json", results)
        results_by_system = {name: by_system[name] for name in SYSTEMS}
        lines = prediction_lines(self.questions, results_by_system, of_questions["r_ft"], self.corpus.chunks)
        self.output.write_jsonl("predictions.jsonl", lines)
        self.output.write_jsonl("details.jsonl", self._details(inputs, of_questions))
        return {
            "num_questions": num_questions,
            TOO_LONG: too_long,
            "exact_match": systems["radit"]["exact_match"]["value"],
        }

    def _evaluate_all(self, inputs: Mapping[str, SystemInputs]) -> dict[str, list[dict[str, Any]]]:
        """Each question's results by system; systems that would answer alike are evaluated once."""
        by_system: dict[str, list[dict[str, Any]]] = {}
        for name, system in inputs.items():
            first = first_alike(name, inputs)
            if first == name:
                by_system[name] = self.evaluate(name, system, inputs.values())
            else:
                by_system[name] = by_system[first]
        return by_system

    def _details(
        self, inputs: Mapping[str, SystemInputs], retrieved: Mapping[str, RetrievedChunks]
    ) -> list[dict[str, Any]]:
        """The lines of `details.jsonl`, from what is stored of the systems that answered."""
        answers, gold = {}, {}
        for name, system in SYSTEMS.items():
            first = first_alike(name, inputs)
            answers[name] = self._stored_answers(first, inputs[first])
            if system.retriever is not None:
                gold[system.lm, system.retriever] = self._gold_log_probs(inputs[name])
        ids = [question.id for question in self.questions]
        return detail_lines(ids, retrieved, answers, gold)

    # ---- what a system answers with ----

    def retrieve(self, searcher: Searcher, temperature: float) -> RetrievedChunks:
        """Each question's ranking under a retriever, k deep or more, and log p_R of the first k."""
        # Recall and MRR look deeper than answering does.
        k = self.settings.chunks_per_answer
        queries = [question.question for question in self.ranked]
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
            rows = self.corpus.first_gold_rows(self.questions)
        elif kind == "retrieved":
            rows = np.asarray(top_rows)
        elif kind == "random":
            rng = np.random.default_rng([self.seed, 3])
            rows = rng.integers(len(self.corpus.chunks), size=num_questions)
        else:
            rows = np.full(num_questions, NO_CHUNK)
        return rows[:, None], np.zeros((num_questions, 1), np.float32)

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
            results = []
            for question, question_answers, nll in zip(self.questions, answers, nlls, strict=True):
                result = question_result(question, question_answers)
                results.append({**result, "answer_nll": float(nll)})
            self.output.write_jsonl(file, results)
        return self.output.read_jsonl(file)

    def _answers(
        self,
        name: str,
        system: SystemInputs,
        shots: Sequence[Shot] = (),
    ) -> list[list[Answer]]:
        """Each question's generated answers, the best first; every question has the same shots before it.

        They are stored a shard at a time; each of several processes makes shards of its own.
        """
        places = self._answer_shards(name, system)
        sizes = {file: len(places_of_shard) for file, places_of_shard in places.items()}
        shards = Shards.find(self.output, sizes, self.models[system.lm].own)
        with shards.progress(f"evaluate {name}", "questions") as bar:
            lines = (self._answer(system, places[file], shots, bar) for file in shards.own)
            shards.write_each(lines, self.output.write_jsonl)
        return self._stored_answers(name, system)

    def _answer_shards(self, name: str, system: SystemInputs) -> dict[str, list[int]]:
        """The files of a system's answers, and the places of the questions in each."""
        # Questions that share chunks are in one shard, and are answered together there.
        num_questions, k = system.rows.shape
        order = group_by_shared_chunks(system.rows, questions_per_batch(k, self.settings))
        starts = range(0, num_questions, ANSWERS_PER_SHARD)
        shards = {}
        for index, start in enumerate(starts):
            file = shard_name(f"{name}-answers", index, len(starts))
            shards[f"{file}.jsonl"] = order[start : start + ANSWERS_PER_SHARD]
        return shards

    def _stored_answers(self, name: str, system: SystemInputs) -> list[list[Answer]]:
        """The answers of a system that has answered all questions."""
        answers: list[list[Answer]] = [[] for _ in system.rows]
        files = list(self._answer_shards(name, system))
        # Each of several processes reads some of the shards.
        for file, data in zip(files, read_each(self.output, files), strict=True):
            for line in self.output.parse_jsonl(file, data):
                answers[line["place"]] = list(map(answer_from_json, line["answers"]))
        return answers

    def _answer(
        self,
        system: SystemInputs,
        places: list[int],
        shots: Sequence[Shot],
        bar: Progress,
    ) -> list[dict[str, Any]]:
        """The answers to the questions at these places, as they are stored."""
        retrieval = Retrieval(self.corpus.chunks, system.rows, system.log_probs)
        answers, _ = generate_answers(
            self.models[system.lm].model,
            [asked_prompt(self.questions[place]) for place in places],
            retrieval.part(places),
            self.settings,
            shots=[shots] * len(places),
            bar=bar,
        )
        lines = []
        for place, candidates in zip(places, answers, strict=True):
            lines.append({"place": place, "answers": list(map(answer_to_json, candidates))})
        return lines

    def _answer_nll(
        self, system: SystemInputs, all_systems: Iterable[SystemInputs]
    ) -> Float[np.ndarray, " Q"]:
        """−log p of each first gold answer under Eq. 2, in nats per answer token, without a terminator."""
        if not self.output.has(f"{system.lm}-pairs.npz"):
            rows = [other.rows for other in all_systems if other.lm == system.lm]
            self._score_pairs(f"{system.lm}-pairs.npz", system.lm, rows)
        log_probs, counts = self._gold_log_probs(system)
        # Eq. 2 over each question's chunks.
        chunk_mask = np.ones(log_probs.shape, bool)
        mixed = _ensemble(log_probs, system.log_probs, chunk_mask)
        return -np.asarray(mixed) / np.maximum(counts, 1)

    def _gold_log_probs(self, system: SystemInputs) -> GoldLogProbs:
        """What is stored of each first gold answer under the system's chunks."""
        stored = self.output.read_arrays(f"{system.lm}-pairs.npz")
        return gold_log_probs(stored, system.rows)

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
        sharded = ShardedScorer(lambda: scorer, self.output, self.corpus.chunks, PAIRS_PER_SHARD)
        scored = sharded.score(f"{lm}-pairs", examples, pairs, f"evaluate {lm}")

        # The likelihoods are reported per token of the answer.
        tokenizer = scorer.model.tokenizer
        counts = [answer_token_count(tokenizer, example) for example in examples]
        self.output.write_arrays(
            file,
            pairs=pairs,
            answer_log_probs=scored.answer_log_probs,
            answer_token_counts=np.array(counts),
        )

    # ---- figures ----

    def _context_figures(
        self,
        lm: str,
        by_system: Mapping[str, Sequence[QuestionResult]],
    ) -> dict[str, dict[str, Figure]]:
        """A language model's figures under one chunk of each kind; under gold ones where they are known."""
        figures = {}
        for kind in CONTEXTS:
            results = by_system[f"{lm}-{kind}"]
            counted = self.figures.with_gold if kind == "gold" else None
            figures[kind] = self.figures.means(results, ("exact_match", "f1", "answer_nll"), counted)
        return figures

    def _few_shot_figures(
        self,
        few_shot: FewShotBase,
        inputs: Mapping[str, SystemInputs],
        by_system: Mapping[str, Sequence[QuestionResult]],
    ) -> dict[str, Any]:
        """The base LM after examples, on the first questions, and what LM-ft gains on it without any."""
        num_questions = min(self.settings.shot_questions, len(self.questions))
        figures = QuestionFigures(self.questions[:num_questions], self.settings.bootstrap_samples, self.seed)
        systems, gains, dropped = {}, {}, {}
        for kind in KINDS:
            name = f"base_lm-{kind}-{len(few_shot.examples)}_shots"
            system = inputs[f"base_lm-{kind}"].first(num_questions)
            shots = few_shot.shots(kind, self.corpus)
            dropped[kind] = self._num_dropped(system, shots)
            answers = self._answers(name, system, shots)
            results = list(map(question_result, self.questions, answers))
            # Gold chunks are not known of all questions.
            counted = figures.with_gold if kind == "gold" else None
            after = by_system[f"lm_ft_lm-{kind}"][:num_questions]
            systems[kind] = figures.means(results, ("exact_match", "f1"), counted)
            gains[kind] = figures.gain(after, results, "exact_match", counted)
        return {
            "num_questions": num_questions,
            "examples": few_shot.record(),
            "shots_dropped": dropped,
            "systems": systems,
            "gains": gains,
        }

    def _num_dropped(self, system: SystemInputs, shots: Sequence[Shot]) -> int:
        """How many examples do not fit before their prompts, over all of the system's questions."""
        texts = [asked_prompt(question) for question in self.questions[: len(system.rows)]]
        retrieval = Retrieval(self.corpus.chunks, system.rows, system.log_probs)
        model = self.models[system.lm].model
        prompts = make_prompts(model, texts, retrieval, self.settings, [shots] * len(texts))
        return prompts.shots_dropped
