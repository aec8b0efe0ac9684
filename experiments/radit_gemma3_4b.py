"""RA-DIT with the text model of Gemma 3 4B, which the paper does not have: as radit_qwen3_4b.

    pip install -e '.[torch]'                           # DRAGON+ is a pytorch_model.bin
    python -m radit_jax.train --stage=all --experiment=experiments/radit_gemma3_4b.py

Hardware: as radit_qwen3_4b. The checkpoint is gated: accept its licence on the hub and run `hf auth login`.
No score is published.

The shape is that of `text_config` in the checkpoint's `config.json` (google/gemma-3-4b-pt); what that leaves
out is transformers' default. It has 3.2 billion parameters without the embeddings, as the technical report
says (arXiv 2503.19786).
"""

from dataclasses import replace

import radit_llama32_1b

from radit_jax.config import BaseConfig, DecoderConfig, Experiment, LmConfig, RopeScaling

GEMMA_3_4B = DecoderConfig(
    vocab_size=262_208,
    hidden_size=2560,
    num_layers=34,
    num_heads=8,
    num_kv_heads=4,
    head_size=256,
    ffn_size=10_240,
    max_length=131_072,
    rms_norm_eps=1e-6,
    rope_theta=1_000_000.0,
    rope_scaling=RopeScaling(factor=8.0, kind="linear"),
    tie_embeddings=True,
    family="gemma3",
    window=1024,
    global_every=6,
    local_rope_theta=10_000.0,
    query_divisor=256,
)


def experiment() -> Experiment:
    base = radit_llama32_1b.experiment()
    return replace(
        base,
        name="radit_gemma3_4b",
        base=BaseConfig(
            lm=LmConfig(checkpoint="google/gemma-3-4b-pt", model=GEMMA_3_4B),
            retriever=base.base.retriever,
        ),
    )
