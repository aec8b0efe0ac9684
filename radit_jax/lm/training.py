"""Training a language model on prefix trees: LM-ft, and with other trees the pre-training of a base model."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from radit_jax.config import LoraConfig, MeshConfig, OptimizerConfig, ProfileConfig
from radit_jax.data.batches.order import shuffled
from radit_jax.data.batches.packing import PrefixTree, fill, has_continuations, pack, to_batch
from radit_jax.method.likelihood import LmBatch, token_log_probs
from radit_jax.method.optimizers import learning_rates, make_optimizer
from radit_jax.method.steps import TrainState, init_state, make_lm_step
from radit_jax.models.cudnn import max_segments
from radit_jax.models.decoder import DecoderLm
from radit_jax.models.flops import training_flops
from radit_jax.models.lora import adapted, init_adapters
from radit_jax.runtime.distributed.mesh import (
    configure_attention,
    init_sharded,
    make_mesh,
    put_batch,
    put_params,
)
from radit_jax.runtime.loop import Reporting, Saving, Validation, train
from radit_jax.runtime.monitoring.metrics import Metrics
from radit_jax.runtime.storage.checkpoints import Checkpoints
from radit_jax.runtime.storage.stage_folder import StageFolder

Figures = Callable[[Any], dict[str, float]]  # parameters to figures by name


class PackedTrees:
    """Trees in rows of one length, and batches of rows in an order that depends on the seed and step only."""

    def __init__(self, trees: Sequence[PrefixTree], *, row_length: int, batch_size: int, seed: int):
        self._trees = trees
        self._row_length = row_length
        self._batch_size = batch_size
        self._targets_per_row = _targets_per_row(trees, row_length)
        self._has_continuations = has_continuations(trees)
        # Where no tree has two continuations, an attention kernel may run, which has room for `max_segments`
        # segments in a row. Padding is one of them; a continuation with its prefix is one.
        max_continuations = None if self._has_continuations else max_segments(row_length) - 1
        self.rows = pack(
            trees,
            row_length=row_length,
            targets_per_row=self._targets_per_row,
            continuations_per_row=max_continuations,
        )
        self.fill = fill(trees, self.rows, row_length=row_length)
        self._seed = seed

    @functools.cached_property
    def _row_numbers(self) -> Callable[[int], list[int]]:
        """The rows of each training step."""
        return shuffled(len(self.rows), batch_size=self._batch_size, seed=self._seed)

    @property
    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {"rows": len(self.rows), "fill": round(self.fill, 4)}

    def __len__(self) -> int:
        """Batches in an epoch; the last one is filled up with empty rows."""
        return -(-len(self.rows) // self._batch_size)

    def shuffled(self, step: int) -> LmBatch:
        """The batch of training step `step`; epochs follow each other in fresh orders."""
        return self._batch(self._row_numbers(step))

    def in_order(self, number: int) -> LmBatch:
        """Batch `number` of the rows in their own order."""
        start = number * self._batch_size
        return self._batch(range(start, min(start + self._batch_size, len(self.rows))))

    def _batch(self, row_numbers: Sequence[int]) -> LmBatch:
        return to_batch(
            self._trees,
            [self.rows[number] for number in row_numbers],
            row_length=self._row_length,
            targets_per_row=self._targets_per_row,
            num_rows=self._batch_size,
            continuation_ids=self._has_continuations,
        )


def _targets_per_row(trees: Sequence[PrefixTree], row_length: int) -> int:
    """Target slots in a row: twice the targets' share of all tokens, and enough for any one tree."""
    num_targets = [tree.num_targets for tree in trees]
    num_tokens = sum(tree.num_tokens for tree in trees)
    # Some rows have more targets than the average row has.
    share = sum(num_targets) / max(1, num_tokens)
    twice_the_share = round(2 * share * row_length)
    return max(max(num_targets), min(row_length, twice_the_share))


@dataclass(frozen=True)
class LmTraining:
    """How a language model is trained, whatever it is trained on."""

    optimizer: OptimizerConfig
    mesh: MeshConfig
    checkpoint_every: int  # steps
    accumulate_steps: int = 1  # parts of a batch whose gradients are added
    lora: LoraConfig = field(default_factory=LoraConfig)  # with rank 0 all parameters are trained
    seed: int = 0  # draws the adapters
    profile: ProfileConfig | None = None


@dataclass(frozen=True)
class LmValidation:
    """What a model in training is measured on, and which parameters are kept."""

    trees: PackedTrees  # whose targets' mean log-probability is `dev_log_prob`
    every: int  # steps between two measurements; 0: after the last step only
    select: str = "dev_log_prob"  # parameters with the highest value of this figure are kept
    more_figures: Figures | None = None  # figures besides `dev_log_prob`


