"""Training a language model on token trees: pre-training a base model and LM-ft are this with other trees."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from radit_jax.config import LoraConfig, MeshConfig, OptimizerConfig, ProfileConfig
from radit_jax.data.batches.order import shuffled
from radit_jax.data.batches.packing import PrefixTree, fill, has_continuations, pack, to_batch
from radit_jax.method.likelihood import LmBatch, token_log_probs
from radit_jax.method.steps import TrainState, init_state, make_lm_step, make_optimizer
from radit_jax.models.attention import max_segments
from radit_jax.models.flops import training_flops
from radit_jax.models.llama import Llama
from radit_jax.models.lora import adapted, init_adapters
from radit_jax.runtime.distributed.mesh import (
    configure_attention,
    init_sharded,
    make_mesh,
    put_batch,
    put_params,
)
from radit_jax.runtime.loop import train
from radit_jax.runtime.monitoring.metrics import Metrics
from radit_jax.runtime.storage.checkpoints import Checkpoints
from radit_jax.runtime.storage.stage_folder import StageFolder


class PackedTrees:
    """Trees in rows of one length, and batches of rows in an order that depends on the seed and step only."""

    def __init__(self, trees: Sequence[PrefixTree], *, row_length: int, batch_size: int, seed: int):
        self._trees, self._row_length, self._batch_size = trees, row_length, batch_size
        self._targets = _most_targets(trees, row_length)
        self._continuationed = has_continuations(trees)
        # A kernel for rows of segments has room for so many, the padding among them.
        most = None if self._continuationed else max_segments(row_length) - 1
        self.rows = pack(
            trees, row_length=row_length, targets_per_row=self._targets, continuations_per_row=most
        )
        self.fill = fill(trees, self.rows, row_length=row_length)
        self._numbers = shuffled(len(self.rows), batch_size=batch_size, seed=seed)

    @property
    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {"rows": len(self.rows), "fill": round(self.fill, 4)}

    def __len__(self) -> int:
        """Batches in an epoch; the last one is filled up with empty rows."""
        return -(-len(self.rows) // self._batch_size)

    def shuffled(self, step: int) -> LmBatch:
        """The batch of training step `step`; epochs follow each other in fresh orders."""
        return self._batch(self._numbers(step))

    def in_order(self, number: int) -> LmBatch:
        start = number * self._batch_size
        return self._batch(range(start, min(start + self._batch_size, len(self.rows))))

    def _batch(self, numbers: Sequence[int]) -> LmBatch:
        return to_batch(
            self._trees,
            [self.rows[number] for number in numbers],
            row_length=self._row_length,
            targets_per_row=self._targets,
            num_rows=self._batch_size,
            continuation_ids=self._continuationed,
        )


def train_lm(
    name: str,
    module: Llama,
    params: Any,
    batch_at: Callable[[int], LmBatch],
    output: StageFolder,
    *,
    optimizer: OptimizerConfig,
    mesh: MeshConfig,
    checkpoint_every: int,
    accumulate_steps: int = 1,
    lora: LoraConfig | None = None,
    seed: int = 0,
    profile: ProfileConfig | None = None,
    started: float | None = None,
    development: PackedTrees | None = None,
    validate: Callable[[Any], dict[str, float]] | None = None,
    validate_every: int = 0,
    select: str = "dev_log_prob",
) -> tuple[Any, dict[str, Any]]:
    """Parameters after `optimizer.steps` steps, or the best on `development`; and facts for the manifest.

    The best have the highest `select`: `dev_log_prob`, or one of the values that `validate` gives for
    parameters. With a `lora` of some rank `params` stay as they are, and adapters, which `seed` draws, are
    what is trained, kept in checkpoints and returned.
    """
    devices = make_mesh(mesh, rows=len(batch_at(0).tokens) // accumulate_steps)
    module = configure_attention(module, devices, mesh, row_length=batch_at(0).tokens.shape[1])
    learner = _learner(
        functools.partial(make_lm_step, module, accumulate_steps=accumulate_steps),
        put_params(params, devices),
        make_optimizer(optimizer),
        lora,
        seed,
        devices,
    )
    checkpoints = Checkpoints(output.path / "checkpoints")

    def measure(state: Any) -> dict[str, float]:
        assert development is not None
        whole = learner.whole(state.params)
        own = {"dev_log_prob": mean_log_prob(module, whole, development, devices)}
        return own | (validate(whole) if validate else {})

    state = train(
        name=name,
        step=learner.step,
        state=learner.state,
        batch_at=lambda step: put_batch(batch_at(step), devices, accumulate_steps),
        num_steps=optimizer.steps,
        checkpoints=checkpoints,
        metrics=Metrics(output.path / "metrics.jsonl"),
        flops=lambda values: training_flops(
            module.config,
            tokens=values["tokens"],
            attended=values["attended"],
            targets=values["answer_tokens"],
            lora=lora,
        ),
        profile=profile,
        started=started,
        checkpoint_every=checkpoint_every,
        validate=measure if development is not None else None,
        validate_every=validate_every,
        select=select,
    )
    facts = {"steps": optimizer.steps}
    if development is None:
        return state.params, facts
    best = checkpoints.best()
    assert best is not None, "the last step is always validated"
    return checkpoints.restore_best(state.params), {**facts, "best_step": best[0], select: best[1]}


class _Learner(NamedTuple):
    """What is trained, how, and the network's parameters of it."""

    state: TrainState
    step: Callable[[TrainState, LmBatch], tuple[TrainState, Any]]
    whole: Callable[[Any], Any]


def _learner(
    make_step: Callable[..., Any],
    params: Any,
    tx: optax.GradientTransformation,
    lora: LoraConfig | None,
    seed: int,
    devices: jax.sharding.Mesh,
) -> _Learner:
    state, shardings = init_sharded(initial_state(tx, lora, seed), devices, params)
    if lora is None or not lora.rank:
        return _Learner(state, make_step(tx, state_shardings=shardings), lambda params: params)
    step = make_step(tx, lora=lora, state_shardings=shardings)
    return _Learner(
        state, lambda state, batch: step(state, batch, params), lambda found: adapted(params, found, lora)
    )


def initial_state(
    tx: optax.GradientTransformation, lora: LoraConfig | None, seed: int = 0
) -> Callable[[Any], TrainState]:
    """From a network's parameters to the state before the first step: of them, or of adapters to them."""

    def init(params: Any) -> TrainState:
        if lora is not None and lora.rank:
            params = init_adapters(params, lora, jax.random.key(seed))
        return init_state(params, tx)

    return init


def mean_log_prob(module: Llama, params: Any, trees: PackedTrees, devices: jax.sharding.Mesh) -> float:
    """The mean log-probability of a target token in nats, over all trees."""
    total, count = 0.0, 0
    for number in range(len(trees)):
        batch = trees.in_order(number)
        total += float(_token_log_probs(module, params, put_batch(batch, devices)).sum())
        count += int((np.asarray(batch.target_weights) > 0).sum())
    return total / max(1, count)


_token_log_probs: Callable[..., Any] = jax.jit(token_log_probs, static_argnums=0)


def _most_targets(trees: Sequence[PrefixTree], row_length: int) -> int:
    """Target slots in a row: twice its share of all tokens, and enough for any one tree."""
    targets = [sum(int((span.weights > 0).sum()) for span in tree.spans) for tree in trees]
    tokens = [sum(len(span.tokens) for span in tree.spans) for tree in trees]
    share = sum(targets) / max(1, sum(tokens))
    return max(max(targets), min(row_length, round(2 * share * row_length)))
