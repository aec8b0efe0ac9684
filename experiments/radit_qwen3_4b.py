"""RA-DIT with Qwen3 4B, which the paper does not have: radit_llama32_1b with another language model.

    pip install -e '.[torch]'                           # DRAGON+ is a pytorch_model.bin
    python -m radit_jax.train --stage=all --experiment=experiments/radit_qwen3_4b.py

Hardware: 8 GPUs of 80 GB; on one, LM-ft takes adapters (`docs/performance.md`). The checkpoint is open. No
score is published.

The shape is that of the checkpoint's `config.json` (Qwen/Qwen3-4B-Base). It gives the parameters that the
model card says: 4.0 billion, 3.6 without the embeddings.
"""

from dataclasses import replace

import radit_llama32_1b

from radit_jax.config import BaseConfig, DecoderConfig, Experiment, LmConfig

QWEN3_4B = DecoderConfig(
    vocab_size=151_936,
    hidden_size=2560,
    num_layers=36,
    num_heads=32,
    num_kv_heads=8,
    head_size=128,
    ffn_size=9728,
    max_length=32_768,
    rms_norm_eps=1e-6,
    rope_theta=1_000_000.0,
    tie_embeddings=True,
    family="qwen3",
)


def experiment() -> Experiment:
    base = radit_llama32_1b.experiment()
    return replace(
        base,
        name="radit_qwen3_4b",
        base=BaseConfig(
            lm=LmConfig(checkpoint="Qwen/Qwen3-4B-Base", model=QWEN3_4B),
            retriever=base.base.retriever,
        ),
    )
