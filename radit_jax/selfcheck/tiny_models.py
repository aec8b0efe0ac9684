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

from radit_jax.config import BertConfig, LlamaConfig
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
from radit_jax.models.llama import Llama
from radit_jax.selfcheck.reference import Array64, float64, gradient_distance, kl64, softmax64

LLAMA = LlamaConfig(
    vocab_size=48, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_size=8, ffn_size=48
)
BERT = BertConfig(vocab_size=48, hidden_size=16, num_layers=2, num_heads=2, ffn_size=24, max_length=16)
NUM_ROWS, ROW_LENGTH, TARGETS = 14, 40, 16
TEMPERATURE, TAU = 2.0, 0.3
TOKEN_COUNTS = np.array([3, 1, 7])
READS_GRADIENT = optax.sgd(0.1, momentum=0.9)  # after one step its trace is the gradient


# --- what they are measured on ------------------------------------------------------------------------


class TinyModels:
    """Random networks and batches, made and compiled once for all properties."""

    llama, bert = Llama(LLAMA), Bert(BERT)

    @functools.cached_property
    def llama_params(self) -> Any:
        """A language model."""
        return random_params(self.llama, jnp.zeros((1, 4), jnp.int32))

    @functools.cached_property
    def bert_params(self) -> Any:
        """The chunk encoder, from which the query encoder starts."""
        return random_params(self.bert, jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool))

    @functools.cached_property
    def sequences(self) -> list[PrefixTree]:
        """Prefixes that one to three answers share."""
        rng = np.random.default_rng(0)

        def continuation() -> Span:
            tokens = rng.integers(1, LLAMA.vocab_size, rng.integers(4, 8)).astype(np.int32)
            weights = np.zeros(len(tokens), np.float32)
            weights[-rng.integers(1, 4) :] = 1.0
            return Span(tokens, weights)

        return [
            PrefixTree(
                span(rng.integers(1, LLAMA.vocab_size, rng.integers(2, 9))),
                tuple(continuation() for _ in range(1 + i % 3)),
            )
            for i in range(7)
        ]

    @functools.cached_property
    def rows(self) -> list[tuple[int, ...]]:
        """The sequences packed."""
        return pack(self.sequences, row_length=ROW_LENGTH, targets_per_row=TARGETS)

    @functools.cached_property
    def packed(self) -> likelihood.LmBatch:
        """Several trees in a row."""
        return lay_out(self.sequences, self.rows)

    @functools.cached_property
    def unpacked(self) -> likelihood.LmBatch:
        """One answer, after its own copy of the prefix, in a row."""
        alone = [
            PrefixTree(tree.prefix, (continuation,))
            for tree in self.sequences
            for continuation in tree.continuations
        ]
        return lay_out(alone, [(i,) for i in range(len(alone))])

    @functools.cached_property
    def packed_log_probs(self) -> Array64:
        """Of the answer tokens, in the order of the sequences."""
        score = jax.jit(functools.partial(likelihood.token_log_probs, self.llama))
        found = np.asarray(score(self.llama_params, self.packed))
        places = zip(*continuation_places(self.sequences, self.rows), strict=True)
        batch = self.packed
        return np.concatenate(
            [
                found[row][(batch.target_items[row] == item) & (batch.target_weights[row] > 0)]
                for row, item in places
            ]
        )

    @functools.cached_property
    def forward(self) -> Callable[..., tuple[Array, Array]]:
        """Hidden states and logits of a plain sequence."""

        def forward(params: Any, tokens: Array) -> tuple[Array, Array]:
            hidden: Any = self.llama.apply({"params": params}, tokens, method="hidden")
            logits: Any = self.llama.apply({"params": params}, tokens)
            return hidden, logits

        return jax.jit(forward)

    def read_alone(self) -> Iterable[tuple[Array64, Array64, Array64, Array64]]:
        """Per answer: its tokens after the prefix, which of them count, and float64 hidden and log p."""
        for tree in self.sequences:
            for continuation in tree.continuations:
                tokens = np.concatenate([tree.prefix.tokens, continuation.tokens])
                # Attention is causal, so what is appended for the sake of one shape is not seen.
                padded = np.pad(tokens, (0, ROW_LENGTH - len(tokens)))[None]
                hidden, logits = (float64(out[0]) for out in self.forward(self.llama_params, padded))
                where = len(tree.prefix.tokens) + np.flatnonzero(continuation.weights)
                yield tokens, where, hidden, np.log(softmax64(logits))

    def continuations_one_by_one(self, shift: int) -> list[Array64]:
        """Each answer's token log-probabilities, token i read at position i − 1 (+ shift)."""
        return [log_p[where - 1 + shift, tokens[where]] for tokens, where, _, log_p in self.read_alone()]

    def log_probs_one_by_one(self, shift: int) -> Array64:
        """The same, end to end."""
        return np.concatenate(self.continuations_one_by_one(shift))

    def head_gradient64(self) -> Array64:
        """The gradient of the mean answer NLL with respect to the head."""
        total, count = np.zeros((LLAMA.hidden_size, LLAMA.vocab_size)), 0
        for tokens, where, hidden, log_p in self.read_alone():
            for i in where:
                error = np.exp(log_p[i - 1])
                error[tokens[i]] -= 1
                total += np.outer(hidden[i - 1], error)
                count += 1
        return total / count

    @functools.cached_property
    def lm_step(self) -> Callable[..., Any]:
        """LM-ft, compiled."""
        return steps.make_lm_step(self.llama, READS_GRADIENT)

    def lm_step_on(self, batch: likelihood.LmBatch) -> tuple[Any, dict[str, float]]:
        """The gradient and the metrics of one step."""
        return _read_step(self.lm_step, self.llama_params, batch)

    @functools.cached_property
    def query_ids(self) -> list[list[int]]:
        """Three queries, of which the first and the last share a row of 8."""
        rng = np.random.default_rng(1)
        return [rng.integers(1, BERT.vocab_size, length).tolist() for length in (6, 4, 2)]

    @property
    def padded_queries(self) -> tuple[Any, Any]:
        """The same queries a row each: tokens and their mask."""
        mask = np.arange(8) < np.array([[len(ids)] for ids in self.query_ids])
        return np.array([ids + [0] * (8 - len(ids)) for ids in self.query_ids]), mask

    @functools.cached_property
    def queries(self) -> steps.RftBatch:
        """Two queries with chunks, one without; a row and the last chunk are always masked."""
        rng = np.random.default_rng(0)
        chunk_mask = np.array([[1, 1, 1, 1, 0], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0]], bool)
        target = losses.retrieval_log_prob(
            jnp.asarray(rng.normal(size=(3, 5)), jnp.float32), jnp.asarray(chunk_mask)
        )
        batch = steps.RftBatch(
            queries=pack_texts(self.query_ids, row_length=8, num_rows=3),
            chunk_embeddings=jnp.asarray(rng.normal(size=(3, 5, BERT.hidden_size)), jnp.float32),
            target_log_probs=target,
            chunk_mask=jnp.asarray(chunk_mask),
        )
        return jax.device_get(batch)

    @functools.cached_property
    def r_ft_step(self) -> Callable[..., Any]:
        """R-ft in the paper's direction, compiled."""
        return steps.make_r_ft_step(self.bert, READS_GRADIENT, temperature=TEMPERATURE)

    def r_ft_step_on(self, batch: steps.RftBatch) -> tuple[Any, dict[str, float]]:
        """The gradient and the metrics of one step."""
        return _read_step(self.r_ft_step, self.bert_params, batch)

    def r_ft_difference(self, one: steps.RftBatch, other: steps.RftBatch) -> float:
        """By how much the steps on two batches differ, in loss or in gradient."""
        (gradient, metrics), (other_gradient, other_metrics) = (self.r_ft_step_on(b) for b in (one, other))
        return max(
            abs(metrics["loss"] / other_metrics["loss"] - 1), gradient_distance(gradient, other_gradient)
        )

    def r_ft_loss64(self, queries: Array64) -> Array64:
        """KL(p_R ‖ p_LSR) of `self.queries` by loops, given the query embeddings; the mean of two queries."""
        batch, each = self.queries, []
        for b in range(2):
            real = np.flatnonzero(batch.chunk_mask[b])
            scores = [sum(queries[b] * float64(batch.chunk_embeddings[b, k])) for k in real]
            p = softmax64(np.array([scores]) / TEMPERATURE)
            q = np.exp(float64(batch.target_log_probs[b, real]))[None]
            each.append(kl64(p, q)[0])
        return np.array(each) / 2


