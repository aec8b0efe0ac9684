"""RA-DIT with Llama 3 8B, which the paper does not have: radit_7b with another language model.

    pip install -e '.[torch]'                           # DRAGON+ is a pytorch_model.bin
    python -m radit_jax.train --stage=all --experiment=experiments/radit_llama3_8b.py

Hardware: 8 GPUs of 80 GB. The checkpoint is gated: accept its licence on the hub and run `hf auth login`.
No score is published. Settings are the paper's for 7B; the longer window is left unused.
"""

from dataclasses import replace

import radit_7b

from radit_jax.config import BaseConfig, DecoderConfig, Experiment, LmConfig

LLAMA_3_8B = DecoderConfig(
    vocab_size=128_256,
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_size=128,
    ffn_size=14_336,
    max_length=8192,
    rms_norm_eps=1e-5,
    rope_theta=500_000.0,
)


def experiment() -> Experiment:
    base = radit_7b.experiment()
    return replace(
        base,
        name="radit_llama3_8b",
        base=BaseConfig(
            lm=LmConfig(checkpoint="meta-llama/Meta-Llama-3-8B", model=LLAMA_3_8B),
            retriever=base.base.retriever,
        ),
    )
