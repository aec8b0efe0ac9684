"""wiki_gemma with MiniLM's first four layers as its retriever: what a language model can teach a weak one.

    python -m radit_jax.train --stage=all --experiment=experiments/wiki_gemma_weak.py --set data.folder=PATH

The target is the paper's: the language model's choice alone. Candidates are refreshed twice.
"""

from dataclasses import replace

import wiki_gemma

from radit_jax.config import BaseConfig, Experiment


def experiment() -> Experiment:
    strong = wiki_gemma.experiment()
    retriever = replace(strong.base.retriever, num_layers=4)
    optimizer = replace(strong.r_ft.optimizer, peak_lr=1e-4)
    return replace(
        strong,
        name="wiki_gemma_weak",
        base=BaseConfig(lm=strong.base.lm, retriever=retriever),
        r_ft=replace(strong.r_ft, optimizer=optimizer, target="lsr", refresh_every=80),
    )
