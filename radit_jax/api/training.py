"""Training on arrays: R-ft's query encoder, and what it shares with LM-ft."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from radit_jax.api.inputs import AnyModel, as_model, check_lengths
from radit_jax.config import MeshConfig, OptimizerConfig
from radit_jax.data.batches.order import shuffled
from radit_jax.method.losses import Direction
from radit_jax.method.optimizers import make_optimizer
from radit_jax.method.steps import RftBatch, init_state, make_r_ft_step
from radit_jax.retrieval.search import Encoder
from radit_jax.retrieval.tuning import PackedQueries
from radit_jax.runtime.distributed.mesh import (
    data_parallel_size,
    init_sharded,
    make_mesh,
    put_batch,
    put_params,
)
from radit_jax.runtime.loop import Reporting, Saving, train
from radit_jax.runtime.monitoring.metrics import Metrics
from radit_jax.runtime.pretrained.model_io import Model
from radit_jax.runtime.storage.checkpoints import Checkpoints
from radit_jax.runtime.storage.stage_folder import StageFolder


@dataclass(frozen=True)
class Training:
    """How long and how fast a model learns.

    The learning rate warms up for a tenth of the steps, and falls to 0.
    """

    steps: int
    learning_rate: float = 1e-5
    batch_size: int = 16  # questions of R-ft; rows of packed text of LM-ft
    seed: int = 0  # of the order of the examples

    @property
    def optimizer(self) -> OptimizerConfig:
        """The optimiser that experiments have, with this schedule."""
        return OptimizerConfig(self.steps, self.learning_rate, warmup_steps=self.steps // 10)


@contextlib.contextmanager
def passing_folder(name: str) -> Iterator[StageFolder]:
    """A folder for what training keeps while it runs, deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="radit-") as scratch:
        yield StageFolder(f"{scratch}/{name}/run")


def private_params(params: Any) -> Any:
    """A copy of the parameters: a training step gives the memory of its state to the next one."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)


def train_query_encoder(
    encoder: AnyModel,
    questions: Sequence[str],
    chunk_vectors: Any,
    target_log_probs: Any,
    training: Training,
    *,
    chunk_mask: Any = None,
    temperature: float = 1.0,
    direction: Direction = "retrieval_to_lsr",
) -> Model:
    """R-ft, Eq. 5: the query encoder after learning to rank each question's chunks as the target does.

    `chunk_vectors`, [Q, K, D], are E_d of each question's chunks, and stay as they are. `target_log_probs`,
    [Q, K], are log p_LSR in nats, as `losses.lsr_log_prob` makes them. `chunk_mask`, [Q, K], is False where
    a question has fewer chunks; by default all are there. `temperature` is p_R's. The parameters after the
    last step are returned, and `encoder` stays as it is. An experiment chooses the best step on development
    questions.
    """
    check_lengths(questions=questions, chunk_vectors=chunk_vectors, target_log_probs=target_log_probs)
    # 1) The arrays, which have to belong together.
    model = as_model(encoder)
    vectors, targets = np.asarray(chunk_vectors, np.float32), np.asarray(target_log_probs, np.float32)
    mask = np.ones(targets.shape, bool) if chunk_mask is None else np.asarray(chunk_mask, bool)
    _check_shapes(vectors, targets, mask, model.module.config.vector_size)

    # 2) Batches of questions, whose rows have one shape, so that one step is compiled.
    mesh = make_mesh(MeshConfig())
    tower = Encoder(model, mesh)
    order = shuffled(len(questions), batch_size=training.batch_size, seed=training.seed)
    batches = map(order, range(training.steps))
    queries = PackedQueries.fit(tower.token_ids(questions), batches, data_parallel_size(mesh))

    def batch_at(step: int) -> RftBatch:
        numbers = order(step)
        arrays = (queries.batch(numbers), vectors[numbers], targets[numbers], mask[numbers])
        return RftBatch(*put_batch(arrays, mesh))

    # 3) Training, on parameters of its own.
    tx = make_optimizer(training.optimizer)
    params = put_params(private_params(model.params), mesh)
    state, shardings = init_sharded(lambda start: init_state(start, tx), mesh, params)
    step = make_r_ft_step(
        tower.module, tx, temperature=temperature, direction=direction, state_shardings=shardings
    )
    # 4) The loop of all stages. Its checkpoint is only the last state.
    with passing_folder("train_query_encoder") as folder:
        state = train(
            name="train_query_encoder",
            step=step,
            state=state,
            batch_at=batch_at,
            num_steps=training.steps,
            saving=Saving(Checkpoints(folder.path / "checkpoints"), 0),
            reporting=Reporting(Metrics(folder.path / "metrics.jsonl")),
        )
    return model._replace(params=state.params)


def _check_shapes(vectors: np.ndarray, targets: np.ndarray, mask: np.ndarray, width: int) -> None:
    """Refuse arrays that do not belong to the same questions and chunks, or to another encoder."""
    # Vectors of another encoder's width would only fail inside the compiled step.
    expected = (*targets.shape, width)
    if targets.ndim != 2 or vectors.shape != expected or mask.shape != targets.shape:
        raise ValueError(
            f"train_query_encoder: expected vectors [Q, K, {width}], and targets and a mask [Q, K], got "
            f"{vectors.shape}, {targets.shape} and {mask.shape}. Pass one of each for each chunk."
        )
