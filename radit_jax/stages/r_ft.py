"""r_ft: Eq. 4 and 5. The query encoder learns to rank chunks as the language model would have them.

Chunk encoder, stored embeddings, index and language model stay as they are. With `r_ft.refresh_every`,
training goes in rounds: each but the first retrieves anew with the query encoder as it then is, and scores
the pairs that no earlier round has scored. A round's candidates are kept as `round_N`; what it retrieved
and each shard of its scores are kept before that, so that a run which was killed goes on from there.

With `r_ft.train_chunk_encoder`, an ablation of the paper, the chunk encoder learns beside it: each step
encodes the candidates' texts, and checkpoints are chosen by how the untuned retriever's candidates are
ranked, because the corpus is embedded anew only once, after training.
"""

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from radit_jax.config import MeshConfig, ProfileConfig, RFtConfig, ScoreConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.artifacts.lsr_scores import Scores
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.data.batches.order import shuffled
from radit_jax.data.batches.packing import pack_lengths, pack_texts
from radit_jax.data.records import Example, Question
from radit_jax.lm.lsr_diagnostics import report
from radit_jax.lm.scoring import PairScorer, PairScores, every_pair, score_in_shards
from radit_jax.method import losses
from radit_jax.method.optimizers import make_optimizer
from radit_jax.method.steps import RftBatch, RftTextBatch, init_state, make_r_ft_step, make_r_ft_text_step
from radit_jax.models.bert import PackedTexts
from radit_jax.retrieval.candidates import search_examples
from radit_jax.retrieval.search import Encoder, Searcher
from radit_jax.runtime.distributed.mesh import data_parallel_size, init_sharded, put_batch
from radit_jax.runtime.loop import train
from radit_jax.runtime.monitoring.metrics import Metrics
from radit_jax.runtime.pretrained.model_io import Model, save_model
from radit_jax.runtime.storage.checkpoints import Checkpoints
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.text.metrics import is_yes_no, reciprocal_ranks

ROW_LENGTHS = (32, 64, 128)  # of rows that queries share, beside the longest query's own
VALIDATION_DEPTH = 10  # MRR@10, the paper's measure of R-ft's checkpoints


def run(
    inputs: Mapping[str, StageFolder],
    output: StageFolder,
    *,
    r_ft: RFtConfig,
    score: ScoreConfig,
    seed: int,
    mesh: MeshConfig,
    profile: ProfileConfig | None = None,
) -> dict[str, Any]:
    """Train the query encoder; the checkpoint with the best MRR@10 on development questions is kept."""
    started = time.monotonic()
    corpus = Corpus(inputs["corpus"])
    searcher = Searcher.load(inputs, mesh)
    candidates = Candidates(inputs, output, corpus, searcher, score, mesh)
    order = shuffled(len(candidates.examples), batch_size=r_ft.batch_size, seed=seed)
    queries = Queries.fit(
        searcher.encoder.token_ids([example.query for example in candidates.examples]),
        map(order, range(r_ft.optimizer.steps)),
        data_parallel_size(searcher.encoder.mesh),
    )
    development = Development.make(inputs, output, corpus, score, mesh)
    learner = QueryTower(searcher, corpus, queries, development)
    if r_ft.train_chunk_encoder:
        chunk_encoder = Encoder.load(inputs["retriever"].check("chunk_encoder"), mesh)
        learner = BothTowers(searcher, corpus, queries, development, chunk_encoder)
    demand_within_reach(learner)
    tx = make_optimizer(r_ft.optimizer)
    state, shardings = init_sharded(lambda p: init_state(p, tx), searcher.encoder.mesh, learner.params)
    step = learner.make_step(
        searcher.encoder.module,
        tx,
        temperature=r_ft.temperature,
        direction=r_ft.direction,
        state_shardings=shardings,
    )
    checkpoints = Checkpoints(output.path / "checkpoints")
    signals = []
    for number, end in enumerate(_round_ends(r_ft)):
        if (checkpoints.latest() or 0) > 0:
            state, _ = checkpoints.restore(state)
        scores = candidates.round(number, state.params)
        signals.append(report(corpus, candidates.retrieved, scores, r_ft))
        state = train(
            name="r_ft",
            step=step,
            state=state,
            batch_at=_batches(scores, learner, r_ft, order),
            num_steps=end,
            checkpoints=checkpoints,
            metrics=Metrics(output.path / "metrics.jsonl"),
            checkpoint_every=r_ft.checkpoint_every,
            validate=lambda state: learner.validate(state.params),
            validate_every=r_ft.validate_every,
            select="mrr@10",
            profile=profile,
            started=started,
        )
        started = time.monotonic()  # a round's start-up is its new candidates
    best = demand_a_hit(checkpoints.best())
    for name, tower in learner.tuned(checkpoints.restore_best(state.params)).items():
        save_model(output.path / name, tower)
        output.commit(name)
    return {
        "steps": r_ft.optimizer.steps,
        "best_step": best[0],
        "dev_mrr@10": best[1],
        "times_seen": round(r_ft.optimizer.steps * r_ft.batch_size / len(candidates.examples), 2),
        "signal": signals,
    }


