"""wiki_small with the whole MiniLM as its retriever, which was itself trained on questions like these.

    python -m radit_jax.train --stage=all --experiment=experiments/wiki_small_strong.py --set data.folder=PATH

Here the language model's own choice of a chunk is worse than the retriever's, so the paper's target can
only do harm; the posterior target combines the two (`--set r_ft.target=lsr` is the paper's).
"""

from dataclasses import replace

import wiki_small

from radit_jax.config import BaseConfig, Experiment


def experiment() -> Experiment:
    base = wiki_small.experiment()
    optimizer = replace(base.r_ft.optimizer, peak_lr=2e-5)
    return replace(
        base,
        name="wiki_small_strong",
        base=BaseConfig(lm=base.base.lm, retriever=wiki_small.MINILM),
        r_ft=replace(base.r_ft, optimizer=optimizer, target="posterior"),
    )
