"""How long a run still takes, by what its stages took before."""

import pytest

from radit_jax.runtime.monitoring.time_left import TimeLeft, in_words

SECONDS = {"corpus": {"corpus": 10.0}, "lm_ft": {"lm_ft": 60.0, "again": 20.0}, "export": {"export": 30.0}}


def test_a_run_as_fast_as_before_has_the_recorded_rest_left(clock) -> None:
    time_left = TimeLeft(SECONDS)
    assert (time_left.total, time_left.left()) == (120.0, 120.0)
    time_left.begin("corpus")
    clock.now += 10
    time_left.begin("lm_ft")
    assert (time_left.done, time_left.left()) == (10.0, 110.0)
    # Half of the first loop, then a quarter of the second.
    clock.now += 30
    time_left.advance("lm_ft", 0.5)
    assert (time_left.done, time_left.left()) == (40.0, 80.0)
    clock.now += 35
    time_left.advance("again", 0.25)
    assert (time_left.done, time_left.left()) == (75.0, 45.0)


def test_a_machine_of_half_the_speed_is_believed_with_the_work_that_it_does(clock) -> None:
    time_left = TimeLeft(SECONDS)
    time_left.begin("corpus")
    clock.now += 20
    time_left.begin("lm_ft")
    # 20 s for 10 s of work, and a tenth of the run that nobody doubts.
    assert time_left.left() == pytest.approx(110 * (20 + 12) / (10 + 12))
    clock.now += 160
    time_left.begin("export")
    assert time_left.left() == pytest.approx(30 * (180 + 12) / (90 + 12))


def test_what_an_earlier_run_made_is_done_and_tells_no_speed(clock) -> None:
    time_left = TimeLeft(SECONDS)
    time_left.begin("lm_ft")
    assert (time_left.done, time_left.left()) == (10.0, 110.0)
    clock.now += 160
    time_left.begin("export")
    assert time_left.left() == pytest.approx(30 * (160 + 12) / (80 + 12))


def test_a_stage_that_was_not_planned_moves_nothing(clock) -> None:
    time_left = TimeLeft(SECONDS)
    time_left.begin("corpus")
    clock.now += 10
    time_left.begin("embed/r_ft")
    clock.now += 1000
    assert (time_left.done, time_left.left()) == (10.0, 110.0)
    time_left.begin("lm_ft")
    assert (time_left.done, time_left.left()) == (10.0, 110.0)


def test_a_loop_that_knows_its_own_rest_is_believed(clock) -> None:
    time_left = TimeLeft(SECONDS)
    time_left.begin("corpus")
    clock.now += 10
    time_left.begin("lm_ft")
    # The machine has slowed down: half of a minute's work took two.
    clock.now += 120
    time_left.advance("lm_ft", 0.5, seconds_left=120.0)
    speed = (130 + 12) / (40 + 12)
    assert time_left.left() == pytest.approx(120 + (20 + 30) * speed)


def test_what_was_never_measured_leaves_no_time_until_it_is_over(clock) -> None:
    time_left = TimeLeft({**SECONDS, "lm_ft": None})
    assert time_left.left() is None
    time_left.begin("corpus")
    clock.now += 10
    time_left.begin("lm_ft")
    time_left.advance("lm_ft", 0.5)
    clock.now += 5000
    assert time_left.left() is None
    # Its own time says nothing of the speed of others.
    time_left.begin("export")
    assert time_left.left() == 30.0


def test_a_wait_in_which_nothing_is_counted_says_nothing_of_the_speed(clock) -> None:
    time_left = TimeLeft(SECONDS)
    time_left.begin("corpus")
    clock.now += 1000
    assert time_left.left() == 120.0


def test_a_loop_that_was_never_measured_or_runs_again_moves_nothing(clock) -> None:
    time_left = TimeLeft(SECONDS)
    time_left.begin("lm_ft")
    time_left.advance("lm_ft", 0.5)
    time_left.advance("validation", 1.0)
    time_left.advance("lm_ft", 0.1)
    assert time_left.done == 10.0 + 30.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "less than a minute left"),
        (60.1, "about 2 min left"),
        (59 * 60.0, "about 59 min left"),
        (59 * 60.5, "about 1 h 0 min left"),
        (10 * 3600.0, "about 10 h left"),
        (25.2 * 3600, "about 26 h left"),
    ],
)
def test_a_time_left_is_rounded_up_as_coarsely_as_it_is_known(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
