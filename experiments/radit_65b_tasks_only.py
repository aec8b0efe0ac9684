"""radit_65b with R-ft on the datasets of D_R alone.

    python -m radit_jax.train --stage=all --experiment=experiments/radit_65b_tasks_only.py

Published, 5 shots, six KILT tasks: 56.4 (as far as the table could be read). All examples, about 266,800 by
the paper's counts with wiki_qa's right answers alone, one epoch: 521 steps, warm-up in proportion (ours).

Hardware: as radit_65b. In that one's workdir the corpus is embedded already, so it is quicker to run there

    python -m radit_jax.train --stage=all --experiment=experiments/radit_65b.py \\
        --set r_ft.corpus_text_fraction=0 --set r_ft.num_examples=0
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
            optimizer=replace(base.r_ft.optimizer, steps=521, warmup_steps=348),
            corpus_text_fraction=0.0,
            num_examples=0,
        ),
    )
