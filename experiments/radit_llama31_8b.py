"""RA-DIT with Llama 3.1 8B, which the paper does not have: radit_llama32_1b with another language model.

    pip install -e '.[torch]'                           # DRAGON+ is a pytorch_model.bin
    python -m radit_jax.train --stage=all --experiment=experiments/radit_llama31_8b.py

Hardware: 8 GPUs of 80 GB; on one, LM-ft takes adapters (`docs/performance.md`). The checkpoint is gated:
accept its licence on the hub and run `hf auth login`. No score is published.

The shape is that of the checkpoint's `config.json` (meta-llama/Llama-3.1-8B).
"""

from dataclasses import replace

import radit_llama3_8b
import radit_llama32_1b

from radit_jax.config import BaseConfig, Experiment, LmConfig, RopeScaling

LLAMA_31_8B = replace(
    radit_llama3_8b.LLAMA_3_8B,
    max_length=131_072,
    rope_scaling=RopeScaling(factor=8.0),
)


def experiment() -> Experiment:
    base = radit_llama32_1b.experiment()
    return replace(
        base,
        name="radit_llama31_8b",
        base=BaseConfig(
            lm=LmConfig(checkpoint="meta-llama/Llama-3.1-8B", model=LLAMA_31_8B),
            retriever=base.base.retriever,
        ),
    )
