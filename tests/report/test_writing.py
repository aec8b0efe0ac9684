"""The report's command, and what the end of a run does with an error in it."""

import pytest
from small_run import small_run

from radit_jax.report import page
from radit_jax.report.__main__ import main
from radit_jax.report.writing import REPORT, try_report, write_report


def test_the_command_writes_the_page_into_the_workdir_or_where_it_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(page, "render_page", lambda run: f"<p>{run.experiment}</p>")
    small_run(tmp_path / "run")
    assert main([f"--workdir={tmp_path / 'run'}"]) == 0
    written = tmp_path / "run" / REPORT
    assert written.read_text() == "<p>small</p>" and capsys.readouterr().out == f"report: {written}\n"
    elsewhere = tmp_path / "elsewhere" / "page.html"
    assert main([f"--workdir={tmp_path / 'run'}", f"--output={elsewhere}"]) == 0
    assert elsewhere.read_text() == "<p>small</p>"


def test_a_folder_without_a_run_is_a_line(tmp_path, capsys):
    assert main([f"--workdir={tmp_path}"]) == 1
    assert "expected a workdir with a finished stage, got none" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [ValueError("bad figures"), KeyError("systems"), OSError("disk"), TypeError("two\nlines")]
)
def test_an_error_in_the_report_is_a_line_that_says_how_to_repeat_it(tmp_path, capsys, monkeypatch, error):
    small_run(tmp_path)

    def fail(run):
        raise error

    monkeypatch.setattr(page, "render_page", fail)
    try_report(tmp_path)
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: no report was written (") and " ".join(str(error).split()) in line
    assert line.endswith(f"Repeat it with radit report --workdir={tmp_path}")


def test_a_run_in_small_is_a_page(tmp_path):
    small_run(tmp_path)
    assert "<h1>" in write_report(tmp_path).read_text()
