"""RA-DIT on one GPU: Llama 3.2 1B, DRAGON+, and DPR's Wikipedia.

    pip install -e '.[torch]'                           # DRAGON+ is a pytorch_model.bin
    python -m radit_jax.data.finetuning.tfds_builders all --hub
    python -m radit_jax.train --stage=all --experiment=experiments/radit_llama32_1b.py

Hardware: one GPU of 80 GB, and 80 GB of host memory for the index. The checkpoint is gated: accept its
licence on the hub and run `hf auth login`. `data/dpr` holds `psgs_w100.tsv`. No score is published.

The method's settings are the paper's; smaller, because of the one GPU and all ours: the corpus, LM-ft's
batch of 16 rows, and R-ft's 100,000 examples in batches of 128, so 742 steps of its one epoch, its warm-up
in proportion.
"""

from dataclasses import replace

import radit_7b

from radit_jax.config import BaseConfig, DecoderConfig, Experiment, LmConfig, RopeScaling

LLAMA_32_1B = DecoderConfig(
    vocab_size=128_256,
    hidden_size=2048,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    head_size=64,
    ffn_size=8192,
    max_length=131_072,
    rms_norm_eps=1e-5,
    rope_theta=500_000.0,
    rope_scaling=RopeScaling(factor=32.0),
    tie_embeddings=True,
)


def experiment() -> Experiment:
    base = radit_7b.experiment()
    return replace(
        base,
        name="radit_llama32_1b",
        data=replace(
            base.data,
            corpus="data/dpr",
            passages_file="psgs_w100.tsv",
            passages_format="dpr",
            expected_chunks=21_015_324,  # Karpukhin et al. 2020
        ),
        base=BaseConfig(
            lm=LmConfig(checkpoint="meta-llama/Llama-3.2-1B", model=LLAMA_32_1B),
            retriever=base.base.retriever,
        ),
        lm_ft=replace(base.lm_ft, batch_size=16),
        score=replace(base.score, batch_size=16),
        r_ft=replace(
            base.r_ft,
            optimizer=replace(base.r_ft.optimizer, steps=742, warmup_steps=496),
            batch_size=128,
            num_examples=95_000,
        ),
    )
