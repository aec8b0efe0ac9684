"""r_ft: Eq. 4 and 5. The query encoder learns to rank chunks as the language model would rank them.

The chunk encoder, the stored embeddings, the index and the language model stay as they are. With
`r_ft.refresh_every`, training goes in rounds. Each round but the first retrieves new candidates with the
query encoder as it then is, and scores the pairs that no earlier round has scored. A round's candidates are
kept as `round_N`. What it retrieved and each shard of its scores are kept before that, so that a killed run
goes on from there.

`r_ft.train_chunk_encoder` is an ablation of the paper in which the chunk encoder learns too; see
`retrieval/tuning.py`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from radit_jax.config import MeshConfig, ProfileConfig, RFtConfig, ScoreConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.artifacts.lsr_scores import Scores
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.data.batches.order import shuffled
from radit_jax.lm.lsr_diagnostics import report
from radit_jax.lm.scoring import PairScorer, PairScores, every_pair
from radit_jax.lm.sharded_scoring import ShardedScorer
from radit_jax.method import losses
from radit_jax.method.optimizers import learning_rates, make_optimizer
from radit_jax.method.steps import init_state
from radit_jax.retrieval.candidates import ExampleSearch
from radit_jax.retrieval.search import Encoder, Searcher
from radit_jax.retrieval.tuning import (
    BothTowers,
    DevelopmentQuestions,
    Learner,
    PackedQueries,
    QueryTower,
    check_best_has_hit,
    check_within_reach,
)
from radit_jax.runtime.distributed.mesh import data_parallel_size, init_sharded
from radit_jax.runtime.loop import Reporting, Saving, Validation, train
from radit_jax.runtime.monitoring.metrics import Metrics
from radit_jax.runtime.pretrained.model_io import save_model
from radit_jax.runtime.storage.checkpoints import Checkpoints
from radit_jax.runtime.storage.stage_folder import StageFolder, StageInputs


def run(
    inputs: StageInputs,
    output: StageFolder,
    *,
    r_ft: RFtConfig,
    score: ScoreConfig,
    temperature: float,
    seed: int,
    mesh: MeshConfig,
    profile: ProfileConfig | None = None,
) -> dict[str, Any]:
    """Train the query encoder; the checkpoint with the best MRR@10 on development questions is kept."""
    started = time.monotonic()
    corpus = Corpus(inputs["corpus"])
    searcher = Searcher.load(inputs, mesh)
    scorer = _scorer(inputs, output, corpus, score, mesh)
    candidates = Candidates(inputs, output, corpus, searcher, scorer)
    order = shuffled(len(candidates.examples), batch_size=r_ft.batch_size, seed=seed)

    # 1) What learns, and its state before the first step.
    learner = _make_learner(inputs, output, candidates, order, r_ft, mesh)
    check_within_reach(learner)
    tx = make_optimizer(r_ft.optimizer)
    state, shardings = init_sharded(lambda p: init_state(p, tx), searcher.encoder.mesh, learner.params)
    step = learner.make_step(tx, r_ft, temperature, shardings)

    # 2) Training, in rounds of candidates.
    checkpoints = Checkpoints(output.path / "checkpoints")
    validation = Validation(lambda s: learner.validate(s.params), r_ft.validate_every, select="mrr@10")
    signals = []
    rates = learning_rates(r_ft.optimizer)
    for round_number, end in enumerate(_round_ends(r_ft)):
        # A resumed run retrieves a round's candidates with the query encoder that it has come to.
        if (checkpoints.latest() or 0) > 0:
            state, _ = checkpoints.restore(state)
        scores = candidates.round(round_number, state.params)
        signals.append(report(corpus, candidates.retrieved, scores, r_ft, temperature))
        state = train(
            name="r_ft",
            step=step,
            state=state,
            batch_at=_batches(learner, scores, target_log_probs(scores, r_ft, temperature), order),
            num_steps=end,
            saving=Saving(checkpoints, r_ft.checkpoint_every),
            reporting=Reporting(Metrics(output.path / "metrics.jsonl"), None, profile, started, rates),
            validation=validation,
        )
        started = time.monotonic()  # a round's start-up is its new candidates

    # 3) The tuned models, which are the best checkpoint's.
    best_step, best_mrr = check_best_has_hit(checkpoints.best())
    for name, tower in learner.tuned(checkpoints.restore_best(state.params)).items():
        save_model(output.path / name, tower)
        output.commit(name)
    return {
        "steps": r_ft.optimizer.steps,
        "best_step": best_step,
        "dev_mrr@10": best_mrr,
        "times_seen": round(r_ft.optimizer.steps * r_ft.batch_size / len(candidates.examples), 2),
        "signal": signals,
    }


def _make_learner(
    inputs: StageInputs,
    output: StageFolder,
    candidates: "Candidates",
    order: Callable[[int], list[int]],
    r_ft: RFtConfig,
    mesh: MeshConfig,
) -> Learner:
    """What `r_ft.train_chunk_encoder` asks for, with the queries of all batches and development questions."""
    corpus, searcher = candidates.corpus, candidates.searcher
    # The rows of queries have one shape, whatever the batch, so that one step is compiled.
    encoder = searcher.encoder
    ids = encoder.token_ids([example.query for example in candidates.examples])
    batches = map(order, range(r_ft.optimizer.steps))
    queries = PackedQueries.fit(ids, batches, data_parallel_size(encoder.mesh))
    development = development_questions(inputs, output, corpus, candidates.scorer)
    if not r_ft.train_chunk_encoder:
        return QueryTower(searcher, corpus, queries, development)
    chunk_encoder = Encoder.load(inputs["retriever"].verified_path("chunk_encoder"), mesh)
    return BothTowers(searcher, corpus, queries, development, chunk_encoder)


def _batches(
    learner: Learner,
    scores: Scores,
    target: Float[np.ndarray, "E K"],
    order: Callable[[int], list[int]],
) -> Callable[[int], Any]:
    """The batch of each step: the examples that `order` gives, with their chunks and log-probabilities."""

    def batch_at(step: int) -> Any:
        example_numbers = order(step)
        chunk_rows = scores.chunk_rows[example_numbers]
        return learner.batch(example_numbers, chunk_rows, target[example_numbers])

    return batch_at


def _round_ends(r_ft: RFtConfig) -> list[int]:
    """The step at which each round of candidates ends."""
    steps = r_ft.optimizer.steps
    every = r_ft.refresh_every or steps
    refreshes = range(every, steps, every) if every else ()
    return [*refreshes, steps]


def target_log_probs(scores: Scores, r_ft: RFtConfig, temperature: float) -> Float[np.ndarray, "E K"]:
    """What p_R learns to equal: log p_LSR (Eq. 4), or the posterior ∝ p_R · p_LSR under the untuned p_R.

    `temperature` is p_R's.
    """
    # Eq. 4 over the real chunks.
    chunk_mask = jnp.asarray(scores.chunk_rows >= 0)
    lsr = losses.lsr_log_prob(
        jnp.asarray(scores.answer_log_probs),
        jnp.asarray(scores.answer_token_counts),
        chunk_mask,
        form=r_ft.lm_score,
        tau=r_ft.tau,
    )
    if r_ft.target == "lsr":
        return np.asarray(lsr)
    # The untuned retriever's scores stay the prior in all rounds.
    retrieval_scores = jnp.asarray(scores.retrieval_scores)
    untuned = losses.retrieval_log_prob(retrieval_scores, chunk_mask, temperature)
    return np.asarray(losses.posterior_log_prob(untuned, lsr, chunk_mask))


def _scorer(
    inputs: StageInputs, output: StageFolder, corpus: Corpus, score: ScoreConfig, mesh: MeshConfig
) -> ShardedScorer:
    """The language model that scores what a round retrieves, and the folder that keeps its scores."""
    # It is loaded for each scoring: between two rounds training has the devices' memory.
    return ShardedScorer(
        lambda: PairScorer.load(inputs["lm"].verified_path("lm"), score, mesh),
        output,
        corpus.chunks,
        score.shard_size,
    )


def development_questions(
    inputs: StageInputs, output: StageFolder, corpus: Corpus, scorer: ShardedScorer
) -> DevelopmentQuestions:
    """The questions that choose a checkpoint.

    Where development examples were drawn, the language model scores their candidates; the output keeps that.
    """
    # Questions that no examples were drawn for have no candidates.
    if corpus.examples("r_ft", "dev") is None:
        return DevelopmentQuestions.judged_by_answers(corpus.questions("dev"))
    retrieved = Retrieved.load(inputs["retrieved"], "dev")
    if not output.has("development.npz"):
        pairs = every_pair(retrieved.chunk_rows)
        scores = scorer.score("development-pairs", retrieved.examples, pairs, "score development")
        # For one answer, Eq. 4's score rises with the log-probability, whatever its form.
        log_probs = scores.answer_log_probs.reshape(retrieved.chunk_rows.shape)
        output.write_arrays("development.npz", log_probs=log_probs)
    log_probs = output.read_arrays("development.npz")["log_probs"]
    return DevelopmentQuestions.judged_by_lm(corpus, retrieved, log_probs)


@dataclass
class Candidates:
    """Each round's candidate chunks with their scores, made or read back; a pair is scored once."""

    inputs: StageInputs
    output: StageFolder
    corpus: Corpus
    searcher: Searcher  # with the untuned query encoder
    scorer: ShardedScorer

    def __post_init__(self) -> None:
        self.retrieved = Retrieved.load(self.inputs["retrieved"], "train")
        self.examples = self.retrieved.examples
        self._rounds = [Scores.load(self.inputs["scores"])]

    def round(self, number: int, query_params: Any) -> Scores:
        """The candidates of round `number`: the score stage's, or what `query_params` retrieve."""
        if number == 0:
            return self._rounds[0]
        # A resumed run reads the rounds that were finished.
        name = f"round_{number}.npz"
        if not self.output.has(name):
            self._refresh(f"round_{number}", query_params).save(self.output, name)
        scores = Scores.load(self.output, name)
        self._rounds.append(scores)
        return scores

    def _refresh(self, name: str, query_params: Any) -> Scores:
        """Retrieve new candidates, and score the pairs that are new."""
        retrieved = self._retrieve(f"{name}-retrieved", query_params)
        chunk_rows = retrieved["chunk_rows"]
        # Pairs that an earlier round has scored are not scored again.
        scores, is_known = self._known(chunk_rows)
        example_numbers, _ = np.nonzero(~is_known)
        new_pairs = np.stack([example_numbers, chunk_rows[~is_known]], axis=1)
        new_scores = self.scorer.score(f"{name}-pairs", self.examples, new_pairs, "score new pairs")
        scores.put(~is_known, new_scores)
        # What does not depend on the candidates, as the answers' lengths, is the first round's.
        return replace(self._rounds[0], **retrieved, **scores._asdict())

    def _retrieve(self, name: str, query_params: Any) -> dict[str, np.ndarray]:
        """What `query_params` retrieve, with the untuned retriever's scores, made or read back.

        It is kept before a pair is scored. A restarted run might rank near ties otherwise, and the shards of
        scores belong to these pairs alone.
        """
        if not self.output.has(name):
            k = self._rounds[0].chunk_rows.shape[1]
            queries = [example.query for example in self.examples]
            # An example that was cut from the corpus does not retrieve its own chunk.
            sources = self.corpus.source_rows(self.examples)
            tuned = self.searcher.with_params(query_params)
            search = ExampleSearch(tuned, self.corpus.chunks, self.output, name, self.examples, sources, k)
            search.make()
            rows, *_ = search.read()
            scores = np.where(rows >= 0, self.searcher.score(queries, rows), 0)
            self.output.write_arrays(name, chunk_rows=rows, retrieval_scores=scores)
        return self.output.read_arrays(name)

    def _known(self, chunk_rows: Int[np.ndarray, "E K"]) -> tuple[PairScores, Bool[np.ndarray, "E K"]]:
        """The scores [E, K] that earlier rounds have of these candidates, and which candidates have one."""
        scores = PairScores.empty(*chunk_rows.shape)
        is_known = np.zeros(chunk_rows.shape, bool)
        for earlier in self._rounds:
            # [E, K, K]: whether a candidate is the earlier round's candidate in each place.
            same = chunk_rows[:, :, None] == earlier.chunk_rows[:, None, :]
            was_there, place = same.any(axis=2), same.argmax(axis=2)
            arrays = []
            for name in scores._fields:
                by_candidate = np.take_along_axis(getattr(earlier, name), place, axis=1)
                arrays.append(by_candidate[was_there])
            scores.put(was_there, PairScores(*arrays))
            is_known |= was_there
        return scores, is_known
