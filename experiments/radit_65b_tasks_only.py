"""radit_65b with R-ft on the datasets of D_R alone.

    python -m radit_jax.train --stage=all --experiment=experiments/radit_65b_tasks_only.py

Published, 5 shots, six KILT tasks: 56.4 (as far as the table could be read). All 286,118 examples, one
epoch: 559 steps, their warm-up in proportion (ours).

Hardware: as radit_65b. In that one's workdir the corpus is embedded already, so it is quicker to run there

    python -m radit_jax.train --stage=all --experiment=experiments/radit_65b.py \\
        --set r_ft.text_fraction=0 --set r_ft.num_examples=0
"""

from dataclasses import replace

import radit_65b

from radit_jax.config import Experiment


def experiment() -> Experiment:
    base = radit_65b.experiment()
    return replace(
        base,
        name="radit_65b_tasks_only",
        r_ft=replace(
            base.r_ft,
            optimizer=replace(base.r_ft.optimizer, steps=559, warmup_steps=373),
            text_fraction=0.0,
            num_examples=0,
        ),
    )
