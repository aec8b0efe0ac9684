"""What a report reads of a workdir: its stages, figures and metrics."""

import json
import os

import pytest
from small_run import FINGERPRINTS, finish, small_run, stage_folder, write_metrics

from radit_jax.report.run_data import read_run
from radit_jax.runtime.storage.workdir import Workdir


def by_name(run):
    return {stage.name: stage for stage in run.stages}


def test_a_run_has_its_name_results_stages_and_counts(tmp_path):
    small_run(tmp_path)
    run = read_run(tmp_path)
    assert run.experiment == "small" and run.results["num_questions"] == 3
    assert list(by_name(run)) == list(FINGERPRINTS)
    r_ft = by_name(run)["r_ft"]
    assert r_ft.fingerprint == FINGERPRINTS["r_ft"] and r_ft.facts["best_step"] == 2
    assert (r_ft.seconds, r_ft.device, r_ft.num_bytes) == (2.5, "1 × cpu", 0)
    assert r_ft.settings["r_ft"]["tau"] == 1 and {"jax", "numpy"} <= set(r_ft.versions)
    assert run.signal == [{"effective_chunks": 1.5, "flat_targets": 0.25}]
    assert run.counts == {"lm_ft truncated_chunks": 3}
    assert [(origin.role, origin.name, origin.licence) for origin in run.licences] == [
        ("language model", "lab/small", "mit"),
        ("query encoder", "trained from scratch", "none"),
        ("chunk encoder", "trained from scratch", "none"),
        ("data", "mine", ""),
    ]


def test_the_stages_are_those_that_evaluation_read_whatever_was_made_since(tmp_path):
    workdir = small_run(tmp_path)
    finish(workdir, "r_ft", "f" * 12)
    finish(workdir, "retrieve/lm_ft", "e" * 12)
    stages = by_name(read_run(tmp_path))
    assert stages["r_ft"].fingerprint == FINGERPRINTS["r_ft"]
    assert stages["retrieve/lm_ft"].fingerprint == FINGERPRINTS["retrieve/lm_ft"]


def test_the_evaluation_is_the_one_whose_results_are_published(tmp_path):
    workdir = small_run(tmp_path)
    later = stage_folder(workdir, "evaluate", "d" * 12)
    later.write_json("results.json", {"fingerprint": "d" * 12, "num_questions": 9})
    finish(workdir, "evaluate", "d" * 12)
    assert read_run(tmp_path).results["num_questions"] == 3
    # Without it, the last one counts: here a person's file lies in its place.
    os.utime(later.path / "manifest.json", (2**31, 2**31))
    for text in ("[]", "mine", ""):
        (tmp_path / "results.json").write_text(text)
        assert read_run(tmp_path).results["num_questions"] == 9


def test_of_an_older_version_the_last_stage_of_each_name_counts(tmp_path):
    workdir = small_run(tmp_path, inputs=False)
    finish(workdir, "r_ft", "f" * 12, inputs=False)
    for number, name in enumerate((FINGERPRINTS["r_ft"], "f" * 12)):
        os.utime(tmp_path / "r_ft" / name / "manifest.json", (number, number))
    stages = by_name(read_run(tmp_path))
    assert list(stages) == list(FINGERPRINTS)
    assert stages["r_ft"].fingerprint == "f" * 12 and stages["r_ft"].seconds is None


def test_a_run_that_is_not_evaluated_yet_says_so(tmp_path):
    workdir = Workdir(tmp_path / "begun")
    finish(workdir, "lm_ft")
    run = read_run(workdir.path)
    assert run.results == {} and run.experiment == "begun" and run.licences == []
    assert run.lacks == ["Nothing was evaluated yet: run `radit run EXPERIMENT --stage=evaluate`."]


def test_a_folder_without_a_finished_stage_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="expected a workdir with a finished stage, got none"):
        read_run(tmp_path)


def test_metrics_become_series_and_times_over_all_calls(tmp_path):
    workdir = small_run(tmp_path)
    folder = stage_folder(workdir, "lm_ft")
    call = {"name": "lm_ft/time", "time": 1.0, "start_up_seconds": 2.0, "compile_seconds": 1.0}
    lines = [
        {"step": 0, "name": "lm_ft/validation", "time": 0.5, "dev_log_prob": -4.0},
        {"step": 1, "name": "lm_ft", "time": 1.0, "loss": 3.0},
        {"step": 1, **call, "all_seconds": 10.0},
        {"step": 2, "name": "lm_ft", "time": 9.0, "loss": 2.0, "fill": 0.5},
        {"step": 2, **call, "all_seconds": 20.0},
    ]
    write_metrics(folder, lines, torn='{"step": 3, "na')
    run = read_run(tmp_path)
    validation, steps = run.series
    assert (validation.name, validation.values) == ("lm_ft/validation", {"dev_log_prob": [-4.0]})
    assert (steps.stage, steps.steps, steps.times) == ("lm_ft", [1, 2], [1.0, 9.0])
    assert steps.values == {"loss": [3.0, 2.0], "fill": [None, 0.5]}
    [use] = run.time_use
    # 30 seconds in all, of which 4 to start and 2 to compile.
    assert use.calls == 2 and use.seconds == {"all": 30, "start_up": 4, "compile": 2, "steps": 24}


def test_the_settings_of_an_older_run_are_those_in_its_manifests(tmp_path):
    small_run(tmp_path)
    run = read_run(tmp_path)
    assert run.settings["lm_ft.optimizer.steps"] == 4 and run.settings["retrieve.num_chunks"] == 2
    assert run.settings["base.lm.checkpoint"] == "hub:lab/small" and run.settings["seed"] == 0
    assert run.runs == [] and run.differences == []


def test_the_last_runs_record_says_the_settings(tmp_path):
    small_run(tmp_path)
    record = {"experiment": "small", "started": "", "ended": "", "outcome": "done"}
    lines = [{**record, "settings": {"r_ft.tau": tau}} for tau in (0.5, 0.01)]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(tmp_path)
    assert run.settings == {"r_ft.tau": 0.01} and len(run.runs) == 2
    assert run.differences == []  # it is the paper's