def demand_within_reach(learner: "QueryTower") -> None:
    """Refuse to train where no development question has a hit among the chunks that training may bring up."""
    if not learner.is_within_reach():
        raise ValueError(
            "r_ft: expected a development question with a chunk that holds an answer, got none among the "
            f"first {learner.reach} of any of the {len(learner.development.questions)}, so no checkpoint can "
            "be chosen. Raise data.dev_questions, or give questions that the corpus answers."
        )


def demand_a_hit(best: tuple[int, float] | None) -> tuple[int, float]:
    """The best checkpoint's step and MRR@10; one of 0 would keep the untuned encoder as if it were tuned."""
    assert best is not None, "the last step is always validated"
    if best[1] == 0:
        raise ValueError(
            f"r_ft: expected a development question with a chunk that holds an answer among its first "
            f"{VALIDATION_DEPTH}, got none at any validation, so no checkpoint can be chosen. Raise "
            "data.dev_questions, or give questions that the corpus answers."
        )
    return best


def _batches(
    scores: Scores, learner: "QueryTower", r_ft: RFtConfig, order: Callable[[int], list[int]]
) -> Callable[[int], Any]:
    """The batch of each step: the queries that `order` gives, with their chunks."""
    target = target_log_probs(scores, r_ft)

    def batch_at(step: int) -> Any:
        some = order(step)
        return learner.batch(some, scores.chunk_rows[some], target[some])

    return batch_at


def _round_ends(r_ft: RFtConfig) -> list[int]:
    """The step at which each round of candidates ends."""
    steps = r_ft.optimizer.steps
    every = r_ft.refresh_every or steps
    return [*(range(every, steps, every) if every else ()), steps]


def target_log_probs(scores: Scores, r_ft: RFtConfig) -> Float[np.ndarray, "E K"]:
    """What p_R shall become: log p_LSR (Eq. 4), or the posterior."""
    mask = jnp.asarray(scores.chunk_rows >= 0)
    lsr = losses.lsr_log_prob(
        jnp.asarray(scores.answer_log_probs),
        jnp.asarray(scores.answer_token_counts),
        mask,
        form=r_ft.lm_score,
        tau=r_ft.tau,
    )
    if r_ft.target == "lsr":
        return np.asarray(lsr)
    untuned = losses.retrieval_log_prob(jnp.asarray(scores.retrieval_scores), mask, r_ft.temperature)
    return np.asarray(losses.posterior_log_prob(untuned, lsr, mask))


