"""RA-DIT 7B: LLaMA 7B and DRAGON+ on the paper's data. The other sizes vary this file.

    pip install -e '.[torch]'                           # DRAGON+ is a pytorch_model.bin
    python -m radit_jax.data.finetuning.tfds_builders all --hub            # the datasets, into data/tfds
    python -m radit_jax.train --stage=all --experiment=experiments/radit_7b.py

Paper: arXiv 2310.01352. Hardware: 8 A100 of 80 GB for LM-ft, 16 for R-ft in the paper, whose exact search
over its index takes GPUs too; here it takes host memory, 115 GB for 37M vectors of float32. Expected score:
the paper prints averages of its largest model only (`radit_65b.py`).

`data/wikipedia` holds Atlas' Wikipedia of 20 December 2021, `text-list-100-sec.jsonl`, with the lines of
its infoboxes added under ids of their own. Datasets that no hub has are built from their publishers' files
(`--manual_dir`). `data/benchmarks` holds the official files of the tasks to evaluate on, KILT's in
`kilt/`; `--set evaluate.shots=5` puts five examples before each question.

Where each number comes from: (1) Table 1, datasets; (C) the paper's section on the retrieval corpus; (H)
its table of LM-ft's hyper-parameters; (R) its appendix on R-ft; the others are the method's defaults or
ours. Ours, where it is silent or cannot be had here: AdamW with β 0.9 and 0.95, no weight decay, clipped at
1; computing in bfloat16 over float32 parameters and optimiser, layers again in the backward pass; R-ft's
decay is linear, and its epoch is that of 900,000 corpus examples and the 5 % of tasks beside them; the
labels come from the base model of this size, where the paper has 65B's; lengths of rows and texts in
`score`, `evaluate` and the retriever; batches that only make things fast. Labels of 65B:

    python -m radit_jax.train --stage=all --experiment=experiments/radit_7b.py \\
        --set score.language_model=hub:huggyllama/llama-65b

or, where a run of 65B with the same data has exported its scores (`--set export.lsr_scores=true`),

        --set score.language_model=runs/radit_65b/export/lsr_scores.jsonl
"""

from radit_jax.config import (
    BaseConfig,
    BertConfig,
    DecoderConfig,
    EmbedConfig,
    EvaluateConfig,
    Experiment,
    Instructions,
    LmConfig,
    LmFtConfig,
    MeshConfig,
    OptimizerConfig,
    RetrieveConfig,
    RetrieverConfig,
    RFtConfig,
    ScoreConfig,
)

LLAMA_7B = DecoderConfig(
    vocab_size=32_000,
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_size=128,
    ffn_size=11_008,
    max_length=2048,
    rms_norm_eps=1e-6,
)
DRAGON_PLUS = RetrieverConfig(
    checkpoint="facebook/dragon-plus-query-encoder",
    chunk_checkpoint="facebook/dragon-plus-context-encoder",
    pooling="cls",
    normalize=False,
    model=BertConfig(vocab_size=30_522, hidden_size=768, num_layers=12, num_heads=12, ffn_size=3072),
    query_length=256,  # ours
    chunk_length=512,  # ours; a chunk of 199 words has some 270 tokens
)
BENCHMARKS = "data/benchmarks"
TASKS = ("mmlu", "nq", "trivia_qa", "eli5", "hotpotqa", "fever", "aida", "zsre", "trex", "wow")
PAPERS_DATA = Instructions(
    corpus="data/wikipedia",
    passages_format="atlas",
    max_words=200,  # (C)
    datasets="data/tfds",
    lm_ft_cap=7500,  # the paper's η
    dialogue_fraction=0.05,  # of LM-ft's mixture
    expected_chunks=37_000_000,  # (C)
    expected_r_ft_tasks=266_798,  # (1), the sum of D_R's ten datasets, of wiki_qa those with label 1 (1,040)
)


def experiment() -> Experiment:
    return Experiment(
        name="radit_7b",
        data=PAPERS_DATA,
        base=BaseConfig(
            lm=LmConfig(checkpoint="huggyllama/llama-7b", model=LLAMA_7B),
            retriever=DRAGON_PLUS,
        ),
        embed=EmbedConfig(batch_size=1024, dtype="bfloat16", shard_size=1 << 18),  # ours
        retrieve=RetrieveConfig(num_chunks=10),  # |C'| of R-ft
        lm_ft=LmFtConfig(
            optimizer=OptimizerConfig(
                steps=500, peak_lr=1e-5, end_lr=1e-7, warmup_steps=200, decay="cosine"
            ),  # (H)
            batch_size=64,  # (H), packed sequences
            sequence_length=2048,  # (H)
            dtype="bfloat16",  # ours
            chunks_per_example=3,  # the paper's k̃
            corpus_text_fraction=0.1,  # of LM-ft's mixture
            validate_every=100,  # (H)
            select="kilt_dev",  # HotpotQA, FEVER, AIDA, zsRE, T-REx and WoW
            select_folder=BENCHMARKS,
            select_questions=2500,  # the paper's, of each
        ),
        score=ScoreConfig(
            language_model="base",
            batch_size=64,
            sequence_length=1024,
            dtype="bfloat16",  # ours
            shard_size=1 << 16,
        ),
        r_ft=RFtConfig(
            optimizer=OptimizerConfig(steps=1850, peak_lr=1e-5, warmup_steps=1237),  # (R), one epoch
            batch_size=512,  # (R), 16 × 32
            tau=0.01,  # (R)
            corpus_text_fraction=0.95,  # of R-ft's mixture
            text_tokens=50,  # of x, and of y
            num_examples=947_368,  # 900,000 from the corpus (R) are 95 % of
            validate_every=500,  # (R)
        ),
        evaluate=EvaluateConfig(
            tasks=TASKS,
            tasks_folder=BENCHMARKS,
            chunks_per_answer=10,
            sequence_length=2048,
            batch_size=64,
            prompts_per_batch=60,  # ours: six questions
            dtype="bfloat16",  # ours
        ),
        mesh=MeshConfig(remat="full"),  # ours; its sizes follow from the devices
    )
