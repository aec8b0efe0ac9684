"""radit_65b with a chunk encoder that R-ft trains too.

    python -m radit_jax.train --stage=all --experiment=experiments/radit_65b_both_encoders.py

The corpus is embedded anew for the evaluation. Published, 5 shots, six KILT tasks: 54.0 where the query
encoder alone gives 56.6 or more.

Hardware: as radit_65b. In that one's workdir the corpus is embedded already, so it is quicker to run there

    python -m radit_jax.train --stage=all --experiment=experiments/radit_65b.py \\
        --set r_ft.train_chunk_encoder=true
"""

from dataclasses import replace

import radit_65b

from radit_jax.config import Experiment


def experiment() -> Experiment:
    base = radit_65b.experiment()
    return replace(
        base,
        name="radit_65b_both_encoders",
        r_ft=replace(base.r_ft, train_chunk_encoder=True),
    )
