"""From a workdir, on a disk or in a bucket, to the plain values that a report shows."""

from typing import Any

from etils import epath

from radit_jax.report.metric_series import metric_lines, series_of, time_use
from radit_jax.report.run_records import RunData, Series, TimeUse
from radit_jax.report.run_stages import Folders, counts_of, origins, run_folders, stage_record
from radit_jax.runtime.storage.entries import bytes_or_none
from radit_jax.runtime.storage.files import parse_json
from radit_jax.runtime.storage.workdir import Workdir


def read_run(path: epath.PathLike, scratch: epath.PathLike | None = None) -> RunData:
    """What the workdir at `path` says of its last run; ValueError where no stage has finished in it.

    `scratch` is where this machine keeps copies of a bucket's files. `lacks` names what is not there.
    """
    workdir = Workdir(path, scratch)
    folders = run_folders(workdir)
    if not folders:
        raise ValueError(
            f"{path}: expected a workdir with a finished stage, got none. Name one with --workdir, or run "
            "python -m radit_jax.train."
        )
    stages = [stage_record(name, folder) for name, folder in folders.items()]
    results = folders["evaluate"].read_json("results.json") if "evaluate" in folders else {}
    series, times = _metrics(folders)
    return RunData(
        workdir=str(path),
        experiment=_experiment(workdir),
        results=results,
        stages=stages,
        series=series,
        time_use=times,
        signal=_signal(folders),
        counts=counts_of(stages),
        licences=origins(stages),
        num_questions=results.get("num_questions", 0),
        lacks=[] if results else ["Nothing was evaluated yet: run --stage=evaluate."],
    )


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
