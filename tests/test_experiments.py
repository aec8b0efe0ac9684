"""Every experiment loads, and a golden text shows in a diff what a change does to its settings."""

import json
import pathlib

import pytest

from radit_jax import config
from radit_jax.pipeline import graph
from radit_jax.runtime.storage.fingerprints import canonical

ROOT = pathlib.Path(__file__).parent
EXPERIMENTS = sorted((ROOT.parent / "experiments").glob("*.py"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_settings_are_those_on_record(path: pathlib.Path) -> None:
    """After a wanted change: delete the file under tests/golden, run this twice, and commit what it wrote."""
    settings = json.dumps(canonical(config.load_experiment(str(path))), indent=1) + "\n"
    golden = ROOT / "golden" / f"{path.stem}.json"
    if not golden.exists():
        golden.write_text(settings)
        pytest.fail(f"{golden} was missing and has been written; read it, commit it and run again")
    assert settings == golden.read_text()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_its_settings_fit_together_and_its_name_is_its_files(path: pathlib.Path) -> None:
    experiment = config.load_experiment(str(path))
    config.check_experiment(experiment)
    assert experiment.name == path.stem


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_stage_stands_behind_those_it_reads(path: pathlib.Path) -> None:
    seen: set[str] = set()
    for stage in graph.stages(config.load_experiment(str(path))).values():
        assert set(stage.inputs.values()) <= seen
        assert stage.kind in graph.KINDS
        seen.add(stage.name)
