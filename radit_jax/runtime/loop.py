"""The one training loop: resumes exactly, keeps the best, and stops at the first loss that is not finite.

It also stops where SIGTERM or Ctrl-C was sent to any process: all at the same step, with its checkpoint.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from radit_jax.config import ProfileConfig
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.mesh import any_process
from radit_jax.runtime.monitoring.metrics import Metrics
from radit_jax.runtime.monitoring.progress import Progress
from radit_jax.runtime.monitoring.throughput import Tracer, Values, Watch
from radit_jax.runtime.storage.checkpoints import Checkpoints

State = Any  # a pytree with `step`, the number of updates done, and `params`
Batch = Any
Validate = Callable[[State], Mapping[str, Any]]

_STEPS_AHEAD = 2  # steps that are dispatched before the first one's metrics are waited for


def train(
    *,
    name: str,
    step: Callable[[State, Batch], tuple[State, Mapping[str, jax.Array]]],
    state: State,
    batch_at: Callable[[int], Batch],
    num_steps: int,
    checkpoints: Checkpoints,
    metrics: Metrics,
    checkpoint_every: int,
    validate: Validate | None = None,
    validate_every: int = 0,
    select: str = "",
    flops: Callable[[Values], float] | None = None,
    profile: ProfileConfig | None = None,
    started: float | None = None,
) -> State:
    """The state after `num_steps` updates, taken up from the latest checkpoint where there is one.

    Update s, counted from 1, is `step(state, batch_at(s - 1))`; its metrics, `loss` among them, are
    written as step s. `batch_at` depends on its argument alone, so that a run which was killed and resumed
    equals one which was not. `validate` sees the state after 0, `validate_every`, ... and `num_steps`
    updates; the parameters with the highest `select` of its values are kept as the checkpoints' best,
    the earliest of equals. Called again with more steps, it goes on from where the last call ended.

    `flops` tells a step's operations by its metrics, for the share of the devices' peak. Start-up is counted
    from `started` (`time.monotonic`), by default from this call. A trace lies beside the metrics.

    Raises FloatingPointError, which names the step, when a loss is not finite. No checkpoint ever holds
    the state after such a step. Raises Stopped where the program was asked to stop.
    """
    started = time.monotonic() if started is None else started
    restored, extra = checkpoints.latest(), {}
    if restored is not None:
        state, extra = checkpoints.restore(state)
    start, unvalidated = int(state.step), bool(extra.get("unvalidated"))
    metrics.drop_after(start if restored is not None else -1, name)
    if unvalidated:
        metrics.drop_after(start - 1, f"{name}/validation")
    elif restored is not None and start >= num_steps:
        return state

    with processes.deferring_stops(), Progress(num_steps, name, "steps", done=start, stops=False) as bar:
        watch = Watch(name, metrics, flops, started)
        tracer = Tracer(profile.updates if profile else None, metrics.path.parent / "profile")
        run = _Run(name, checkpoints, metrics, bar, watch)
        try:
            for number in range(start, num_steps + 1):
                # What is due at a restored step was done before that checkpoint was written, but for a
                # validation that was stopped.
                if number != restored or unvalidated:
                    if validate and _due(number, validate_every, num_steps):
                        run.validate(validate, state, number, select)
                    if number and (unvalidated or _due(number, checkpoint_every, num_steps)):
                        run.save(state, number)
                    unvalidated = False
                if number < num_steps:
                    if run.stopping:
                        run.leave(state, number)
                    if tracer.starts(number + 1):
                        run.trace(tracer.start)
                    with watch.on("data_wait"):
                        batch = batch_at(number)
                    state, values = watch.dispatch(step, state, batch)
                    run.pending.append((number + 1, values, any_process(processes.stop_asked())))
                    run.settle(ahead=_STEPS_AHEAD)
                    if tracer.stops(number + 1):
                        run.trace(tracer.stop)
        finally:
            tracer.stop()
        watch.write_time(num_steps)
    return state


def _due(number: int, every: int, num_steps: int) -> bool:
    return number == num_steps or (every > 0 and number % every == 0)


@dataclass
class _Run:
    """What happens beside the updates: looking at losses, validating, saving."""

    name: str
    checkpoints: Checkpoints
    metrics: Metrics
    bar: Progress
    watch: Watch
    # Dispatched steps, and whether a process had been asked to stop by then.
    pending: deque[tuple[int, Mapping[str, jax.Array], Any]] = field(default_factory=deque)
    stopping: bool = False  # the same on all processes, for they settle the same steps

    def settle(self, ahead: int = 0) -> None:
        """Writes the metrics of all dispatched steps but the last `ahead`, and demands finite losses."""
        while len(self.pending) > ahead:
            number, values, stop = self.pending.popleft()
            self.stopping |= bool(stop)
            values = {key: float(value) for key, value in jax.device_get(values).items()}
            self.metrics.write(number, self.name, values)
            if not math.isfinite(values["loss"]):
                self.stop(f"the loss of step {number} is {values['loss']}")
            self.bar.advance(loss=values["loss"])
            self.watch.ended(number, values)

    def validate(self, validate: Validate, state: State, number: int, select: str) -> None:
        self.settle()
        try:
            with self.watch.on("validation"), processes.deferring_stops(False):
                values = {key: float(value) for key, value in validate(state).items()}
        except processes.Stopped:
            self.save(state, number, unvalidated=True)
            raise processes.stopped(f"in {self.name}; the state after step {number} is kept") from None
        self.metrics.write(number, f"{self.name}/validation", values)
        best = self.checkpoints.best()
        if select and values[select] > (best[1] if best else -math.inf):
            with self.watch.on("checkpoint"):
                self.checkpoints.save_best(number, state.params, values[select])

    def save(self, state: State, number: int, **extra: bool) -> None:
        self.settle()
        self.metrics.flush()
        # A step's loss is that before its update, so the last update may have gone wrong unseen.
        if not bool(_all_finite(state)):
            self.stop(f"the update of step {number} is not finite")
        with self.watch.on("checkpoint"):
            self.checkpoints.save(number, state, extra)

    def leave(self, state: State, number: int) -> NoReturn:
        """Keeps the state after `number` updates, and ends the program."""
        if self.checkpoints.latest() != number:
            self.save(state, number)
        raise processes.stopped(f"in {self.name}; the state after step {number} is kept")

    def trace(self, start_or_stop: Callable[[], None]) -> None:
        """The steps that were dispatched end before a trace starts or stops."""
        self.settle()
        with self.watch.on("profile"):
            start_or_stop()

    def stop(self, fault: str) -> NoReturn:
        self.metrics.flush()
        last = self.checkpoints.latest()
        kept = "no checkpoint was due before" if last is None else f"the checkpoint of step {last} is kept"
        raise FloatingPointError(
            f"{self.name}: {fault}, a finite one is needed ({kept}); "
            f"lower the peak_lr of {self.name}, or look at the examples of that step"
        )


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()
