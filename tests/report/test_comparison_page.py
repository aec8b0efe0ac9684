"""Runs side by side as a page."""

import dataclasses
import re

import pytest
from report_runs import HOSTILE, QUESTIONS, RUN, answer
from small_run import small_run

from radit_jax.report.__main__ import main
from radit_jax.report.comparison import compare_runs
from radit_jax.report.comparison_page import render_comparison


def run_with(score, workdir, task=""):
    """The run elsewhere, with RA-DIT right or wrong on all questions."""
    questions = []
    for question in QUESTIONS:
        names = ("closed_book", "base", "lm_ft", "r_ft")
        systems = {name: answer("x", 0.0) for name in names} | {"radit": answer("x", score)}
        questions.append(dataclasses.replace(question, systems=systems, task=task))
    return dataclasses.replace(RUN, workdir=workdir, questions=questions)


def words_of(page):
    return " ".join(re.sub("<[^>]*>", " ", page.partition("</style>")[2]).split())


def test_the_gain_of_the_last_run_over_the_first_is_the_title():
    page = render_comparison(compare_runs([run_with(0.0, "runs/a"), run_with(1.0, "runs/b")]))
    title = re.search("<h1>(.*?)</h1>", page)[1]
    assert title.startswith("b over a: 100 ") and title.endswith(
        "points of right answers on 5 common questions"
    )


def test_each_figure_stands_next_to_its_gain():
    words = words_of(render_comparison(compare_runs([run_with(0.0, "runs/a"), run_with(1.0, "runs/b")])))
    assert "a b gain" in words
    row = re.search(r"RA-DIT: LM-ft, R-ft (0\.0 .*?) base retriever", words)[1]
    assert row.startswith("0.0 ") and " 100.0 " in row and "+100.0" in row


def test_tasks_have_a_table_each_and_text_is_no_tag():
    runs = [run_with(0.0, "runs/a", task=HOSTILE), run_with(1.0, f"runs/{HOSTILE[-4:]}", task=HOSTILE)]
    page = render_comparison(compare_runs(runs))
    assert HOSTILE not in page and "<script" not in page


def test_three_runs_are_columns():
    runs = [run_with(0.0, f"runs/{name}") for name in "abc"]
    assert "a b gain c gain" in words_of(render_comparison(compare_runs(runs)))


def test_the_command_compares_folders(tmp_path, capsys):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        small_run(folder, questions=True)
    output = tmp_path / "page.html"
    assert main(["--compare", *map(str, folders), f"--output={output}"]) == 0
    assert capsys.readouterr().out == f"comparison: {output}\n" and "3 common questions" in output.read_text()


def test_a_run_alone_is_no_comparison(tmp_path, capsys):
    small_run(tmp_path, questions=True)
    assert main(["--compare", str(tmp_path)]) == 1
    assert "--compare: expected two workdirs or more" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([f"--workdir={tmp_path}", f"--compare={tmp_path}"])
