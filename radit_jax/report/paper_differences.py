"""Which settings of a workdir's last run are not the paper's."""

from radit_jax.config.overrides import as_text
from radit_jax.config.paper import PAPER
from radit_jax.pipeline.run_log import read_runs
from radit_jax.report.run_records import SettingDifference
from radit_jax.runtime.storage.workdir import Workdir


def paper_differences(workdir: Workdir) -> list[SettingDifference]:
    """The settings of the last run that are not the paper's; none where no run has left a record.

    A setting that the experiment's kind of data does not have is left out.
    """
    runs = read_runs(workdir.path)
    settings = runs[-1]["settings"] if runs else {}
    differences = []
    for path, paper in PAPER.items():
        # Texts, because the record has lists for tuples.
        ours = as_text(settings.get(path))
        papers = as_text(paper.value)
        if path in settings and ours != papers:
            differences.append(SettingDifference(path, ours or "''", papers))
    return differences
