"""RA-DIT 65B, the paper's largest: radit_7b with LLaMA 65B.

    pip install -e '.[torch]'                           # DRAGON+ is a pytorch_model.bin
    python -m radit_jax.train --stage=all --experiment=experiments/radit_65b.py

Hardware: 64 A100 of 80 GB for LM-ft in the paper, eight of which share a model's layers, and 16 for R-ft.
The paper kept the checkpoint of step 300 (as far as its table could be read).

Expected score, on test sets, the average of MMLU, NQ, TriviaQA, ELI5, HotpotQA, FEVER, AIDA, zsRE, T-REx
and WoW:

    0 shots    LLaMA 22.8    with DRAGON+ 43.1    RA-DIT 50.5
    5 shots    LLaMA 45.0    with DRAGON+ 52.7    RA-DIT 55.2

and on development sets with 5 shots: neither tuning 53.8, LM-ft only 53.9, R-ft only 54.4, both 54.6. The
two in the middle are systems of every evaluation.
"""

from dataclasses import replace

import radit_7b

from radit_jax.config import BaseConfig, Experiment, LmConfig

LLAMA_65B = replace(
    radit_7b.LLAMA_7B,
    hidden_size=8192,
    num_layers=80,
    num_heads=64,
    num_kv_heads=64,
    ffn_size=22_016,
    rms_norm_eps=1e-5,
)


def experiment() -> Experiment:
    base = radit_7b.experiment()
    return replace(
        base,
        name="radit_65b",
        base=BaseConfig(
            lm=LmConfig(checkpoint="huggyllama/llama-65b", model=LLAMA_65B), retriever=base.base.retriever
        ),
        lm_ft=replace(base.lm_ft, batch_size=128),
    )