@dataclass(frozen=True)
class Development:
    """What a checkpoint is judged by: questions, whose hits are chunks that hold an answer.

    Where no candidate of the untuned retriever holds one, or the answer is yes or no, the candidate that
    helps the language model most is the hit: it is `helpful`, −1 is none. It stays so whatever is retrieved
    later, which would have to be scored at every validation. Questions that no example was drawn with have
    none, and are left out where the answer is yes or no.
    """

    questions: Sequence[Question]
    helpful: Int[np.ndarray, " Q"]

    @classmethod
    def make(
        cls,
        inputs: Mapping[str, StageFolder],
        output: StageFolder,
        corpus: Corpus,
        score: ScoreConfig,
        mesh: MeshConfig,
    ) -> "Development":
        questions = corpus.questions("dev")
        if corpus.examples("r_ft", "dev") is None:
            asked = [question for question in questions if not is_yes_no(question.answers)]
            return cls(asked, np.full(len(asked), -1))
        retrieved = Retrieved.load(inputs["retrieved"], "dev")
        known = {question.id: question for question in questions}
        asked = [known[example.id] for example in retrieved.examples]
        asked = [replace(q, answers=()) if is_yes_no(q.answers) else q for q in asked]
        if not output.has("development.npz"):
            log_probs = _score_all(inputs, output, retrieved, corpus, score, mesh)
            output.write_arrays("development.npz", log_probs=log_probs)
        log_probs = output.read_arrays("development.npz")["log_probs"]
        best = retrieved.chunk_rows[np.arange(len(asked)), log_probs.argmax(axis=1)]
        held = corpus.holds_answer(asked, retrieved.chunk_rows).any(axis=1)
        return cls(asked, np.where(held, -1, best))

    @property
    def texts(self) -> list[str]:
        return [question.question for question in self.questions]

    def hits(self, corpus: Corpus, rows: Int[np.ndarray, "Q K"]) -> Bool[np.ndarray, "Q K"]:
        """Which of the chunks at `rows`, −1 being none, count."""
        return corpus.holds_answer(self.questions, rows) | ((rows == self.helpful[:, None]) & (rows >= 0))


def _score_all(
    inputs: Mapping[str, StageFolder],
    output: StageFolder,
    retrieved: Retrieved,
    corpus: Corpus,
    score: ScoreConfig,
    mesh: MeshConfig,
) -> Float[np.ndarray, "Q K"]:
    """The answers' log-probabilities under all chunks that were retrieved for them.

    Eq. 4's score rises with them for one answer, whatever its form.
    """
    scorer = ShardedScorer(inputs["lm"], output, corpus, score, mesh)
    pairs = every_pair(retrieved.chunk_rows)
    found = scorer.score("development-pairs", retrieved.examples, pairs, "score development")
    return found.answer_log_probs.reshape(retrieved.chunk_rows.shape)


@dataclass(frozen=True)
class ShardedScorer:
    """The language model in `lm`, which is not loaded before a pair needs it, and room for its scores."""

    lm: StageFolder
    output: StageFolder
    corpus: Corpus
    settings: ScoreConfig
    mesh: MeshConfig

    def score(
        self, name: str, examples: Sequence[Example], pairs: Int[np.ndarray, "P 2"], title: str
    ) -> PairScores:
        """Score `pairs` in shards that the output keeps as `name`."""
        # Loaded for this alone: between two rounds training has the devices' memory.
        load = functools.cache(lambda: PairScorer.load(self.lm.check("lm"), self.settings, self.mesh))
        return score_in_shards(
            self.output,
            name,
            pairs,
            lambda shard, bar: load().score(examples, shard, self.corpus.chunks, bar),
            shard_size=self.settings.shard_size,
            title=title,
        )


