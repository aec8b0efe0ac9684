"""radit_65b with R-ft's labels from the tuned language model.

    python -m radit_jax.train --stage=all --experiment=experiments/radit_65b_tuned_labels.py

The paper takes the untuned one's, so that both stages can run at the same time.

Hardware: as radit_65b. In that one's workdir the corpus is embedded already, so it is quicker to run there

    python -m radit_jax.train --stage=all --experiment=experiments/radit_65b.py \\
        --set score.language_model=lm_ft
"""

from dataclasses import replace

import radit_65b

from radit_jax.config import Experiment


def experiment() -> Experiment:
    base = radit_65b.experiment()
    return replace(
        base,
        name="radit_65b_tuned_labels",
        score=replace(base.score, language_model="lm_ft"),
    )
