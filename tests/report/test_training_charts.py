"""What the page shows of training: which curves, where it was resumed, and where the time went."""

import dataclasses

import pytest
from report_runs import RUN, SIGNAL

from radit_jax.report import training
from radit_jax.report.run_records import Series


def test_each_stage_has_its_curves_with_the_learning_rate_of_its_schedule():
    [stage] = training.training_stages(RUN)
    titles = [drawing.title for drawing in stage.charts]
    assert titles == ["Loss, nats", "Learning rate", "MFU", "Fill of the rows"]
    assert stage.title == "LM-ft" and stage.words.startswith("In 2 calls.")


def test_the_learning_rate_is_the_schedules_at_the_steps_before_each_update():
    # Two steps of warm-up to 0.5, then from there in a line to 0 at step 4.
    [series] = training._learning_rate("lm_ft", RUN.series, training._optimizer(RUN.stages[0].settings))
    assert series.values["learning_rate"] == pytest.approx([0.25, 0.5, 0.5, 0.25])
    logged = [Series("lm_ft", "lm_ft", [1], [0.0], {"learning_rate": [0.5]})]
    assert training._learning_rate("lm_ft", logged, training._optimizer(RUN.stages[0].settings)) == []


def test_time_is_split_into_steps_waiting_and_the_rest():
    table = training.time_table(RUN)
    assert table["head"] == ["Stage", "Calls", "all", "steps", "data wait", "compile"]
    assert table["rows"] == [["LM-ft", "2", "10.0", "6.0", "1.0", "3.0"]]


def test_several_rounds_of_labels_are_columns_and_the_first_and_last_are_said():
    rounds = [{**SIGNAL, "effective_chunks": number + 1.0} for number in range(10)]
    run = dataclasses.replace(RUN, signal=rounds)
    table = training.signal_table(run)
    assert len(table["head"]) == 9 and table["head"][1] == "Round 1" and table["head"][-1] == "Round 10"
    effective = next(row for row in table["rows"] if row[0].startswith("Effective"))
    assert effective[1] == "1.00" and effective[-1] == "10.00"
    first, last = training.signal_sentences(run)
    assert first.startswith("Round 1 of 10. ") and last.startswith("Round 10. ")


def test_labels_are_drawn_by_the_language_models_rank():
    curves = training._by_label_rank(RUN.questions, "base")
    # In every question p_LSR is 0.8 and 0.2, where p_R is 0.4 and 0.6.
    assert [list(curve.y) for curve in curves] == [pytest.approx([0.8, 0.2]), pytest.approx([0.4, 0.6])]


def test_a_running_mean_is_over_fewer_values_at_both_ends():
    assert training.running_mean([1, 2, 3, 6]) == [1.5, 2, pytest.approx(11 / 3), 4.5]
