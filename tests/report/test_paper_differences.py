"""Settings unlike the paper's, from the record of a workdir's last run."""

import json
import pathlib

from radit_jax import config
from radit_jax.config.descriptions import settings_by_path
from radit_jax.report.paper_differences import paper_differences
from radit_jax.runtime.storage.workdir import Workdir

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"


def leave_record(workdir: pathlib.Path, *experiments: str) -> Workdir:
    """A workdir with a line in runs.jsonl for each of the experiments."""
    lines = []
    for name in experiments:
        settings = settings_by_path(config.load_experiment(str(EXPERIMENTS / f"{name}.py")))
        record = {"experiment": name, "settings": settings, "started": "", "ended": "", "outcome": "done"}
        lines.append(json.dumps(record) + "\n")
    (workdir / "runs.jsonl").write_text("".join(lines))
    return Workdir(workdir)


def test_the_last_runs_settings_are_compared_with_the_papers(tmp_path: pathlib.Path) -> None:
    differences = paper_differences(leave_record(tmp_path, "radit_65b", "tiny"))
    by_name = {one.name: (one.value, one.paper) for one in differences}
    assert by_name["r_ft.tau"] == ("0.02", "0.01")
    assert by_name["base.lm.checkpoint"] == ("''", "huggyllama/llama-65b")
    assert "r_ft.direction" not in by_name and "data.lm_ft_cap" not in by_name


def test_the_papers_own_run_has_none_and_so_has_a_workdir_without_a_record(tmp_path: pathlib.Path) -> None:
    assert paper_differences(Workdir(tmp_path)) == []
    assert paper_differences(leave_record(tmp_path, "tiny", "radit_65b")) == []
