import io
import json
import time
import types

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util

from radit_jax.runtime.monitoring.metrics import Metrics
from radit_jax.runtime.monitoring.progress import Progress, begin_stage, end_stages, progress, show_note
from radit_jax.runtime.monitoring.time_left import TimeLeft


@pytest.fixture(params=[False])
def stream(request, monkeypatch):
    """Stands for stderr; `[True]` makes it a terminal."""
    stream = io.StringIO()
    stream.isatty = lambda: request.param
    # pytest sets sys.stderr anew after this, so only the module under test is given the stream
    monkeypatch.setattr("radit_jax.runtime.monitoring.progress.sys", types.SimpleNamespace(stderr=stream))
    return stream


on_a_terminal = pytest.mark.parametrize("stream", [True], indirect=True)


# ---- the bar ----


def test_off_a_terminal_there_is_at_most_a_line_each_ten_seconds(stream, clock):
    with Progress(100, "embed", "chunks") as bar:
        for _ in range(100):
            clock.now += 0.25
            bar.advance()
    assert stream.getvalue().splitlines() == [
        "embed  40/100 chunks  4 chunks/s  0:15 left",
        "embed  80/100 chunks  4 chunks/s  0:05 left",
        "embed  100/100 chunks  4 chunks/s  in 0:25",
    ]


@on_a_terminal
def test_on_a_terminal_one_line_is_redrawn(stream, clock):
    with Progress(4, "lm_ft", "steps") as bar:
        clock.now += 1
        bar.advance(loss=1.23456)
        clock.now += 0.01
        bar.advance()  # too early to draw again
        clock.now += 1
        bar.advance(2, loss=0.5)
    text = stream.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n")
    lines = [line.removesuffix("\x1b[K") for line in text.rstrip("\n").split("\r")[1:]]
    assert lines[0] == "lm_ft  [######------------------]  1/4 steps  1 steps/s  0:03 left  loss 1.235"
    assert lines[-1] == "lm_ft  [########################]  4/4 steps  1.99 steps/s  in 0:02  loss 0.5"


def test_what_was_done_before_a_resume_does_not_count_into_the_rate(stream, clock):
    with Progress(200, "r_ft", "steps", done=100) as bar:
        clock.now += 10
        bar.advance(20)
    assert stream.getvalue().splitlines()[0] == "r_ft  120/200 steps  2 steps/s  0:40 left"


def test_the_first_units_of_many_wait_for_a_compilation_and_tell_no_time(stream, clock):
    with Progress(200, "r_ft", "steps") as bar:
        clock.now += 30
        bar.advance(2)
        clock.now += 12
        bar.advance(6)
        assert bar.seconds_left() == 192 * 2
    first, second = stream.getvalue().splitlines()
    assert first == "r_ft  2/200 steps  0.0667 steps/s"
    assert second == "r_ft  8/200 steps  0.19 steps/s  6:24 left"


def test_a_loop_that_fails_still_shows_how_far_it_came(stream):
    with pytest.raises(KeyError), Progress(3, "score", "pairs") as bar:
        bar.advance()
        raise KeyError
    assert stream.getvalue().startswith("score  1/3 pairs")


def test_progress_yields_the_items_and_counts_them(capsys):
    assert list(progress("abc", "read", "rows")) == ["a", "b", "c"]
    assert "read  3/3 rows" in capsys.readouterr().err
    assert list(progress(iter("ab"), "read", "rows", total=2)) == ["a", "b"]
    assert "read  2/2 rows" in capsys.readouterr().err


def test_an_empty_loop_is_no_error(capsys):
    assert list(progress([], "read", "rows")) == []
    assert "read  0/0 rows" in capsys.readouterr().err


@pytest.fixture
def in_a_run(clock):
    """A stage that took 100 s in each of two loops before, of a run in which 40 s follow."""
    time_left = TimeLeft({"evaluate": {"base": 100.0, "radit": 100.0}, "export": {"export": 40.0}})
    yield begin_stage("evaluate", "11/12", time_left)
    end_stages()


def test_a_line_says_where_the_whole_run_is(stream, clock, in_a_run):
    with Progress(50, "base", "questions") as bar:
        clock.now += 50
        bar.advance(25)
    expected = "base  25/50 questions  0.5 questions/s  0:50 left  11/12 (about 4 min left)"
    assert stream.getvalue().splitlines()[0] == expected


@on_a_terminal
def test_a_terminal_without_room_for_the_whole_run_shows_the_loop(stream, clock, in_a_run, monkeypatch):
    for columns, ending in (("80", "0:50 left\x1b[K"), ("140", "left  11/12 (about 5 min left)\x1b[K")):
        monkeypatch.setenv("COLUMNS", columns)
        with Progress(50, "base", "questions") as bar:
            clock.now += 50
            bar.advance(25)
            assert stream.getvalue().endswith(ending)


def test_a_stage_counts_the_time_of_its_outer_loops_from_its_start_to_its_end(stream, clock, in_a_run):
    clock.now += 5  # before the first loop
    for name in ("base", "radit", "radit"):
        with Progress(2, name, "questions") as bar:
            clock.now += 10
            with Progress(1, "validation", "questions") as inner:
                clock.now += 3
                inner.advance()
            bar.advance(2)
    clock.now += 1  # after the last one
    assert in_a_run.end_stage("evaluate") == {"base": 18.0, "radit": 27.0}


