"""RA-DIT in minutes: a generated fictional world, models of 0.3M parameters trained from scratch.

Follows arXiv 2310.01352: labels from the base language model, candidates fixed.

    python -m radit_jax.train --stage=all
"""

from radit_jax.config import (
    BaseConfig,
    BertConfig,
    Experiment,
    GeneratedWorld,
    LlamaConfig,
    LmConfig,
    LmFtConfig,
    OptimizerConfig,
    RetrieverConfig,
    RFtConfig,
    ScoreConfig,
)


def experiment() -> Experiment:
    return Experiment(
        name="tiny",
        data=GeneratedWorld(),
        base=BaseConfig(
            lm=LmConfig(
                model=LlamaConfig(
                    vocab_size=1536,
                    hidden_size=96,
                    num_layers=2,
                    num_heads=4,
                    num_kv_heads=4,
                    head_size=24,
                    ffn_size=256,
                    max_length=256,
                ),
                init="mimetic",
                optimizer=OptimizerConfig(steps=600, peak_lr=4e-3, warmup_steps=50, decay_from=0.6),
                batch_size=32,
                sequence_length=128,
            ),
            retriever=RetrieverConfig(
                model=BertConfig(
                    vocab_size=2048,
                    hidden_size=64,
                    num_layers=2,
                    num_heads=4,
                    ffn_size=128,
                    max_length=64,
                    pooling="mean",
                ),
                optimizer=OptimizerConfig(steps=250, peak_lr=2e-3, warmup_steps=20),
                pooling="mean",
                query_length=32,
                chunk_length=64,
            ),
        ),
        lm_ft=LmFtConfig(
            optimizer=OptimizerConfig(steps=400, peak_lr=1e-3, end_lr=1e-4, warmup_steps=20, decay="cosine"),
            batch_size=32,
            sequence_length=128,
        ),
        score=ScoreConfig(batch_size=32, sequence_length=256),
        r_ft=RFtConfig(
            optimizer=OptimizerConfig(steps=300, peak_lr=5e-4, warmup_steps=30),
            tau=0.02,
            text_fraction=0.1,
            text_tokens=12,
        ),
    )
