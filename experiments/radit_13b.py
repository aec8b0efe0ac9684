"""RA-DIT 13B: radit_7b with LLaMA 13B.

    pip install -e '.[torch]'                           # DRAGON+ is a pytorch_model.bin
    python -m radit_jax.train --stage=all --experiment=experiments/radit_13b.py

Hardware: 16 A100 of 80 GB for LM-ft in the paper, two of which share a model's layers. The paper kept the
checkpoint of step 400. Batch, shards and steps are those of the paper's table of LM-ft's hyper-parameters.
"""

from dataclasses import replace

import radit_7b

from radit_jax.config import BaseConfig, Experiment, LmConfig

LLAMA_13B = replace(
    radit_7b.LLAMA_7B, hidden_size=5120, num_layers=40, num_heads=40, num_kv_heads=40, ffn_size=13_824
)


def experiment() -> Experiment:
    base = radit_7b.experiment()
    return replace(
        base,
        name="radit_13b",
        base=BaseConfig(
            lm=LmConfig(checkpoint="huggyllama/llama-13b", model=LLAMA_13B), retriever=base.base.retriever
        ),
        lm_ft=replace(base.lm_ft, batch_size=128),
    )