def lay_out(sequences: list[PrefixTree], rows: list[tuple[int, ...]]) -> likelihood.LmBatch:
    return to_batch(sequences, rows, row_length=ROW_LENGTH, targets_per_row=TARGETS, num_rows=NUM_ROWS)


def random_params(module: nn.Module, *inputs: Array) -> Any:
    """Parameters without a 0 or a 1, with attention and predictions far from uniform."""
    rng = np.random.default_rng(0)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> Array:
        mean = float(path[-1].key in ("weight", "scale"))  # of a norm
        return jnp.asarray(rng.normal(mean, 0.2, leaf.shape), jnp.float32)

    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return jax.tree_util.tree_map_with_path(draw, shapes)


def _read_step(step: Callable[..., Any], params: Any, batch: Any) -> tuple[Any, dict[str, float]]:
    state, metrics = step(steps.init_state(params, READS_GRADIENT), batch)
    gradient = jax.tree.map(np.asarray, optax.tree.get(state.opt_state, "trace"))
    return gradient, {name: float(value) for name, value in metrics.items()}


def random_scores() -> tuple[Float[np.ndarray, "B K"], Float[np.ndarray, "B K"]]:
    """Scores and summed answer log-probabilities of three examples with five chunks."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 5)), -2 * rng.random((3, 5)) * TOKEN_COUNTS[:, None]
