"""RA-DIT in minutes: a generated fictional world, and small models that are trained from scratch on its text.

    python -m radit_jax.train --stage=all

Follows arXiv 2310.01352: k̃ = 3, k = 10, labels from the base language model by the geometric mean of token
probabilities, the paper's KL, candidates fixed. Half of the LM-ft questions come with their gold passage
alone, as the paper's reading comprehension sets do (8 of its 20). Its own: the models (0.6M and 0.2M
parameters), the learning rates, the temperature of p_R, τ, and 10 % of corpus text in R-ft, not 95 %.
"""

from radit_jax.config import (
    BaseConfig,
    BertConfig,
    DecoderConfig,
    Experiment,
    GeneratedWorld,
    LmConfig,
    LmFtConfig,
    OptimizerConfig,
    RetrieveConfig,
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
                model=DecoderConfig(
                    vocab_size=2048,
                    hidden_size=96,
                    num_layers=2,
                    num_heads=2,
                    num_kv_heads=2,
                    head_size=48,
                    ffn_size=256,
                    max_length=512,
                ),
                init="mimetic",
                optimizer=OptimizerConfig(steps=420, peak_lr=4e-3, warmup_steps=20),
                batch_size=24,
                sequence_length=128,
            ),
            retriever=RetrieverConfig(
                model=BertConfig(
                    vocab_size=2048,
                    hidden_size=64,
                    num_layers=2,
                    num_heads=4,
                    ffn_size=256,
                    max_length=64,
                ),
                optimizer=OptimizerConfig(steps=200, peak_lr=1e-3, warmup_steps=20),
                pooling="mean",
                query_length=32,
                chunk_length=64,
            ),
        ),
        lm_ft=LmFtConfig(
            optimizer=OptimizerConfig(steps=200, peak_lr=1e-3, warmup_steps=20),
            batch_size=24,
            sequence_length=128,
            gold_context_fraction=0.5,
        ),
        retrieve=RetrieveConfig(temperature=0.1),
        score=ScoreConfig(batch_size=32, sequence_length=256),
        r_ft=RFtConfig(
            optimizer=OptimizerConfig(steps=300, peak_lr=5e-4, warmup_steps=30),
            tau=0.02,
            corpus_text_fraction=0.1,
            text_tokens=12,
        ),
    )
