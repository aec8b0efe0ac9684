"""Runs on their common questions: means, paired gains and what differs, by hand."""

import sys
from dataclasses import replace

import pytest
from small_run import small_run

from radit_jax.report.comparison import ABSENT, compare_runs
from radit_jax.report.run_data import read_run
from radit_jax.text.results_table import RETRIEVER_TITLES, SYSTEM_TITLES


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("compared") / "a"
    small_run(path, questions=True)
    return read_run(path, max_bytes=sys.maxsize)


def answered(run, workdir, *scores):
    """The same run elsewhere, with other scores of RA-DIT."""
    questions = []
    for question, score in zip(run.questions, scores, strict=True):
        radit = replace(question.systems["radit"], score=score)
        questions.append(replace(question, systems={**question.systems, "radit": radit}))
    return replace(run, workdir=workdir, questions=questions)


def row(comparison, name, metric):
    [found] = [one for one in comparison.rows if (one.name, one.metric) == (name, metric)]
    return found


RADIT, R_FT = SYSTEM_TITLES["radit"], RETRIEVER_TITLES["r_ft"]


def test_runs_are_compared_question_by_question(run):
    # RA-DIT was right, wrong and right.
    comparison = compare_runs([run, answered(run, "runs/b", 1.0, 1.0, 1.0)])
    radit = row(comparison, RADIT, "right answers")
    assert radit.num_questions == comparison.num_common == 3
    assert [figure["value"] for figure in radit.figures] == pytest.approx([2 / 3, 1])
    assert [gain["value"] for gain in radit.gains] == pytest.approx([0, 1 / 3])
    assert radit.gains[1]["low"] < 1 / 3 < radit.gains[1]["high"]
    assert comparison.names == ["a", "b"] and comparison.num_questions == [3, 3]


def test_only_common_questions_count(run):
    others = list(run.questions)
    others[0] = replace(others[0], question="Who built it?")  # the same id of another question
    comparison = compare_runs([run, replace(run, workdir="b", questions=others)])
    radit = row(comparison, RADIT, "right answers")
    assert comparison.num_common == radit.num_questions == 2
    assert [figure["value"] for figure in radit.figures] == [0.5, 0.5]


def test_rankings_are_compared_where_an_answer_can_be_found(run):
    comparison = compare_runs([run, run])
    # R-ft finds the answer of q0 first and q1's never; q2 is a matter of yes or no.
    recall = row(comparison, R_FT, "answer recall@1")
    assert recall.num_questions == 2 and recall.figures[0]["value"] == 0.5
    # The base retriever finds q1's not at all and q0's not either.
    assert row(comparison, RETRIEVER_TITLES["base"], "MRR@2").figures[0]["value"] == 0.0
    assert row(comparison, R_FT, "MRR@2").figures[0]["value"] == 0.5


def test_what_was_set_otherwise_is_named(run):
    other = {**run.settings, "r_ft.tau": 0.5}
    other.pop("seed")
    comparison = compare_runs([run, replace(run, workdir="b", settings=other)])
    assert comparison.settings == {"r_ft.tau": [1, 0.5], "seed": [0, ABSENT]}


def test_what_was_not_read_is_said(run):
    part = replace(run, workdir="b", questions=run.questions[1:], lacks=["No details."])
    assert compare_runs([run, part]).lacks == ["b: No details.", "b: 2 of 3 questions were read."]


def test_names_are_as_long_as_they_must_be(run):
    one, two = replace(run, workdir="x/tiny/0"), replace(run, workdir="x/wiki/0")
    assert compare_runs([one, two]).names == ["tiny/0", "wiki/0"]
    assert compare_runs([one, one]).names == ["x/tiny/0", "x/tiny/0"]


def test_one_run_and_runs_without_a_common_question_are_errors(run):
    with pytest.raises(ValueError, match="expected two workdirs or more, got one"):
        compare_runs([run])
    with pytest.raises(ValueError, match="expected runs with common questions, got none in a and b"):
        compare_runs([run, replace(run, workdir="b", questions=())])
