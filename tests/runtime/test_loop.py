import json
import os
import signal
import threading
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.processes import Stopped, handling_signals
from radit_jax.runtime.loop import Reporting, Saving, Validation, train
from radit_jax.runtime.monitoring import watchdog
from radit_jax.runtime.monitoring.metrics import Metrics
from radit_jax.runtime.storage.checkpoint_series import CheckpointSeries
from radit_jax.runtime.storage.checkpoints import Checkpoints


class State(NamedTuple):
    step: Any
    params: Any
    momentum: Any


class Killed(BaseException):
    """Stands for a kill: nothing in the loop may handle it."""


def new_state() -> State:
    return State(jnp.int32(0), {"w": jnp.zeros(8)}, {"w": jnp.zeros(8)})


@jax.jit
def step(state, batch):
    def loss_of(params):
        return jnp.mean((batch @ params["w"] - 1) ** 2)

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    momentum = jax.tree.map(lambda m, g: 0.9 * m + g, state.momentum, grads)
    params = jax.tree.map(lambda p, m: p - 0.01 * m, state.params, momentum)
    return State(state.step + 1, params, momentum), {"loss": loss}


def batch_at(index):
    return np.random.default_rng(index).normal(size=(4, 8)).astype(np.float32)


def distance(state):
    return {"quality": -float(jnp.abs(state.params["w"] - 0.1).sum())}


def run(
    folder,
    num_steps,
    step=step,
    batch_at=batch_at,
    checkpoint_every=5,
    validate=None,
    validate_every=0,
    select="",
    learning_rates=(),
):
    return train(
        name="toy",
        step=step,
        state=new_state(),
        batch_at=batch_at,
        num_steps=num_steps,
        saving=Saving(Checkpoints(folder / "checkpoints"), checkpoint_every),
        reporting=Reporting(Metrics(folder / "metrics.jsonl"), learning_rates=learning_rates),
        validation=validate and Validation(validate, validate_every, select),
    )


def lines_of(folder, name="toy"):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key != "time"} for line in lines if line["name"] == name]


def assert_same(found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def killed_at(index):
    def batch(i):
        if i == index:
            raise Killed
        return batch_at(i)

    return batch


def poisoned_at(index):
    return lambda i: batch_at(i) * (np.float32("nan") if i == index else 1)


def test_it_takes_the_steps_in_order_and_writes_each_ones_metrics(tmp_path):
    state = new_state()
    losses = []
    for i in range(12):
        state, metrics = step(state, batch_at(i))
        losses.append(float(metrics["loss"]))
    trained = run(tmp_path, 12)
    assert_same(trained, state)
    assert lines_of(tmp_path) == [
        {"step": i + 1, "name": "toy", "loss": loss} for i, loss in enumerate(losses)
    ]


def test_each_updates_learning_rate_is_among_its_metrics_also_after_a_kill(tmp_path):
    rates = [0.5, 0.25, 0.125, 0.0625]
    with pytest.raises(Killed):
        run(tmp_path, 4, batch_at=killed_at(2), checkpoint_every=1, learning_rates=rates)
    run(tmp_path, 4, learning_rates=rates)
    assert [line["learning_rate"] for line in lines_of(tmp_path)] == rates


@pytest.mark.parametrize("killed", [2, 5, 6, 10, 13])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, killed):
    validation = {"validate": distance, "validate_every": 2, "select": "quality"}
    whole = run(tmp_path / "whole", 14, **validation)
    with pytest.raises(Killed):
        run(tmp_path / "resumed", 14, batch_at=killed_at(killed), **validation)
    resumed = run(tmp_path / "resumed", 14, **validation)
    assert_same(resumed, whole)
    for name in ("toy", "toy/validation"):
        assert lines_of(tmp_path / "resumed", name) == lines_of(tmp_path / "whole", name)
    best = [Checkpoints(tmp_path / folder / "checkpoints") for folder in ("whole", "resumed")]
    assert best[0].best() == best[1].best()
    assert_same(*(checkpoints.restore_best(new_state().params) for checkpoints in best))


def test_a_resumed_run_repeats_only_what_was_not_saved(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, 12, batch_at=killed_at(8))
    asked = []
    run(tmp_path, 12, batch_at=lambda i: asked.append(i) or batch_at(i))
    assert asked == list(range(5, 12))


@pytest.fixture
def slow_disk(monkeypatch):
    """An event; no checkpoint is written before it is set."""
    ready = threading.Event()
    wait_for_files = CheckpointSeries._wait_for_files

    def wait(series, step, written):
        assert ready.wait(60)
        return wait_for_files(series, step, written)

    monkeypatch.setattr(CheckpointSeries, "_wait_for_files", wait)
    return ready


