"""RA-DIT 65B fine-tuned on 64 examples of each of nine tasks: LM-ft once more, from radit_65b's export.

    python -m radit_jax.train --stage=all --experiment=experiments/radit_65b.py
    python -m radit_jax.train --stage=all --experiment=experiments/radit_65b_64shot.py

Paper: arXiv 2310.01352. Steps, batch and learning rates are its own; MMLU is not among the tasks. Hardware:
as radit_65b.

The retriever is radit_65b's, as R-ft left it, and stays so: R-ft has no step here. The corpus is embedded
again in this workdir. `data/raw` holds the tasks' official train and dev files, by the names in
`radit_jax/data/eval_tasks/registry.py`, and the datasets of D_R, on whose questions the index is tuned.
"""

from dataclasses import replace

import radit_65b

from radit_jax.config import BaseConfig, Experiment, LmConfig, OptimizerConfig, RetrieverConfig

EXPORT = "runs/radit_65b/export"
TASKS = ("nq", "trivia_qa", "hotpotqa", "fever", "aida", "zsre", "trex", "wow", "eli5")


def experiment() -> Experiment:
    base = radit_65b.experiment()
    retriever: RetrieverConfig = replace(
        base.base.retriever,
        checkpoint=f"{EXPORT}/query_encoder",
        chunk_checkpoint=f"{EXPORT}/chunk_encoder",
    )
    return replace(
        base,
        name="radit_65b_64shot",
        data=replace(base.data, datasets="data/raw", lm_ft_benchmarks=TASKS, benchmark_examples=64),
        base=BaseConfig(
            lm=LmConfig(checkpoint=f"{EXPORT}/lm", model=radit_65b.LLAMA_65B), retriever=retriever
        ),
        lm_ft=replace(
            base.lm_ft,
            optimizer=OptimizerConfig(steps=100, peak_lr=1e-5, end_lr=1e-6, decay="linear"),
            batch_size=32,
            corpus_text_fraction=0.0,
            validate_every=20,  # ours
        ),
        r_ft=replace(
            base.r_ft,
            optimizer=replace(base.r_ft.optimizer, steps=0, warmup_steps=0),
            corpus_text_fraction=0.0,
            num_examples=512,  # ours: only to say what the labels would teach
        ),
    )
