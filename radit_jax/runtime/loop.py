"""The one training loop: resumes exactly, keeps the best, and stops at the first loss that is not finite.

It also stops where SIGTERM or Ctrl-C was sent to any process: all at the same step, with its checkpoint.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from radit_jax.config import ProfileConfig
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.mesh import any_process
from radit_jax.runtime.monitoring.metrics import Metrics
from radit_jax.runtime.monitoring.progress import Progress
from radit_jax.runtime.monitoring.throughput import Tracer, Values, Watch
from radit_jax.runtime.monitoring.watchdog import Watchdog, watching
from radit_jax.runtime.storage.checkpoints import Checkpoints

State = Any  # a pytree with `step`, the number of updates done, and `params`
Batch = Any
StepMetrics = Mapping[str, jax.Array]  # `loss` among them
Step = Callable[[State, Batch], tuple[State, StepMetrics]]

_STEPS_AHEAD = 2  # steps that are dispatched before the first one's metrics are waited for


@dataclass(frozen=True)
class Saving:
    """Where the state is kept, and how often."""

    checkpoints: Checkpoints
    every: int  # updates between two checkpoints; 0: after the last update only


@dataclass(frozen=True)
class Validation:
    """What a state is measured by, and which figure chooses the parameters that are kept as the best."""

    figures: Callable[[State], Mapping[str, Any]]
    every: int = 0  # updates between two measurements; 0: after the last only
    select: str = ""  # the figure whose highest value is kept, the earliest of equals; "": none is kept


@dataclass(frozen=True)
class Reporting:
    """Where the figures of each update go, and what else is told of how fast the run is."""

    metrics: Metrics
    flops: Callable[[Values], float] | None = None  # an update's operations by its metrics, for the MFU
    profile: ProfileConfig | None = None  # the updates to trace; the trace lies next to the metrics
    started: float | None = None  # `time.monotonic` from which start-up counts; None: the call of `train`
    learning_rates: Sequence[float] = ()  # of each update; empty: not reported


def train(
    *,
    name: str,
    step: Step,
    state: State,
    batch_at: Callable[[int], Batch],
    num_steps: int,
    saving: Saving,
    reporting: Reporting,
    validation: Validation | None = None,
) -> State:
    """The state after `num_steps` updates, taken up from the latest checkpoint where there is one.

    Update s, counted from 1, is `step(state, batch_at(s - 1))`; its metrics, `loss` among them, are
    written as step s. `batch_at` depends on its argument alone, so that a run which was killed and resumed
    equals one which was not. `validation` sees the state after 0, `validation.every`, ... and `num_steps`
    updates. Called again with more steps, it goes on from where the last call ended.

    Raises FloatingPointError, which names the step, when a loss is not finite. No checkpoint ever holds
    the state after such a step. Raises Stopped where the program was asked to stop.
    """
    started = time.monotonic() if reporting.started is None else reporting.started

    # Take up the latest checkpoint, and drop the metrics of what is computed again.
    metrics = reporting.metrics
    restored, extra = saving.checkpoints.latest(), {}
    if restored is not None:
        state, extra = saving.checkpoints.restore(state)
    start = int(state.step)
    unvalidated = bool(extra.get("unvalidated"))
    metrics.drop_after(start if restored is not None else -1, name)
    if unvalidated:
        metrics.drop_after(start - 1, f"{name}/validation")
    elif restored is not None and start >= num_steps:
        return state

    with (
        processes.deferring_stops(),
        Progress(num_steps, name, "steps", done=start, stops=False) as bar,
        watching(name) as watchdog,
    ):
        watch = Watch(name, metrics, reporting.flops, started)
        profile = reporting.profile
        traced_updates = profile.updates if profile else None
        tracer = Tracer(traced_updates, metrics.path.parent / "profile")
        rates = reporting.learning_rates
        run = _Run(name, num_steps, saving, validation, metrics, bar, watch, watchdog, tracer, rates)
        try:
            for done in range(start, num_steps + 1):
                # What is due at a restored step was done before that checkpoint was written, except for a
                # validation that was stopped.
                if done != restored or unvalidated:
                    run.validate_and_save(state, done, unvalidated)
                    unvalidated = False
                if done < num_steps:
                    if run.stopping:
                        run.leave(state, done)
                    state = run.update(step, state, batch_at, done)
            run.finish_saving()
        finally:
            tracer.stop()
            # An error of one process alone does not let it wait for the others.
            if jax.process_count() == 1:
                run.finish_saving()
        watch.write_time(num_steps)
    return state


class _Dispatched(NamedTuple):
    """An update whose metrics nobody has waited for."""

    number: int
    metrics: StepMetrics
    stop_asked: Any  # whether a process had been asked to stop by then
    unwritten: Any  # whether a process was still writing a checkpoint; None where there was none


@dataclass
class _Run:
    """One call of `train`: its updates, and what happens between them."""

    name: str
    num_steps: int
    saving: Saving
    validation: Validation | None
    metrics: Metrics
    bar: Progress
    watch: Watch
    watchdog: Watchdog
    tracer: Tracer
    learning_rates: Sequence[float] = ()
    pending: deque[_Dispatched] = field(default_factory=deque)
    stopping: bool = False  # the same on all processes, because they settle the same steps

    def update(self, step: Step, state: State, batch_at: Callable[[int], Batch], done: int) -> State:
        """Dispatch the update after `done`, and settle one that was dispatched before it."""
        number = done + 1
        if self.tracer.starts(number):
            self._trace(self.tracer.start)
        with self.watch.on("data_wait"):
            batch = batch_at(done)
        state, metrics = self.watch.dispatch(step, state, batch)
        stop_asked = any_process(processes.stop_asked())
        unwritten = self.saving.checkpoints.unwritten()
        self.pending.append(_Dispatched(number, metrics, stop_asked, unwritten))
        self._settle(ahead=_STEPS_AHEAD)
        if self.tracer.stops(number):
            self._trace(self.tracer.stop)
        return state

    def validate_and_save(self, state: State, done: int, unvalidated: bool) -> None:
        """Do what is due after `done` updates; a state whose validation was stopped is saved again."""
        validation = self.validation
        if validation and self._is_due(done, validation.every):
            self._validate(validation, state, done)
        if done and (unvalidated or self._is_due(done, self.saving.every)):
            self._save(state, done)

    def leave(self, state: State, done: int) -> NoReturn:
        """Keep the state after `done` updates, and end the program."""
        if self.saving.checkpoints.latest() != done:
            self._save(state, done)
        self.finish_saving()
        raise processes.stopped(f"in {self.name}; the state after step {done} is kept")

    def _is_due(self, done: int, every: int) -> bool:
        return done == self.num_steps or (every > 0 and done % every == 0)

    def _settle(self, ahead: int = 0) -> None:
        """Wait for all dispatched steps but the last `ahead`, and write their metrics.

        Those `ahead` keep the devices busy meanwhile. Raises FloatingPointError at a loss that is not finite.
        """
        while len(self.pending) > ahead:
            step_number, metrics, stop_asked, unwritten = self.pending.popleft()
            self.stopping |= bool(stop_asked)
            with self.watchdog.waiting_for(f"step {step_number}"):
                on_host = jax.device_get(metrics)
            values = {key: float(value) for key, value in on_host.items()}
            if self.learning_rates:
                values["learning_rate"] = float(self.learning_rates[step_number - 1])
            self.metrics.write(step_number, self.name, values)
            loss = values["loss"]
            if not math.isfinite(loss):
                self._fail(f"a finite loss of step {step_number}", str(loss))
            self.bar.advance(loss=loss)
            self.watch.ended(step_number, values)
            # All processes have written the last checkpoint.
            if unwritten is not None and not unwritten:
                self.finish_saving()

    def _validate(self, validation: Validation, state: State, done: int) -> None:
        self._settle()
        try:
            with self.watch.on("validation"), processes.deferring_stops(False):
                figures = validation.figures(state)
                values = {key: float(value) for key, value in figures.items()}
        except processes.Stopped:
            self._save(state, done, unvalidated=True)
            self.finish_saving()
            raise processes.stopped(f"in {self.name}; the state after step {done} is kept") from None
        self.metrics.write(done, f"{self.name}/validation", values)

        # Keep the parameters where they are better than all before.
        if not validation.select:
            return
        figure = values[validation.select]
        best = self.saving.checkpoints.best()
        if figure > (best[1] if best else -math.inf):
            with self.watch.on("checkpoint"):
                self.saving.checkpoints.save_best(done, state.params, figure)

    def _save(self, state: State, done: int, **extra: bool) -> None:
        self._settle()
        self.metrics.flush()
        # A step's loss is the loss before its update, so the last update may have gone wrong unseen.
        if not bool(_all_finite(state)):
            self._fail(f"a finite update of step {done}", "one that is not")
        with self.watch.on("checkpoint"):
            self.saving.checkpoints.start_saving(done, state, extra)

    def finish_saving(self) -> None:
        """Wait for the checkpoint that is being written, if there is one."""
        with self.watch.on("checkpoint"):
            self.saving.checkpoints.finish_saving()

    def _trace(self, start_or_stop: Callable[[], None]) -> None:
        """Start or stop a trace after the dispatched steps have ended."""
        self._settle()
        with self.watch.on("profile"):
            start_or_stop()

    def _fail(self, expected: str, got: str) -> NoReturn:
        self.metrics.flush()
        last = self.saving.checkpoints.latest()
        remains = f"the checkpoint of step {last} is kept"
        if last is None:
            remains = "no checkpoint was due before"
        raise FloatingPointError(
            f"{self.name}: expected {expected}, got {got} ({remains}). "
            f"Lower the peak_lr of {self.name}, or look at the examples of that step."
        )


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    """Whether every number is finite; integers are."""
    are_finite = []
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            are_finite.append(jnp.isfinite(leaf).all())
    return jnp.stack(are_finite).all()
