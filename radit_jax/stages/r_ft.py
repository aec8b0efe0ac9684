"""r_ft: Eq. 4 and 5. The query encoder learns to rank chunks as the language model would have them.

Chunk encoder, stored embeddings, index and language model stay as they are. With `r_ft.refresh_every`,
training goes in rounds: each but the first retrieves anew with the query encoder as it then is, and scores
the pairs that no earlier round has scored. A round's candidates are kept as `round_N`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from radit_jax.config import MeshConfig, RFtConfig, ScoreConfig
from radit_jax.data.corpus import Corpus
from radit_jax.data.order import shuffled
from radit_jax.data.records import Question
from radit_jax.data.retrieved import Retrieved
from radit_jax.data.scores import Scores
from radit_jax.lm.scoring import PairScorer, PairScores
from radit_jax.lm.signal import report
from radit_jax.method import losses
from radit_jax.method.steps import RftBatch, init_state, make_optimizer, make_r_ft_step
from radit_jax.retrieval.search import Searcher
from radit_jax.runtime.checkpoint import Checkpoints
from radit_jax.runtime.loop import train
from radit_jax.runtime.mesh import init_sharded, put_batch
from radit_jax.runtime.models import save_model
from radit_jax.runtime.progress import Metrics, Progress
from radit_jax.runtime.store import StageFolder
from radit_jax.text.metrics import is_yes_no, reciprocal_ranks

VALIDATION_DEPTH = 10  # MRR@10, the paper's measure of R-ft's checkpoints


def run(
    inputs: Mapping[str, StageFolder],
    output: StageFolder,
    *,
    r_ft: RFtConfig,
    score: ScoreConfig,
    seed: int,
    mesh: MeshConfig,
) -> dict[str, Any]:
    """Train the query encoder; the checkpoint with the best MRR on development questions is kept."""
    corpus = Corpus(inputs["corpus"])
    searcher = Searcher.load(inputs, mesh)
    candidates = Candidates(inputs, output, corpus, searcher, score, mesh)
    encoder, tx = searcher.encoder, make_optimizer(r_ft.optimizer)
    state, shardings = init_sharded(lambda p: init_state(p, tx), encoder.mesh, encoder.model.params)
    step = make_r_ft_step(
        encoder.model.module,
        tx,
        temperature=r_ft.temperature,
        direction=r_ft.direction,
        state_shardings=shardings,
    )
    checkpoints = Checkpoints(output.path / "checkpoints")
    queries = encoder.tokenize([example.query for example in candidates.examples])
    development = [q for q in corpus.questions("dev") if not is_yes_no(q.answers)]
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
            batch_at=_batches(scores, queries, searcher, r_ft, seed),
            num_steps=end,
            checkpoints=checkpoints,
            metrics=Metrics(output.path / "metrics.jsonl"),
            checkpoint_every=r_ft.checkpoint_every,
            validate=lambda state: validation(searcher, state.params, corpus, development),
            validate_every=r_ft.validate_every,
            select="mrr@10",
        )
    best = checkpoints.best()
    assert best is not None, "the last step is always validated"
    params = checkpoints.restore_best(state.params)
    save_model(output.path / "query_encoder", encoder.model._replace(params=params))
    output.commit("query_encoder")
    return {"steps": r_ft.optimizer.steps, "best_step": best[0], "dev_mrr@10": best[1], "signal": signals}


def _batches(
    scores: Scores,
    queries: tuple[Int[np.ndarray, "E T"], Bool[np.ndarray, "E T"]],
    searcher: Searcher,
    r_ft: RFtConfig,
    seed: int,
) -> Callable[[int], RftBatch]:
    """The batch of each step: queries in an order that the seed alone decides, with their chunks' vectors."""
    target = target_log_probs(scores, r_ft)
    numbers = shuffled(len(target), batch_size=r_ft.batch_size, seed=seed)

    def batch_at(step: int) -> RftBatch:
        some = numbers(step)
        rows = scores.chunk_rows[some]
        arrays = (queries[0][some], queries[1][some], searcher.embeddings[rows], target[some], rows >= 0)
        return RftBatch(*put_batch(arrays, searcher.encoder.mesh))

    return batch_at


def _round_ends(r_ft: RFtConfig) -> list[int]:
    """The step at which each round of candidates ends."""
    steps, every = r_ft.optimizer.steps, r_ft.refresh_every or r_ft.optimizer.steps
    return [*range(every, steps, every), steps]


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


def validation(
    searcher: Searcher, query_params: Any, corpus: Corpus, questions: Sequence[Question]
) -> dict[str, float]:
    """MRR@10 and recall over the whole index under `query_params`; a hit is a chunk that holds an answer."""
    rows, _ = searcher.with_params(query_params).search([q.question for q in questions], VALIDATION_DEPTH)
    hits = corpus.holds_answer(questions, rows)
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
            self._refresh(query_params).save(self.output, name)
        scores = Scores.load(self.output, name)
        self._rounds.append(scores)
        return scores

    def _refresh(self, query_params: Any) -> Scores:
        first = self._rounds[0]
        k = first.chunk_rows.shape[1]
        queries = [example.query for example in self.examples]
        sources = np.array([self.corpus.rows.get(example.source_chunk, -1) for example in self.examples])
        rows, _ = self.searcher.with_params(query_params).search(queries, k, exclude=sources)
        found, known = self._known(rows)
        pairs = np.stack([np.nonzero(~known)[0], rows[~known]], axis=1)
        with Progress(len(pairs), "score new pairs", "pairs") as bar:
            scorer = PairScorer.load(self.inputs["lm"].check("lm"), self.score, self.mesh)
            scored = scorer.score(self.examples, pairs, self.corpus.chunks, bar)
        found.put(~known, scored)
        return replace(
            first,
            chunk_rows=rows,
            retrieval_scores=self.searcher.score(queries, rows),
            **found._asdict(),
        )

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