def test_training_goes_on_while_a_checkpoint_is_written_and_keeps_it_soon(tmp_path, slow_disk):
    record = tmp_path / "checkpoints" / "latest" / "8.json"
    kept = []

    def batch(i):
        kept.append(record.exists())
        if i == 10:
            slow_disk.set()
            time.sleep(0.5)
        return batch_at(i)

    trained = run(tmp_path, 20, batch_at=batch, checkpoint_every=8)
    # Steps 9 and 10 are taken meanwhile; the record is there before the next save, which is due at step 16.
    assert kept[:11] == [False] * 11 and kept[15]
    assert_same(trained, run(tmp_path / "whole", 20))


def test_a_stop_while_a_checkpoint_is_written_keeps_the_last_step(tmp_path, slow_disk):
    def batch(i):
        if i == 6:
            threading.Timer(0.2, slow_disk.set).start()
            signal.raise_signal(signal.SIGTERM)
        return batch_at(i)

    with pytest.raises(Stopped), handling_signals():
        run(tmp_path, 20, batch_at=batch)
    latest = Checkpoints(tmp_path / "checkpoints").latest()
    assert latest is not None and latest >= 7
    assert_same(run(tmp_path, 20), run(tmp_path / "whole", 20))


def test_a_finished_run_is_only_restored(tmp_path):
    state = run(tmp_path, 7)
    lines = lines_of(tmp_path)
    assert_same(run(tmp_path, 7, batch_at=killed_at(7)), state)
    assert lines_of(tmp_path) == lines


def test_more_steps_go_on_where_the_last_call_ended(tmp_path):
    validation = {"validate": distance, "validate_every": 4, "select": "quality"}
    whole = run(tmp_path / "whole", 12, **validation)
    for num_steps in (4, 8, 12):
        rounds = run(tmp_path / "rounds", num_steps, **validation)
    assert_same(rounds, whole)
    for name in ("toy", "toy/validation"):
        assert lines_of(tmp_path / "rounds", name) == lines_of(tmp_path / "whole", name)


def test_validation_sees_the_first_the_due_and_the_last_state(tmp_path):
    seen = []

    def validate(state):
        seen.append(int(state.step))
        return {"quality": 0.0}

    run(tmp_path, 7, validate=validate, validate_every=3, select="quality")
    assert seen == [0, 3, 6, 7]
    assert [line["step"] for line in lines_of(tmp_path, "toy/validation")] == [0, 3, 6, 7]


@pytest.mark.parametrize(
    ("values", "best"), [([1, 3, 2, 3], 3), ([5, 1, 2, 4], 0), ([1, float("nan"), 2, 0], 6)]
)
def test_the_best_is_the_earliest_with_the_highest_selected_value(tmp_path, values, best):
    remaining = iter(values)
    states = {}

    def validate(state):
        states[int(state.step)] = state.params
        return {"quality": next(remaining), "other": 9.0}

    run(tmp_path, 7, validate=validate, validate_every=3, select="quality")
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.best()[0] == best
    assert_same(checkpoints.restore_best(new_state().params), states[best])


@pytest.mark.parametrize("bad", [0, 4, 5, 7, 11])
def test_a_loss_that_is_not_finite_stops_at_its_step_and_keeps_the_last_good_checkpoint(tmp_path, bad):
    kept = bad // 5 * 5
    hint = f"the checkpoint of step {kept} is kept" if kept else "no checkpoint was due before"
    message = rf"^toy: expected a finite loss of step {bad + 1}, got nan \({hint}\). Lower the peak_lr of toy"
    with pytest.raises(FloatingPointError, match=message):
        run(tmp_path, 12, batch_at=poisoned_at(bad))
    assert Checkpoints(tmp_path / "checkpoints").latest() == (kept or None)
    assert [line["step"] for line in lines_of(tmp_path)] == list(range(1, bad + 2))
    # With the batch mended, the run goes on as if nothing had happened.
    assert_same(run(tmp_path, 12), run(tmp_path / "whole", 12))


def test_an_update_that_is_not_finite_is_never_saved(tmp_path):
    def step_with_bad_update(state, batch):
        state, metrics = step(state, batch)
        bad = jnp.where(state.step == 10, jnp.inf, 0)
        return state._replace(momentum={"w": state.momentum["w"] + bad}), metrics

    with pytest.raises(FloatingPointError, match=r"toy: expected a finite update of step 10.*step 5 is kept"):
        run(tmp_path, 12, step=step_with_bad_update)
    assert Checkpoints(tmp_path / "checkpoints").latest() == 5


def test_an_infinite_loss_stops_too(tmp_path):
    with pytest.raises(FloatingPointError, match="expected a finite loss of step 3, got inf"):
        run(
            tmp_path, 12, batch_at=lambda i: batch_at(i) * (np.float32("inf") if i == 2 else 1), step=infinite
        )


@jax.jit
def infinite(state, batch):
    return state._replace(step=state.step + 1), {"loss": jnp.abs(batch).max()}


