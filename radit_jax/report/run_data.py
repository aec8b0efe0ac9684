"""From a workdir, on a disk or in a bucket, to the plain values that a report shows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from etils import epath

from radit_jax.command_line import run_stage, spelled
from radit_jax.config.renamed_settings import with_new_names
from radit_jax.config.settings import OWN_LABELLERS
from radit_jax.pipeline.run_log import read_runs
from radit_jax.report.answer_figures import answer_lengths, calibrations, recall_curves
from radit_jax.report.asked_questions import AskedQuestion, asked_questions, drawn_questions
from radit_jax.report.metric_series import metric_lines, series_of, time_use
from radit_jax.report.paper_differences import paper_differences
from radit_jax.report.question_records import (
    LsrSettings,
    gold_chunks,
    open_passages,
    own_questions,
    passage_bytes,
    question_records,
    rankings,
    retrieved_rows,
    shown_passages,
)
from radit_jax.report.run_records import RunData, Series, TimeUse
from radit_jax.report.run_stages import (
    Folders,
    counts_of,
    manifest_settings,
    origins,
    run_folders,
    stage_record,
)
from radit_jax.runtime.storage.entries import bytes_or_none
from radit_jax.runtime.storage.files import parse_json
from radit_jax.runtime.storage.workdir import Workdir

MAX_BYTES = 80_000_000  # of questions and passages, which a page of 30 MB holds compressed; more are sampled
_NO_DETAILS = (
    "An earlier version evaluated this run and kept no details: the chunks before R-ft, p_LSR and the "
    "candidates under each chunk are not known. Delete its folder in evaluate/ and run {}."
)
_OTHER_LABELLER = "p_LSR is by the untuned language model here; another one gave R-ft its labels."
_NO_PASSAGES = "The corpus is too large to fetch from its bucket: R-ft's chunks alone are shown."


def read_run(
    path: epath.PathLike,
    scratch: epath.PathLike | None = None,
    max_bytes: int = MAX_BYTES,
) -> RunData:
    """What the workdir at `path` says of its last run; ValueError where no stage has finished in it.

    `scratch` is where this machine keeps copies of a bucket's files. Where questions and passages are more
    than `max_bytes`, some of the questions are drawn. `lacks` names what is not there.
    """
    workdir = Workdir(path, scratch)
    folders = run_folders(workdir)
    if not folders:
        raise ValueError(
            f"{path}: expected a workdir with a finished stage, got none. Name one with --workdir, or run "
            f"`{spelled('run EXPERIMENT')}`."
        )
    stages = [stage_record(name, folder) for name, folder in folders.items()]
    series, times = _metrics(folders)
    runs = read_runs(workdir.path)
    settings = runs[-1]["settings"] if runs else manifest_settings(stages)
    run = RunData(
        workdir=str(path),
        experiment=_experiment(workdir),
        results={},
        stages=stages,
        series=series,
        time_use=times,
        signal=_signal(folders),
        counts=counts_of(stages),
        licences=origins(folders),
        settings=settings,
        runs=runs,
        differences=paper_differences(workdir),
        lacks=[f"Nothing was evaluated yet: run {run_stage('evaluate')}."],
    )
    if "evaluate" not in folders:
        return run
    return _with_questions(run, folders, workdir.in_bucket, max_bytes)


def _with_questions(
    run: RunData,
    folders: Folders,
    in_bucket: bool,
    max_bytes: int,
) -> RunData:
    """The run with its results and its questions."""
    # 1) All questions, without passages: figures that need none are over all of them.
    evaluated, corpus = folders["evaluate"], folders.get("corpus")
    results = evaluated.read_json("results.json")
    split = evaluated.manifest["settings"]["evaluate"]["split"]
    own = own_questions(corpus, split)
    asked = asked_questions(evaluated, results, own)
    run = replace(
        run,
        results=results,
        num_questions=len(asked),
        calibration=calibrations(asked),
        lengths=answer_lengths(asked),
        lacks=[],
    )

    # 2) Those that the page has room for, with what was retrieved for them.
    passages = open_passages(corpus, in_bucket)
    shown = drawn_questions(asked, max_bytes, passage_bytes(passages, asked))
    chunk_at = passages.by_row(retrieved_rows(shown)) if passages is not None else {}
    lsr = _lsr_settings(folders)
    ranked = rankings(shown, chunk_at, lsr)
    questions = question_records(shown, ranked, gold_chunks(own))
    return replace(
        run,
        questions=questions,
        passages=shown_passages(ranked),
        recall=recall_curves(questions),
        lacks=_lacks(shown, chunk_at, folders),
    )


def _lsr_settings(folders: Folders) -> LsrSettings | None:
    """Eq. 4 under R-ft's settings; None where R-ft has not finished."""
    if "r_ft" not in folders:
        return None
    settings = with_new_names(folders["r_ft"].manifest["settings"])
    lm = "lm_ft_lm" if _labeller(folders) == "lm_ft" else "base_lm"
    return LsrSettings(lm, settings["r_ft"]["lm_score"], float(settings["r_ft"]["tau"]))


def _labeller(folders: Folders) -> str:
    """Whose likelihoods R-ft learnt from, as `score.language_model` says it."""
    if "score" not in folders:
        return "base"
    return folders["score"].manifest["settings"].get("score", {}).get("language_model", "a file")


def _lacks(
    asked: Sequence[AskedQuestion],
    chunk_at: Mapping[int, Any],
    folders: Folders,
) -> list[str]:
    """What cannot be shown of the questions."""
    lacks = []
    if any(not question.detail for question in asked):
        lacks.append(_NO_DETAILS.format(run_stage("evaluate")))
    elif any(question.detail["rows"] for question in asked) and not chunk_at:
        lacks.append(_NO_PASSAGES)
    if _labeller(folders) not in OWN_LABELLERS:
        lacks.append(_OTHER_LABELLER)
    return lacks


def _experiment(workdir: Workdir) -> str:
    """The experiment's name, which the workdir was claimed for."""
    file = workdir.path / "workdir.json"
    claim = parse_json(bytes_or_none(file) or b"{}", str(file), "Delete it.")
    return claim.get("experiment", workdir.path.name)


def _metrics(folders: Folders) -> tuple[list[Series], list[TimeUse]]:
    """The series and the times of all stages that train."""
    series, times = [], []
    for name, folder in folders.items():
        lines = metric_lines(folder)
        series += series_of(name, lines)
        use = time_use(name, lines)
        if use is not None:
            times.append(use)
    return series, times


def _signal(folders: Folders) -> list[dict[str, Any]]:
    """R-ft's diagnostics of the labels, a record for each round of candidates."""
    if "r_ft" not in folders:
        return []
    return folders["r_ft"].manifest.get("signal", [])
