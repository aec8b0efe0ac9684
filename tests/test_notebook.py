"""The notebook of the documentation: it runs, and what it shows is what it said when it was run."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "tutorials" / "python.ipynb"
MAX_BYTES = 200_000
# All that the notebook reads of a run, without an evaluation. It tunes a retriever of its own.
SETTINGS = (
    "export.measured=false",
    "r_ft.optimizer.steps=2",
    "r_ft.optimizer.warmup_steps=1",
    "r_ft.validate_every=2",
)
LEARNT = """
assert recall_after[0] > recall_before[0] + 0.05
assert closed_book < before < right_after
"""


def code_cells():
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebook_was_run_from_its_top_and_nothing_went_wrong():
    cells = code_cells()
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert kinds == {"stream", "display_data"}


def test_the_notebook_stays_small():
    assert NOTEBOOK.stat().st_size < MAX_BYTES


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter
def test_the_notebook_runs_and_the_retriever_learns(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    # 1) A run of tiny, on one device as a reader has it.
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    options = [f"--set={setting}" for setting in SETTINGS]
    train = [sys.executable, "-m", "radit_jax.train", "--stage=export", f"--workdir={tmp_path}", *options]
    subprocess.run(train, check=True, cwd=ROOT)

    # 2) The notebook, with an end that only a test needs.
    monkeypatch.setenv("RADIT_RUN", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(LEARNT))
    nbclient.NotebookClient(notebook, timeout=1800, kernel_name="python3").execute()
