"""radit_65b with R-ft's candidates retrieved anew, twice in its epoch.

    python -m radit_jax.train --stage=all --experiment=experiments/radit_65b_refreshed.py

The paper keeps those of the untuned retriever.

Hardware: as radit_65b. In that one's workdir the corpus is embedded already, so it is quicker to run there

    python -m radit_jax.train --stage=all --experiment=experiments/radit_65b.py \\
        --set r_ft.refresh_every=617
"""

from dataclasses import replace

import radit_65b

from radit_jax.config import Experiment


def experiment() -> Experiment:
    base = radit_65b.experiment()
    return replace(
        base,
        name="radit_65b_refreshed",
        r_ft=replace(base.r_ft, refresh_every=617),
    )