def test_a_stage_without_a_loop_has_one_of_its_own_name(clock, in_a_run):
    clock.now += 4
    assert in_a_run.end_stage("evaluate") == {"evaluate": 4.0}


def test_a_note_is_a_line_and_off_a_terminal_nothing_else(stream):
    show_note("compiling step …")
    assert stream.getvalue() == "compiling step …\n"


@on_a_terminal
def test_on_a_terminal_a_note_takes_the_line_of_the_bar(stream):
    show_note("compiling step …")
    assert stream.getvalue() == "\rcompiling step …\x1b[K\n"


# ---- metrics ----


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def numbers(path):
    return [(line["step"], line["name"]) for line in lines_of(path)]


def test_metrics_are_json_lines(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    before = time.time()
    metrics.write(1, "lm_ft", {"loss": 0.1, "lr": 1e-3})
    metrics.flush()
    (line,) = lines_of(tmp_path / "metrics.jsonl")
    assert abs(line.pop("time") - before) < 5
    assert line == {"step": 1, "name": "lm_ft", "loss": 0.1, "lr": 1e-3}


def test_lines_beyond_the_restored_step_are_dropped_for_that_name_only(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    for step in (1, 2, 3):
        metrics.write(step, "lm", {"loss": 1.0})
        metrics.write(step, "lm/validation", {"loss": 1.0})
        metrics.write(step, "lm_ft", {"loss": 1.0})
    metrics.flush()
    with path.open("a") as file:
        file.write('{"step": 4, "name": "lm", "lo')  # a kill

    resumed = Metrics(path)
    resumed.drop_after(1, "lm")
    resumed.write(2, "lm", {"loss": 2.0})
    resumed.flush()
    first = [(1, "lm"), (1, "lm/validation"), (1, "lm_ft")]
    assert numbers(path) == [*first, (2, "lm_ft"), (3, "lm_ft"), (2, "lm")]


def test_what_was_written_can_be_read_a_second_later(tmp_path, clock):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.write(1, "lm", {"loss": 1.0})
    assert numbers(tmp_path / "metrics.jsonl") == []
    clock.now += 1.5
    metrics.write(2, "lm", {"loss": 1.0})
    assert numbers(tmp_path / "metrics.jsonl") == [(1, "lm"), (2, "lm")]


LINE = b'{"step": 1, "name": "lm", "time": 1.0, "loss": 2.0}\n'


@pytest.mark.parametrize(
    "content",
    [
        b'{"step": 1, "na.0, "loss": 2.0}\n',
        b"118059162071741130\n",
        b'[{"answer": 5}]\n',
        b'{"text": null}\n',
        b'{"step": 2, "time": 2.0}\n',
        b'{"step": 2, "name": {}, "time": 2.0}\n',
        b'{"step": 1, "name": "lm", "time": 1.0, "loss": "-5"}\n',
        b'{"step": 1, "name": "lm", "time": 1.0, "loss": [1]}\n',
        b'{"step": 1.5, "name": "lm", "time": 1.0}\n',
        b'{"step": true, "name": "lm", "time": 1.0}\n',
        b'{"step": 99999999999999999999, "name": "lm", "time": 1.0}\n',
        b"\xff\xfe\n",
        b"[" * 5000 + b"\n",
    ],
)
def test_a_line_that_was_never_written_so_is_one_error(tmp_path, content):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(LINE + content + LINE)
    with pytest.raises(
        ValueError, match=r"metrics\.jsonl line 2: expected .* Delete the file: training goes on,"
    ):
        Metrics(path)
    assert path.read_bytes() == LINE + content + LINE


def test_numbers_that_are_not_finite_are_lines_like_others(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.write(1, "lm", {"loss": float("nan"), "norm": float("inf")})
    metrics.flush()
    Metrics(tmp_path / "metrics.jsonl").drop_after(1, "lm")
    assert numbers(tmp_path / "metrics.jsonl") == [(1, "lm")]


def scalars_of(metrics):
    """What TensorBoard itself reads: (step, tag, value) of each scalar."""
    events = EventFileLoader(str(metrics.tensorboard)).Load()
    return [
        (event.step, value.tag, tensor_util.make_ndarray(value.tensor).item())
        for event in events
        for value in event.summary.value
    ]


def test_tensorboard_reads_what_was_written(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.write(300, "lm", {"loss": 0.25})
    metrics.flush()
    assert scalars_of(metrics) == [(300, "lm/loss", 0.25)]


def test_tensorboard_follows_the_json_lines_through_a_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    for step in range(1, 5):
        metrics.write(step, "lm", {"loss": step})
    metrics.flush()
    metrics = Metrics(path)
    assert len(scalars_of(metrics)) == 4
    metrics.drop_after(2, "lm")
    metrics.write(3, "lm", {"loss": 30})
    metrics.flush()
    assert [value for _, _, value in scalars_of(metrics)] == [1, 2, 30]
