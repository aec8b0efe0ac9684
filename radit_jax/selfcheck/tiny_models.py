"""Random networks and batches that the proofs share, with the same batches read one sequence at a time."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from radit_jax.config import BertConfig, DecoderConfig
from radit_jax.data.batches.packing import (
    PrefixTree,
    Span,
    continuation_places,
    pack,
    pack_texts,
    span,
    to_batch,
)
from radit_jax.method import likelihood, losses, steps
from radit_jax.models.bert import Bert
from radit_jax.models.decoder import DecoderLm
from radit_jax.selfcheck.reference import Array64, float64, gradient_distance, kl64, softmax64

LLAMA = DecoderConfig(
    vocab_size=48,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_size=8,
    ffn_size=48,
)
BERT = BertConfig(
    vocab_size=48,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    ffn_size=24,
    max_length=16,
)
# Of a batch for LM-ft:
NUM_ROWS = 14
ROW_LENGTH = 40
TARGETS = 16  # a row
QUERY_ROW_LENGTH = 8
# Far enough from 1 that a forgotten one shows:
TEMPERATURE = 2.0
TAU = 0.3
TOKEN_COUNTS = np.array([3, 1, 7])  # of the answers to three examples
READS_GRADIENT = optax.sgd(0.1, momentum=0.9)  # after one step its trace is the gradient


class TinyModels:
    """Random networks and batches, made and compiled once for all properties."""

    llama = DecoderLm(LLAMA)
    bert = Bert(BERT)

    # --- The language model and LM-ft -----------------------------------------------------------------

    @functools.cached_property
    def llama_params(self) -> Any:
        """A language model."""
        tokens = jnp.zeros((1, 4), jnp.int32)
        return random_params(self.llama, tokens)

    @functools.cached_property
    def trees(self) -> list[PrefixTree]:
        """Prefixes that one to three answers share."""
        rng = np.random.default_rng(0)

        def tokens(min_length: int, max_length: int) -> np.ndarray:
            length = rng.integers(min_length, max_length + 1)
            return rng.integers(1, LLAMA.vocab_size, length)

        def continuation() -> Span:
            """A prompt's own part, which does not count, and an answer of one to three tokens, which does."""
            both = tokens(4, 7).astype(np.int32)
            weights = np.zeros(len(both), np.float32)
            answer_length = rng.integers(1, 4)
            weights[-answer_length:] = 1.0
            return Span(both, weights)

        # The generator draws in this order: a tree's prefix, then its continuations.
        trees = []
        for i in range(7):
            prefix = span(tokens(2, 8))
            continuations = tuple(continuation() for _ in range(1 + i % 3))
            trees.append(PrefixTree(prefix, continuations))
        return trees

    @functools.cached_property
    def rows(self) -> list[tuple[int, ...]]:
        """The trees packed: for each row the numbers of its trees."""
        return pack(self.trees, row_length=ROW_LENGTH, targets_per_row=TARGETS)

    @functools.cached_property
    def packed(self) -> likelihood.LmBatch:
        """Several trees in a row."""
        return _lm_batch(self.trees, self.rows)

    @functools.cached_property
    def unpacked(self) -> likelihood.LmBatch:
        """One answer, after its own copy of the prefix, in a row."""
        # As many trees as answers, each with a row for itself.
        alone = []
        for tree in self.trees:
            for continuation in tree.continuations:
                alone.append(PrefixTree(tree.prefix, (continuation,)))
        rows = [(i,) for i in range(len(alone))]
        return _lm_batch(alone, rows)

    @functools.cached_property
    def packed_log_probs(self) -> Array64:
        """log p of the answer tokens, in the order of the trees."""
        # log p of every target of every row.
        batch = self.packed
        score = jax.jit(functools.partial(likelihood.token_log_probs, self.llama))
        log_probs = np.asarray(score(self.llama_params, batch))

        # Each continuation's tokens that count, from the row that it was packed into.
        rows, items = continuation_places(self.trees, self.rows)
        of_continuations = []
        for row, item in zip(rows, items, strict=True):
            is_item = batch.target_items[row] == item
            is_answer = is_item & (batch.target_weights[row] > 0)
            of_continuations.append(log_probs[row][is_answer])
        return np.concatenate(of_continuations)

    @functools.cached_property
    def forward(self) -> Callable[..., tuple[Array, Array]]:
        """Hidden states and logits of one plain sequence."""

        # The reference uses the plain network: no packing, no segments.
        def forward(params: Any, tokens: Array) -> tuple[Array, Array]:
            hidden: Any = self.llama.apply({"params": params}, tokens, method="hidden")
            logits: Any = self.llama.apply({"params": params}, tokens)
            return hidden, logits

        return jax.jit(forward)

    def read_alone(self) -> Iterable[tuple[Array64, Array64, Array64, Array64]]:
        """Per continuation: its tokens after its prefix, the places of the answer's tokens in them, and in
        float64 the hidden states [T, D] and log p [T, V]."""
        for tree in self.trees:
            prefix = tree.prefix.tokens
            for continuation in tree.continuations:
                tokens = np.concatenate([prefix, continuation.tokens])
                # Attention is causal: padding, which gives all sequences one shape, is not seen.
                padded = np.pad(tokens, (0, ROW_LENGTH - len(tokens)))
                hidden, logits = self.forward(self.llama_params, padded[None])
                log_probs = np.log(softmax64(float64(logits[0])))
                answer_places = len(prefix) + np.flatnonzero(continuation.weights)
                yield tokens, answer_places, float64(hidden[0]), log_probs

    def continuations_one_by_one(self, shift: int) -> list[Array64]:
        """Each answer's token log-probabilities; the token at i is read at position i − 1 (+ shift)."""
        answers = []
        for tokens, places, _, log_probs in self.read_alone():
            read_at = places - 1 + shift
            answers.append(log_probs[read_at, tokens[places]])
        return answers

    def log_probs_one_by_one(self, shift: int) -> Array64:
        """The same of all answers, end to end."""
        return np.concatenate(self.continuations_one_by_one(shift))

    def head_gradient64(self) -> Array64:
        """The gradient of the mean answer NLL with respect to the head [D, V]: Σ h (p − y) / tokens."""
        total = np.zeros((LLAMA.hidden_size, LLAMA.vocab_size))
        num_tokens = 0
        # The hidden state at i − 1 predicts the token at i.
        for tokens, places, hidden, log_probs in self.read_alone():
            for i in places:
                error = np.exp(log_probs[i - 1])  # p
                error[tokens[i]] -= 1  # − y
                total += np.outer(hidden[i - 1], error)
                num_tokens += 1
        return total / num_tokens

    @functools.cached_property
    def lm_step(self) -> Callable[..., Any]:
        """LM-ft, compiled."""
        return steps.make_lm_step(self.llama, READS_GRADIENT)

    def lm_step_on(
        self,
        batch: likelihood.LmBatch,
    ) -> tuple[Any, dict[str, float]]:
        """The gradient and the metrics of one step."""
        return _read_step(self.lm_step, self.llama_params, batch)

    # --- The retriever and R-ft -----------------------------------------------------------------------

    @functools.cached_property
    def bert_params(self) -> Any:
        """The chunk encoder, from which the query encoder starts."""
        tokens = jnp.zeros((1, 4), jnp.int32)
        mask = jnp.ones((1, 4), bool)
        return random_params(self.bert, tokens, mask)

    @functools.cached_property
    def query_ids(self) -> list[list[int]]:
        """Three queries; the first and the last share a row of 8."""
        rng = np.random.default_rng(1)
        return [rng.integers(1, BERT.vocab_size, length).tolist() for length in (6, 4, 2)]

    @property
    def padded_queries(self) -> tuple[Any, Any]:
        """The same queries, each in its own row: tokens and their mask."""
        # Padding has token 0.
        shape = len(self.query_ids), QUERY_ROW_LENGTH
        tokens = np.zeros(shape, int)
        mask = np.zeros(shape, bool)
        for row, ids in enumerate(self.query_ids):
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = True
        return tokens, mask

    @functools.cached_property
    def queries(self) -> steps.RftBatch:
        """Two queries with chunks, one without; a row and the last chunk are always masked."""
        rng = np.random.default_rng(0)
        chunk_mask = jnp.array(
            [
                [True, True, True, True, False],
                [True, False, True, True, False],
                [False, False, False, False, False],
            ]
        )
        # A target is a distribution over the real chunks, here that of random scores.
        target_scores = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
        chunks = jnp.asarray(rng.normal(size=(3, 5, BERT.hidden_size)), jnp.float32)
        batch = steps.RftBatch(
            queries=pack_texts(self.query_ids, row_length=QUERY_ROW_LENGTH, num_rows=3),
            chunk_embeddings=chunks,
            target_log_probs=losses.retrieval_log_prob(target_scores, chunk_mask),
            chunk_mask=chunk_mask,
        )
        return jax.device_get(batch)

    @functools.cached_property
    def r_ft_step(self) -> Callable[..., Any]:
        """R-ft in the paper's direction, compiled."""
        return steps.make_r_ft_step(self.bert, READS_GRADIENT, temperature=TEMPERATURE)

    def r_ft_step_on(
        self,
        batch: steps.RftBatch,
    ) -> tuple[Any, dict[str, float]]:
        """The gradient and the metrics of one step."""
        return _read_step(self.r_ft_step, self.bert_params, batch)

    def r_ft_difference(self, one: steps.RftBatch, other: steps.RftBatch) -> float:
        """By how much the steps on two batches differ, in loss or in gradient."""
        # Both steps start from the same parameters.
        gradient, metrics = self.r_ft_step_on(one)
        other_gradient, other_metrics = self.r_ft_step_on(other)
        loss_difference = abs(metrics["loss"] / other_metrics["loss"] - 1)
        return max(loss_difference, gradient_distance(gradient, other_gradient))

    def r_ft_loss64(self, queries: Array64) -> Array64:
        """KL(p_R ‖ p_LSR) of the two queries of `self.queries` that have chunks, from embeddings [B, D].

        Both are halved, so that their sum is the mean over the batch.
        """
        batch = self.queries
        divergences = []
        for b in range(2):
            # Only the chunks that are there, so that no mask is needed.
            real = np.flatnonzero(batch.chunk_mask[b])
            chunks = float64(batch.chunk_embeddings[b])
            scores = [sum(queries[b] * chunks[k]) for k in real]
            p = softmax64(np.array([scores]) / TEMPERATURE)
            q = np.exp(float64(batch.target_log_probs[b, real]))
            divergences.append(kl64(p, q[None])[0])
        return np.array(divergences) / 2


