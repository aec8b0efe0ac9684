"""tiny with two departures from the paper: labels from the tuned language model, and refreshed candidates.

Fresh candidates keep teaching, so R-ft goes on for longer.

python -m radit_jax.train --stage=all --experiment=experiments/tiny_refreshed.py
"""

from dataclasses import replace

import tiny

from radit_jax.config import Experiment


def experiment() -> Experiment:
    base = tiny.experiment()
    return replace(
        base,
        name="tiny_refreshed",
        score=replace(base.score, language_model="lm_ft"),
        r_ft=replace(base.r_ft, optimizer=replace(base.r_ft.optimizer, steps=500), refresh_every=100),
    )
