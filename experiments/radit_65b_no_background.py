"""radit_65b with instruction tuning without retrieved chunks.

    python -m radit_jax.train --stage=all --experiment=experiments/radit_65b_no_background.py

LM-ft has its examples' own gold contexts as Background, and no retrieved one (ours: whether the paper's
instruction-tuned baseline keeps the gold contexts is not said).

Hardware: as radit_65b. In that one's workdir the corpus is embedded already, so it is quicker to run there

    python -m radit_jax.train --stage=all --experiment=experiments/radit_65b.py \\
        --set lm_ft.retrieved_background=false
"""

from dataclasses import replace

import radit_65b

from radit_jax.config import Experiment


def experiment() -> Experiment:
    base = radit_65b.experiment()
    return replace(
        base,
        name="radit_65b_no_background",
        lm_ft=replace(base.lm_ft, retrieved_background=False),
    )
