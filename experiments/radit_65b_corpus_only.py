"""radit_65b with R-ft on text of the corpus alone.

    python -m radit_jax.train --stage=all --experiment=experiments/radit_65b_corpus_only.py

Published, 5 shots, six KILT tasks: 56.6; the mixture of 95 % and 5 % gives 57.0, no R-ft 56.6. One epoch of
the 900,000 examples, its warm-up in proportion (ours).

Hardware: as radit_65b. In that one's workdir the corpus is embedded already, so it is quicker to run there

    python -m radit_jax.train --stage=all --experiment=experiments/radit_65b.py \\
        --set r_ft.corpus_text_fraction=1 --set r_ft.num_examples=900000
"""

from dataclasses import replace

import radit_65b

from radit_jax.config import Experiment


def experiment() -> Experiment:
    base = radit_65b.experiment()
    return replace(
        base,
        name="radit_65b_corpus_only",
        r_ft=replace(
            base.r_ft,
            optimizer=replace(base.r_ft.optimizer, steps=1758, warmup_steps=1175),
            corpus_text_fraction=1.0,
            num_examples=900_000,
        ),
    )