@dataclass(frozen=True)
class Queries:
    """The examples' queries as token ids, and the one shape of rows that holds those of any batch.

    Queries are short and of all lengths: one to a row, about half of what is computed would be padding.
    """

    ids: Sequence[Sequence[int]]
    num_rows: int
    row_length: int

    @classmethod
    def fit(cls, ids: Sequence[Sequence[int]], batches: Iterable[Sequence[int]], unit: int) -> "Queries":
        """In rows of the length that takes the fewest positions, their number a multiple of `unit`."""
        lengths = np.array([len(query) for query in ids], np.int64)
        longest, batches = int(lengths.max(initial=1)), list(batches)

        def rows_of(row_length: int) -> int:
            used = (len(pack_lengths(lengths[some], row_length=row_length)) for some in batches)
            return -(-max(used, default=1) // unit) * unit

        shapes = [(rows_of(length), length) for length in {longest, *ROW_LENGTHS} if length >= longest]
        return cls(ids, *min(shapes, key=lambda shape: (shape[0] * shape[1], shape)))

    def batch(self, some: Sequence[int]) -> PackedTexts:
        """The queries of the examples `some`, numbered in that order."""
        texts = [self.ids[number] for number in some]
        return pack_texts(texts, row_length=self.row_length, num_rows=self.num_rows)


@dataclass
class QueryTower:
    """What learns: the query encoder, over the stored embeddings of the chunks."""

    searcher: Searcher  # with the untuned query encoder
    corpus: Corpus
    queries: Queries
    development: Development

    make_step: ClassVar[Callable[..., Any]] = staticmethod(make_r_ft_step)
    reach: ClassVar[int] = 100  # chunks a question of the untuned retriever's: training may bring one up

    @property
    def params(self) -> Any:
        return self.searcher.encoder.model.params

    def is_within_reach(self) -> bool:
        """Whether any question has a hit among the untuned retriever's chunks."""
        depths = (VALIDATION_DEPTH, self.reach)  # the first is what a validation searches, and mostly enough
        for depth in (min(depth, len(self.corpus.chunks)) for depth in depths):
            rows, _ = self.searcher.search(self.development.texts, depth)
            if self.development.hits(self.corpus, rows).any():
                return True
        return False

    def batch(
        self, some: Sequence[int], rows: Int[np.ndarray, "B K"], target: Float[np.ndarray, "B K"]
    ) -> Any:
        """The batch of the examples `some`; it reads the chunks' embeddings only."""
        arrays = self.queries.batch(some), self.searcher.embeddings[rows], target, rows >= 0
        return RftBatch(*put_batch(arrays, self.searcher.encoder.mesh))

    def validate(self, params: Any) -> dict[str, float]:
        """MRR@10 and recall over the whole index."""
        rows, _ = self.searcher.with_params(params).search(self.development.texts, VALIDATION_DEPTH)
        return _ranking(self.development.hits(self.corpus, rows))

    def tuned(self, params: Any) -> dict[str, Model]:
        """The models to keep, by their folders' names."""
        return {"query_encoder": self.searcher.encoder.model._replace(params=params)}


@dataclass
class BothTowers(QueryTower):
    """What learns in the ablation: the query encoder and the chunk encoder."""

    chunk_encoder: Encoder

    make_step: ClassVar[Callable[..., Any]] = staticmethod(make_r_ft_text_step)
    reach: ClassVar[int] = VALIDATION_DEPTH

    def is_within_reach(self) -> bool:
        """Whether any question has a hit among the candidates that are ranked."""
        return bool(self._hits.any())

    def __post_init__(self) -> None:
        self.candidates, _ = self.searcher.search(self.development.texts, VALIDATION_DEPTH)
        self._hits = self.development.hits(self.corpus, self.candidates)

    @property
    def params(self) -> Any:
        return {"query": self.searcher.encoder.model.params, "chunk": self.chunk_encoder.model.params}

    def batch(
        self, some: Sequence[int], rows: Int[np.ndarray, "B K"], target: Float[np.ndarray, "B K"]
    ) -> Any:
        texts = (t.reshape(*rows.shape, -1) for t in self.chunk_encoder.tokenize(self._passages(rows)))
        arrays = self.queries.batch(some), *texts, target, rows >= 0
        return RftTextBatch(*put_batch(arrays, self.searcher.encoder.mesh))

    def validate(self, params: Any) -> dict[str, float]:
        """MRR@10 and recall among the untuned retriever's candidates."""
        rows, shape = self.candidates, self.candidates.shape
        chunks = self.chunk_encoder.with_params(params["chunk"]).embed(self._passages(rows))
        queries = self.searcher.encoder.with_params(params["query"]).embed(self.development.texts)
        scores = np.einsum("qd,qkd->qk", queries, chunks.reshape(*shape, -1))
        order = np.argsort(-scores, axis=1, kind="stable")
        return _ranking(np.take_along_axis(self._hits, order, axis=1))

    def tuned(self, params: Any) -> dict[str, Model]:
        query = super().tuned(params["query"])
        return {**query, "chunk_encoder": self.chunk_encoder.model._replace(params=params["chunk"])}

    def _passages(self, rows: Int[np.ndarray, "B K"]) -> list[str]:
        """The texts of the chunks at `rows`, whatever stands where there is none: masks leave it out."""
        return [chunk.passage for chunk in self.corpus.chunks.take(np.maximum(rows, 0).ravel())]


def _ranking(hits: Bool[np.ndarray, "Q K"]) -> dict[str, float]:
    return {
        "mrr@10": float(reciprocal_ranks(hits).mean()),
        "answer_recall@1": float(hits[:, 0].mean()),
        "answer_recall@10": float(hits.any(axis=1).mean()),
    }


@dataclass
class Candidates:
    """Each round's candidate chunks with their scores, made or read back; pairs are scored once."""

    inputs: Mapping[str, StageFolder]
    output: StageFolder
    corpus: Corpus
    searcher: Searcher  # with the untuned query encoder
    score: ScoreConfig
    mesh: MeshConfig

    def __post_init__(self) -> None:
        self.retrieved = Retrieved.load(self.inputs["retrieved"], "train")
        self.examples = self.retrieved.examples
        self._rounds = [Scores.load(self.inputs["scores"])]

    def round(self, number: int, query_params: Any) -> Scores:
        """The candidates of round `number`: the score stage's, or what `query_params` retrieve."""
        if number == 0:
            return self._rounds[0]
        name = f"round_{number}.npz"
        if not self.output.has(name):
            self._refresh(f"round_{number}", query_params).save(self.output, name)
        scores = Scores.load(self.output, name)
        self._rounds.append(scores)
        return scores

    def _refresh(self, name: str, query_params: Any) -> Scores:
        retrieved = self._retrieve(f"{name}-retrieved", query_params)
        rows = retrieved["chunk_rows"]
        found, known = self._known(rows)
        pairs = np.stack([np.nonzero(~known)[0], rows[~known]], axis=1)
        scorer = ShardedScorer(self.inputs["lm"], self.output, self.corpus, self.score, self.mesh)
        found.put(~known, scorer.score(f"{name}-pairs", self.examples, pairs, "score new pairs"))
        return replace(self._rounds[0], **retrieved, **found._asdict())

    def _retrieve(self, name: str, query_params: Any) -> dict[str, np.ndarray]:
        """What `query_params` find, with the untuned retriever's scores, made or read back.

        It is kept before a pair is scored: a restarted run might retrieve near ties otherwise, and shards of
        scores belong to these pairs alone.
        """
        if not self.output.has(name):
            k = self._rounds[0].chunk_rows.shape[1]
            queries = [example.query for example in self.examples]
            sources = self.corpus.source_rows(self.examples)
            tuned = self.searcher.with_params(query_params)
            rows, *_ = search_examples(tuned, self.corpus.chunks, self.examples, sources, k)
            scores = np.where(rows >= 0, self.searcher.score(queries, rows), 0)
            self.output.write_arrays(name, chunk_rows=rows, retrieval_scores=scores)
        return self.output.read_arrays(name)

    def _known(self, rows: Int[np.ndarray, "E K"]) -> tuple[PairScores, Bool[np.ndarray, "E K"]]:
        """What earlier rounds found of `rows`, [E, K] each, and which of them are known."""
        found, known = PairScores.empty(*rows.shape), np.zeros(rows.shape, bool)
        for earlier in self._rounds:
            same = rows[:, :, None] == earlier.chunk_rows[:, None, :]
            again, place = same.any(axis=2), same.argmax(axis=2)
            values = (np.take_along_axis(getattr(earlier, name), place, axis=1) for name in found._fields)
            found.put(again, PairScores(*(array[again] for array in values)))
            known |= again
        return found, known
