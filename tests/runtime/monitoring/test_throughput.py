"""Seconds are counted to what they went to, and rates are by hand."""

import itertools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import pytest

from radit_jax.config import ProfileConfig
from radit_jax.runtime.loop import Reporting, Saving, train
from radit_jax.runtime.monitoring import throughput
from radit_jax.runtime.monitoring.metrics import Metrics
from radit_jax.runtime.monitoring.throughput import Tracer, Watch
from radit_jax.runtime.storage.checkpoints import Checkpoints


def lines_of(folder, name):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: line[key] for key in line if key not in ("time", "name")}
        for line in lines
        if line["name"] == name
    ]


# ---- by hand ----


def test_rates_are_per_device_over_the_steps_own_time(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(throughput, "peak_flops", lambda kind: 100.0)
    monkeypatch.setattr(throughput, "LINE_SECONDS", 20.0)  # both steps' worth
    metrics = Metrics(tmp_path / "metrics.jsonl")
    watch = Watch("lm", metrics, lambda values: 10 * values["tokens"], started=1000.0)
    for tokens, fill in ((300.0, 0.5), (500.0, 1.0)):
        with watch.on("data_wait"):
            clock.now += 0.5
        clock.now += 1.5
        with watch.on("checkpoint"):
            clock.now += 9
        watch.ended(2, {"tokens": tokens, "answer_tokens": tokens / 10, "fill": fill})
    metrics.flush()
    [line] = lines_of(tmp_path, "lm/speed")
    # Two steps in 4 seconds beside the checkpoints, on 8 devices.
    assert line == {
        "step": 2,
        "step_seconds": 2.0,
        "data_wait_seconds": 0.5,
        "tokens_per_second_per_device": 25.0,
        "answer_tokens_per_second_per_device": 2.5,
        "fill": 0.75,
        "mfu": 2.5,
    }


def test_a_line_is_about_a_second_or_more_and_the_last_about_the_rest(tmp_path, clock):
    watch = Watch("toy", Metrics(tmp_path / "metrics.jsonl"), None, started=1000.0)
    for number in range(1, 8):
        clock.now += 0.4
        watch.ended(number, {"loss": 0.0})
    watch.write_time(7)
    found = [(line["step"], round(line["step_seconds"], 6)) for line in lines_of(tmp_path, "toy/speed")]
    assert found == [(3, 0.4), (6, 0.4), (7, 0.4)]


def test_the_last_line_says_what_all_the_time_went_to(tmp_path, clock):
    clock.now += 7
    watch = Watch("toy", Metrics(tmp_path / "metrics.jsonl"), None, started=1000.0)
    for purpose, seconds in (("data_wait", 1), ("validation", 2), ("data_wait", 3)):
        with watch.on(purpose):
            clock.now += seconds
    watch.write_time(9)
    [line] = lines_of(tmp_path, "toy/time")
    assert line == {
        "step": 9,
        "all_seconds": 13.0,
        "start_up_seconds": 7.0,
        "data_wait_seconds": 4.0,
        "validation_seconds": 2.0,
    }


def test_devices_that_tell_have_their_peak_of_memory_in_the_line(tmp_path, clock, monkeypatch):
    class Device:
        device_kind = "NVIDIA H200"

        def __init__(self, peak):
            self.peak = peak

        def memory_stats(self):
            return {"peak_bytes_in_use": self.peak}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(3e9), Device(5e9)])
    watch = Watch("toy", Metrics(tmp_path / "metrics.jsonl"), None, started=1000.0)
    watch.ended(1, {"loss": 0.0})
    watch.write_time(1)
    assert lines_of(tmp_path, "toy/speed")[0]["hbm_peak_gigabytes"] == 5.0


# ---- in the loop ----


class State(dict):
    """A state as the loop wants it."""

    step = property(lambda self: self["step"])
    params = property(lambda self: self["params"])


jax.tree_util.register_pytree_node(
    State, lambda s: (tuple(s.values()), tuple(s)), lambda keys, leaves: State(zip(keys, leaves, strict=True))
)