def train_lm(
    name: str,
    module: DecoderLm,
    params: Any,
    batch_at: Callable[[int], LmBatch],
    output: StageFolder,
    *,
    training: LmTraining,
    validation: LmValidation | None = None,
    started: float | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Parameters after the last step, or the best ones under `validation`; and facts for the manifest.

    `batch_at` gives the batch of a step. With LoRA `params` stay as they are, and the adapters to them are
    what is trained, kept in checkpoints and returned. `started` (`time.monotonic`) is when the stage began.
    """
    # The shape of a batch says how rows lie on the devices, and which attention reads them.
    first_batch = batch_at(0)
    num_rows, row_length = first_batch.tokens.shape
    devices = make_mesh(training.mesh, rows=num_rows // training.accumulate_steps)
    module = configure_attention(module, devices, training.mesh, row_length=row_length)
    learner = _learner(module, put_params(params, devices), training, devices)
    checkpoints = Checkpoints(output.path / "checkpoints")
    metrics = Metrics(output.path / "metrics.jsonl")

    def flops(values: Mapping[str, float]) -> float:
        return training_flops(
            module.config,
            tokens=values["tokens"],
            attended=values["attended"],
            targets=values["answer_tokens"],
            lora=training.lora,
        )

    state = train(
        name=name,
        step=learner.step,
        state=learner.state,
        batch_at=lambda step: put_batch(batch_at(step), devices, training.accumulate_steps),
        num_steps=training.optimizer.steps,
        saving=Saving(checkpoints, training.checkpoint_every),
        reporting=Reporting(
            metrics,
            flops,
            training.profile,
            started,
            learning_rates(training.optimizer),
        ),
        validation=_loop_validation(validation, module, learner, devices) if validation else None,
    )
    facts: dict[str, Any] = {"steps": training.optimizer.steps}
    if validation is None:
        return state.params, facts

    # Return the parameters that validation chose.
    best = checkpoints.best()
    assert best is not None, "the last step is always validated"
    best_step, best_value = best
    facts |= {"best_step": best_step, validation.select: best_value}
    return checkpoints.restore_best(state.params), facts


def _loop_validation(
    validation: LmValidation, module: DecoderLm, learner: "_Learner", devices: jax.sharding.Mesh
) -> Validation:
    """The training loop's form of `validation`, which measures the network of a state."""

    def figures(state: TrainState) -> dict[str, float]:
        params = learner.network_params(state.params)
        log_prob = mean_log_prob(module, params, validation.trees, devices)
        more = validation.more_figures(params) if validation.more_figures else {}
        return {"dev_log_prob": log_prob, **more}

    return Validation(figures, validation.every, validation.select)


class _Learner(NamedTuple):
    """A training step with its first state: of the network's parameters, or of adapters to them."""

    state: TrainState
    step: Callable[[TrainState, LmBatch], tuple[TrainState, Any]]
    network_params: Callable[[Any], Any]  # from the state's parameters to the network's


def _learner(module: DecoderLm, params: Any, training: LmTraining, devices: jax.sharding.Mesh) -> _Learner:
    tx = make_optimizer(training.optimizer)
    lora = training.lora if training.lora.rank else None
    state, shardings = init_sharded(initial_state(tx, lora, training.seed), devices, params)
    step = make_lm_step(
        module,
        tx,
        lora=lora,
        accumulate_steps=training.accumulate_steps,
        state_shardings=shardings,
    )
    if lora is None:
        return _Learner(state, step, lambda trained: trained)
    # The network's parameters do not change, so they are no part of the state and of its checkpoints.
    return _Learner(
        state,
        lambda state, batch: step(state, batch, params),
        lambda adapters: adapted(params, adapters, lora),
    )


def initial_state(
    tx: optax.GradientTransformation, lora: LoraConfig | None, seed: int = 0
) -> Callable[[Any], TrainState]:
    """From a network's parameters to the state before the first step: theirs, or that of adapters to them."""

    def init(params: Any) -> TrainState:
        if lora is not None and lora.rank:
            params = init_adapters(params, lora, jax.random.key(seed))
        return init_state(params, tx)

    return init


def mean_log_prob(module: DecoderLm, params: Any, trees: PackedTrees, devices: jax.sharding.Mesh) -> float:
    """The mean log-probability of a target token in nats, over all trees."""
    total, num_targets = 0.0, 0
    for number in range(len(trees)):
        batch = trees.in_order(number)
        log_probs = _token_log_probs(module, params, put_batch(batch, devices))
        total += float(log_probs.sum())
        is_target = np.asarray(batch.target_weights) > 0
        num_targets += int(is_target.sum())
    return total / max(1, num_targets)


_token_log_probs: Callable[..., Any] = jax.jit(token_log_probs, static_argnums=0)
