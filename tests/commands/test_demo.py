"""`radit demo`: the tiny experiment under one bar."""

import io
import pathlib

import pytest

from radit_jax import cli, config, train
from radit_jax.commands import demo
from radit_jax.pipeline.graph import stages
from radit_jax.runtime.monitoring.progress import Progress, begin_stage, end_stages, show_note, show_on


def test_the_bar_has_a_share_for_every_stage_of_tiny() -> None:
    assert list(demo.TINY_SECONDS) == list(stages(config.load_experiment(str(train.TINY))))


TWO_STAGES = {"corpus": {"corpus": 120}, "lm_ft": {"lm_ft": 240, "again": 360}}


class Bar:
    """Stands in for rich's bar; remembers what it was told."""

    def __init__(self):
        self.shown = []

    def add_task(self, description, total, left):
        assert (total, left) == (120 + 240 + 360, "")
        return 7

    def update(self, task, completed, description, left):
        assert task == 7
        self.shown.append((completed, description, left))

    def stop(self):
        self.shown.append("stopped")


def test_the_bar_moves_by_the_share_of_each_stage(monkeypatch: pytest.MonkeyPatch, clock) -> None:
    monkeypatch.setattr(
        demo, "TINY_SECONDS", {"corpus": {"corpus": 120}, "lm_ft": {"lm_ft": 240, "again": 360}}
    )
    bar = Bar()
    with show_on(demo.WholeRun(bar)):
        begin_stage("corpus")
        clock.now += 120
        begin_stage("lm_ft")
        show_note("compiling step …")
        for name, seconds in (("lm_ft", 180), ("not in the table", 0), ("again", 330)):
            loop = Progress(4, name, "steps", stops=False)
            clock.now += seconds
            loop.advance(3, loss=1.25)
        end_stages()
    assert bar.shown == [
        (0, "stage 1/2 corpus", "about 12 min left"),
        (120, "stage 2/2 lm_ft", "about 10 min left"),
        (120, "stage 2/2 lm_ft  compiling step …", "about 10 min left"),
        (120 + 240 * 3 / 4, "stage 2/2 lm_ft  loss 1.25", "about 7 min left"),
        (120 + 240 * 3 / 4, "stage 2/2 lm_ft  loss 1.25", "about 7 min left"),  # where it was
        (120 + 240 + 360 * 3 / 4, "stage 2/2 lm_ft  loss 1.25", "about 2 min left"),
        (120 + 240 + 360, "demo", ""),
        "stopped",
    ]


def test_a_stage_that_the_table_lacks_has_its_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        demo, "TINY_SECONDS", {"corpus": {"corpus": 120}, "lm_ft": {"lm_ft": 240, "again": 360}}
    )
    bar = Bar()
    with show_on(demo.WholeRun(bar)):
        begin_stage("embed/r_ft")
    assert bar.shown == [(0, "stage embed/r_ft", "about 12 min left")]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_demo_runs_the_stages_of_tiny_with_a_bar_on_a_terminal(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(train, "start", made.append)
    out, err = Terminal(), Terminal()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    assert cli.main(["demo", f"--workdir={tmp_path}", "--set=seed=3"]) == 0
    (options,) = made
    assert config.load_experiment(options.experiment).name == "tiny"
    assert (options.stage, options.set, options.workdir) == ("all", ["seed=3"], str(tmp_path))
    assert "demo" in err.getvalue() and "0:00:00" in err.getvalue()


def test_a_demo_without_a_terminal_has_no_bar(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "start", lambda options: print("── corpus"))
    assert cli.main(["demo", f"--workdir={tmp_path}"]) == 0
    assert capsys.readouterr() == ("── corpus\n", "")