def test_steps_are_dispatched_ahead_of_their_metrics(tmp_path):
    # A batch is asked for before the loss of the step before it has been looked at.
    events = []

    class Loss:
        def __init__(self, number):
            self.number = number

        def __float__(self):
            events.append(f"read {self.number}")
            return 0.0

    def lazy_step(state, batch):
        events.append(f"step {batch}")
        return state._replace(step=state.step + 1), {"loss": Loss(batch)}

    run(tmp_path, 5, step=lazy_step, batch_at=lambda i: i, checkpoint_every=0)
    assert events[:5] == ["step 0", "step 1", "step 2", "read 0", "step 3"]
    assert sorted(events) == sorted([f"{verb} {i}" for verb in ("step", "read") for i in range(5)])


def test_only_due_checkpoints_and_the_last_are_written(tmp_path):
    run(tmp_path, 12)
    assert sorted(os.listdir(tmp_path / "checkpoints" / "latest")) == ["10", "10.json", "12", "12.json"]


# ---- SIGTERM ----


def terminated_at(index):
    def batch(i):
        if i == index:
            signal.raise_signal(signal.SIGTERM)
        return batch_at(i)

    return batch


def test_a_run_that_was_told_to_stop_keeps_its_step_and_goes_on_as_if_it_had_not_been(tmp_path):
    with pytest.raises(Stopped) as stop, handling_signals():
        run(tmp_path / "stopped", 20, batch_at=terminated_at(6), validate=distance, validate_every=8)
    step_kept = Checkpoints(tmp_path / "stopped" / "checkpoints").latest()
    assert 7 <= step_kept <= 9  # that step, and those that were dispatched meanwhile
    assert str(stop.value) == f"in toy; the state after step {step_kept} is kept"
    assert lines_of(tmp_path / "stopped")[-1]["step"] == step_kept
    resumed = run(tmp_path / "stopped", 20, validate=distance, validate_every=8)
    whole = run(tmp_path / "whole", 20, validate=distance, validate_every=8)
    assert_same(resumed, whole)
    assert lines_of(tmp_path / "stopped") == lines_of(tmp_path / "whole")
    name = "toy/validation"
    assert lines_of(tmp_path / "stopped", name) == lines_of(tmp_path / "whole", name)


def test_a_run_that_is_told_to_stop_in_its_last_step_stops_behind_it(tmp_path):
    with pytest.raises(Stopped, match="at what follows"), handling_signals():
        run(tmp_path, 10, batch_at=terminated_at(9))
        processes.barrier("what follows")
    assert Checkpoints(tmp_path / "checkpoints").latest() == 10


def test_a_run_that_is_told_to_stop_while_it_starts_loses_nothing(tmp_path):
    with pytest.raises(Stopped), handling_signals():
        run(tmp_path, 10, batch_at=terminated_at(0))
    assert Checkpoints(tmp_path / "checkpoints").latest() in (1, 2, 3)


@pytest.mark.parametrize("stopped_at", [0, 8, 20])
def test_a_run_that_is_told_to_stop_while_it_validates_keeps_its_step_and_validates_again(
    tmp_path, stopped_at
):
    def validate(state):
        if int(state.step) == stopped_at and processes.stop_asked():
            processes.barrier("a long validation")
        return distance(state)

    def told(state):
        if int(state.step) == stopped_at:
            signal.raise_signal(signal.SIGTERM)
        return validate(state)

    options = {"validate_every": 4, "select": "quality", "checkpoint_every": 10}
    with (
        pytest.raises(Stopped, match=f"^in toy; the state after step {stopped_at} is kept"),
        handling_signals(),
    ):
        run(tmp_path / "stopped", 20, validate=told, **options)
    resumed = run(tmp_path / "stopped", 20, validate=validate, **options)
    assert_same(resumed, run(tmp_path / "whole", 20, validate=validate, **options))
    for name in ("toy", "toy/validation"):
        assert lines_of(tmp_path / "stopped", name) == lines_of(tmp_path / "whole", name)
    found = [Checkpoints(tmp_path / name / "checkpoints").best() for name in ("stopped", "whole")]
    assert found[0] == found[1]


def test_a_step_that_hangs_is_noticed(tmp_path, monkeypatch):
    told = []
    monkeypatch.setenv("RADIT_HANG_SECONDS", "0.1")
    monkeypatch.setattr(watchdog, "end_hanging", lambda what, seconds: told.append(what))

    class Late:
        """A loss that a device has not computed yet."""

        def __array__(self, dtype=None, copy=None):
            time.sleep(0.5)
            return np.ones((), dtype)

    def slow_step(state, batch):
        new_state, _ = step(state, batch)
        return new_state, {"loss": Late()}

    run(tmp_path, 1, step=slow_step)
    assert told and told[0].endswith(": step 1")
