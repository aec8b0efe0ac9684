"""What the stages of a run took before, in runs that can be compared with it."""

from typing import Any

import pytest

from radit_jax.pipeline.past_times import past_seconds

SETTINGS = {"lm_ft.optimizer.steps": 200, "lm_ft.batch_size": 24, "r_ft.tau": 0.02, "seed": 0}
MACHINE = {"host": "a", "device": "cpu", "devices": 1, "processes": 1, "cpus": 2}


def run(seconds: Any = None, machine: Any = (), **settings: Any) -> dict[str, Any]:
    """A line of runs.jsonl; settings' dots are double underscores."""
    changed = {path.replace("__", "."): value for path, value in settings.items()}
    return {
        "experiment": "mine",
        "stages": ["corpus", "lm_ft"],
        "settings": {**SETTINGS, **changed},
        "hardware": {**MACHINE, **dict(machine)},
        "seconds": seconds or {},
    }


def test_the_latest_run_that_made_a_stage_tells_its_time() -> None:
    earlier = [
        run({"corpus": {"corpus": 9.0}, "lm_ft": {"lm_ft": 100.0, "kilt": 20.0}}),
        run({"corpus": {"corpus": 7.0}, "embed/retriever": {"embed": 5.0}}),
    ]
    assert past_seconds([*earlier, run()]) == {
        "corpus": {"corpus": 7.0},
        "lm_ft": {"lm_ft": 100.0, "kilt": 20.0},
    }


def test_without_an_earlier_run_nothing_is_known() -> None:
    assert past_seconds([run()]) == {"corpus": None, "lm_ft": None}


def test_the_first_run_of_the_tiny_experiment_is_told_the_times_in_the_table() -> None:
    first = run() | {"experiment": "tiny"}
    assert past_seconds([first]) == {"corpus": {"corpus": 1}, "lm_ft": {"lm_ft": 128}}
    earlier = first | {"seconds": {"lm_ft": {"lm_ft": 30.0}}}
    assert past_seconds([earlier, first])["lm_ft"] == {"lm_ft": 30.0}


def test_other_steps_take_their_share_and_other_labels_the_same_time() -> None:
    earlier = run({"lm_ft": {"lm_ft": 100.0}}, r_ft__tau=0.5, seed=3, lm_ft__optimizer__peak_lr=1)
    present = run(lm_ft__optimizer__steps=50)
    assert past_seconds([earlier, present])["lm_ft"] == {"lm_ft": 25.0}


@pytest.mark.parametrize(
    "change",
    [{"lm_ft__batch_size": 48}, {"machine": {"device": "TPU v5 lite"}}, {"machine": {"cpus": 64}}],
)
def test_other_work_or_another_machine_tells_nothing(change: dict[str, Any]) -> None:
    earlier = run({"lm_ft": {"lm_ft": 100.0}}, **change)
    assert past_seconds([earlier, run()])["lm_ft"] is None


def test_a_run_of_an_older_version_has_no_times() -> None:
    earlier = run()
    del earlier["seconds"], earlier["hardware"]
    assert past_seconds([earlier, run()])["lm_ft"] is None
