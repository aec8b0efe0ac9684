"""The report's file: read a workdir, write its page."""

import sys
from collections.abc import Sequence

from etils import epath

from radit_jax.command_line import spelled
from radit_jax.errors import one_line
from radit_jax.runtime.storage.files import write_whole

REPORT = "report.html"  # at the workdir's top
COMPARISON = "comparison.html"


def write_report(
    workdir: epath.PathLike,
    scratch: epath.PathLike | None = None,
    output: epath.PathLike | None = None,
) -> epath.Path:
    """Write the page of the run in `workdir` to `output`, by default its report.html; returns where it is."""
    # Templates and their engine are for the page alone.
    from radit_jax.report.page import MAX_BYTES, render_page
    from radit_jax.report.run_data import read_run

    # Text takes less than half of its bytes in the page, which then keeps to its size by itself.
    run = read_run(workdir, scratch, max_bytes=2 * MAX_BYTES)
    path = epath.Path(output) if output else epath.Path(workdir) / REPORT
    write_whole(path, render_page(run))
    return path


def write_comparison(
    workdirs: Sequence[epath.PathLike],
    scratch: epath.PathLike | None = None,
    output: epath.PathLike | None = None,
) -> epath.Path:
    """Write the page that compares runs to `output`, by default comparison.html here."""
    from radit_jax.report.comparison import compare_runs
    from radit_jax.report.comparison_page import render_comparison
    from radit_jax.report.run_data import read_run

    # Every question counts: nothing is sampled.
    runs = [read_run(workdir, scratch, max_bytes=sys.maxsize) for workdir in workdirs]
    path = epath.Path(output or COMPARISON)
    write_whole(path, render_comparison(compare_runs(runs)))
    return path


def try_report(workdir: epath.PathLike, scratch: epath.PathLike | None = None) -> None:
    """Write the page at the end of a run, and say where it is.

    The run is done, and what it made is kept: whatever goes wrong here is a line that says how to repeat it.
    """
    try:
        print(f"report: {write_report(workdir, scratch)}")
    except Exception as error:
        reason = one_line(error) or type(error).__name__ + ": " + " ".join(str(error).split())
        again = spelled(f"report --workdir={workdir}")
        print(f"warning: no report was written ({reason}). Repeat it with {again}")