def _lm_batch(
    trees: list[PrefixTree],
    rows: list[tuple[int, ...]],
) -> likelihood.LmBatch:
    """A batch whose rows hold the trees of these numbers."""
    return to_batch(
        trees,
        rows,
        row_length=ROW_LENGTH,
        targets_per_row=TARGETS,
        num_rows=NUM_ROWS,
    )


def random_params(module: nn.Module, *inputs: Array) -> Any:
    """Parameters without a 0 or a 1, with attention and predictions far from uniform."""
    rng = np.random.default_rng(0)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> Array:
        # A norm's scales are around 1, everything else is around 0.
        is_norm = path[-1].key in ("weight", "scale")
        values = rng.normal(float(is_norm), 0.2, leaf.shape)
        return jnp.asarray(values, jnp.float32)

    # Each leaf's shape, from a trace of the initialisation.
    key = jax.random.key(0)
    shapes = jax.eval_shape(module.init, key, *inputs)["params"]
    return jax.tree_util.tree_map_with_path(draw, shapes)


def _read_step(
    step: Callable[..., Any],
    params: Any,
    batch: Any,
) -> tuple[Any, dict[str, float]]:
    """The gradient and the metrics of one step from these parameters."""
    # The momentum of the first step is the gradient itself.
    state = steps.init_state(params, READS_GRADIENT)
    state, metrics = step(state, batch)
    trace = optax.tree.get(state.opt_state, "trace")
    gradient = jax.tree.map(np.asarray, trace)
    return gradient, {name: float(value) for name, value in metrics.items()}


def random_scores() -> tuple[Float[np.ndarray, "B K"], Float[np.ndarray, "B K"]]:
    """Scores and summed answer log-probabilities of three examples with five chunks."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, 5))
    nll_per_token = 2 * rng.random((3, 5))
    return scores, -nll_per_token * TOKEN_COUNTS[:, None]
