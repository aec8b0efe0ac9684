"""Every experiment loads, and a golden text shows in a diff what a change does to its settings."""

import json
import pathlib

import pytest

from radit_jax import config
from radit_jax.pipeline import graph
from radit_jax.pipeline.runner import Run
from radit_jax.runtime.storage.fingerprints import canonical
from radit_jax.runtime.storage.workdir import Workdir

ROOT = pathlib.Path(__file__).parent
EXPERIMENTS = sorted((ROOT.parent / "experiments").glob("*.py"))
FINGERPRINTS = ROOT / "golden" / "fingerprints.json"  # as release 0.1 made them
FRACTIONS = [
    "lm_ft.gold_context_fraction=0.25",
    "lm_ft.corpus_text_fraction=0.2",
    "r_ft.corpus_text_fraction=0.3",
]
VARIANTS = {
    "tiny, both encoders": ("tiny", ["r_ft.train_chunk_encoder=true"]),
    "tiny, selected on KILT": ("tiny", ["lm_ft.select=kilt_dev", "lm_ft.select_folder=kilt"]),
    "tiny, temperature 0.9": ("tiny", ["retrieve.temperature=0.9"]),
    "tiny, other fractions": ("tiny", FRACTIONS),
    "radit_7b, other fractions": ("radit_7b", FRACTIONS),
}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_settings_are_those_on_record(path: pathlib.Path) -> None:
    """After a wanted change: delete the file under tests/golden, run this twice, and commit what it wrote."""
    settings = json.dumps(canonical(config.load_experiment(str(path))), indent=1) + "\n"
    golden = ROOT / "golden" / f"{path.stem}.json"
    if not golden.exists():
        golden.write_text(settings)
        pytest.fail(f"{golden} was missing and has been written; read it, commit it and run again")
    assert settings == golden.read_text()


def test_the_fingerprints_are_those_on_record(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another fingerprint makes that stage run again in every workdir: change one with a version only."""
    monkeypatch.setattr(Run, "_identity", lambda self, stage, source: "absent")
    experiments = {path.stem: config.load_experiment(str(path)) for path in EXPERIMENTS}
    for name, (stem, assignments) in VARIANTS.items():
        experiments[name] = config.override_settings(experiments[stem], assignments)
    fingerprints = {}
    for name, experiment in experiments.items():
        folders = Run(experiment, Workdir(tmp_path)).folders
        fingerprints[name] = {stage: folder.fingerprint for stage, folder in folders.items()}
    assert fingerprints == json.loads(FINGERPRINTS.read_text())


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