def run(folder, batch_at=lambda number: jnp.ones(()), num_steps=6, **options):
    step = jax.jit(lambda s, x: (State(step=s["step"] + 1, params=s["params"] + x), {"loss": x}))
    return train(
        name="toy",
        step=step,
        state=State(step=jnp.int32(0), params=jnp.zeros(())),
        batch_at=batch_at,
        num_steps=num_steps,
        saving=Saving(Checkpoints(folder / "checkpoints"), every=0),
        reporting=Reporting(Metrics(folder / "metrics.jsonl"), **options),
    )


def test_the_wait_for_data_is_the_time_that_batches_took(tmp_path):
    def slow(number):
        time.sleep(0.1)
        return jnp.ones(())

    run(tmp_path, slow)
    [line] = lines_of(tmp_path, "toy/time")
    assert 0.6 <= line["data_wait_seconds"] < 1.5
    assert line["all_seconds"] >= sum(line[key] for key in line if key not in ("all_seconds", "step")) - 0.01


def test_compiling_and_saving_are_no_part_of_a_step(tmp_path):
    def slow_step(state, batch):
        compiled = jax.jit(lambda x: x + len(seen))  # a new program in the first step only
        if not seen:
            seen.append(compiled(batch).block_until_ready())
            time.sleep(0.4)
        return State(step=state["step"] + 1, params=state["params"]), {"loss": batch}

    seen = []
    train(
        name="toy",
        step=slow_step,
        state=State(step=jnp.int32(0), params=jnp.zeros(())),
        batch_at=lambda number: jnp.ones(()),
        num_steps=3,
        saving=Saving(Checkpoints(tmp_path / "checkpoints"), every=0),
        reporting=Reporting(Metrics(tmp_path / "metrics.jsonl")),
    )
    [line] = lines_of(tmp_path, "toy/time")
    assert line["compile_seconds"] >= 0.4 and line["checkpoint_seconds"] > 0
    assert sum(found["step_seconds"] for found in lines_of(tmp_path, "toy/speed")) < 0.3


def test_start_up_is_counted_from_where_the_caller_says(tmp_path):
    run(tmp_path, num_steps=1, started=time.monotonic() - 50)
    [line] = lines_of(tmp_path, "toy/time")
    assert 50 <= line["start_up_seconds"] <= line["all_seconds"] < 80


def test_a_resumed_run_has_lines_of_its_own_steps(tmp_path):
    run(tmp_path, num_steps=2)
    run(tmp_path, num_steps=4)
    assert [line["step"] for line in lines_of(tmp_path, "toy/time")] == [2, 4]


def test_a_trace_of_the_asked_steps_lies_beside_the_metrics(tmp_path):
    run(tmp_path, profile=ProfileConfig("2:3"))
    [trace] = (tmp_path / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000
    assert lines_of(tmp_path, "toy/time")[0]["profile_seconds"] > 0


def test_no_trace_is_written_where_none_is_asked_for_or_its_steps_are_past(tmp_path):
    run(tmp_path, num_steps=2)
    run(tmp_path, num_steps=4, profile=ProfileConfig("1:2"))
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize(("first_step", "traced"), [(1, [4, 5, 6]), (5, [5, 6]), (7, [])])
def test_a_tracer_starts_and_stops_once(monkeypatch, first_step, traced):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    tracer, found = Tracer((4, 6), pathlib.Path("folder")), []
    for update in range(first_step, 10):
        if tracer.starts(update):
            tracer.start()
        found += [update] * (calls.count("start") > calls.count("stop"))
        if tracer.stops(update):
            tracer.stop()
    assert found == traced and len(calls) == 2 * bool(traced)


def test_a_loop_that_fails_ends_its_trace(tmp_path):
    batches = itertools.count()

    def fails(number):
        if next(batches) == 3:
            raise KeyError
        return jnp.ones(())

    with pytest.raises(KeyError):
        run(tmp_path, fails, profile=ProfileConfig("2:9"))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
