"""The paper's recipe in small: checkpoints of others, datasets in their official form, a corpus."""

import json
import pathlib

import pytest
import small
import transformers

from radit_jax import train
from radit_jax.config import (
    BaseConfig,
    EvaluateConfig,
    Experiment,
    ExportConfig,
    Instructions,
    LmConfig,
    LmFtConfig,
    OptimizerConfig,
    RetrieverConfig,
    RFtConfig,
    ScoreConfig,
)
from radit_jax.pipeline import Run
from radit_jax.runtime.store import Workdir
from radit_jax.runtime.tokenizers import save_tokenizer

FIXTURES = pathlib.Path(__file__).parent / "data" / "fixtures" / "raw"
LENGTH = 512


def optimizer(steps: int) -> OptimizerConfig:
    return OptimizerConfig(steps=steps, peak_lr=1e-3)


@pytest.fixture(scope="session")
def recipe(tmp_path_factory) -> Experiment:
    """Tiny checkpoints in Hugging Face's form, the datasets' fixtures, and 40 passages."""
    folder = tmp_path_factory.mktemp("recipe")
    lm, encoder = small.language_model().tokenizer, small.encoder().tokenizer
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    llama = transformers.LlamaConfig(vocab_size=lm.vocab_size, max_position_embeddings=LENGTH, **shape)
    transformers.LlamaForCausalLM(llama).save_pretrained(folder / "llama")
    save_tokenizer(folder / "llama", lm)
    bert = transformers.BertConfig(vocab_size=encoder.vocab_size, max_position_embeddings=64, **shape)
    for tower in ("query", "context"):
        transformers.BertModel(bert).save_pretrained(folder / tower)
        save_tokenizer(folder / tower, encoder)
    passages = [
        {"id": f"p{n}", "title": f"Stone {n}", "text": f"Stone {n} lies {n} miles off. " * 9}
        for n in range(39)
    ]
    passages.append({"id": "p39", "title": "Dray", "text": "The Lune flows through Dray and on to the sea."})
    (folder / "corpus").mkdir()
    (folder / "corpus" / "passages.jsonl").write_text("".join(json.dumps(p) + "\n" for p in passages))
    return Experiment(
        name="recipe",
        data=Instructions(
            corpus=str(folder / "corpus"),
            datasets=str(FIXTURES),
            r_ft_datasets=("commonsense_qa", "freebase_qa", "ms_marco", "quarel", "pubmed_qa"),
            max_words=40,
            held_out_fraction=0.3,
            expected_chunks=37,
        ),
        base=BaseConfig(
            lm=LmConfig(checkpoint=str(folder / "llama")),
            retriever=RetrieverConfig(
                checkpoint=str(folder / "query"),
                chunk_checkpoint=str(folder / "context"),
                query_length=32,
                chunk_length=48,
            ),
        ),
        lm_ft=LmFtConfig(optimizer=optimizer(2), batch_size=8, sequence_length=LENGTH),
        score=ScoreConfig(batch_size=8, sequence_length=LENGTH),
        r_ft=RFtConfig(
            optimizer=optimizer(2), batch_size=8, text_tokens=10, num_examples=40, text_fraction=0.8
        ),
        evaluate=EvaluateConfig(
            max_new_tokens=2, batch_size=8, prompts_per_batch=16, sequence_length=LENGTH, bootstrap_samples=20
        ),
        export=ExportConfig(run_depth=0),
    )


@pytest.fixture(scope="session")
def finished(recipe, tmp_path_factory) -> Run:
    run = Run(recipe, Workdir(tmp_path_factory.mktemp("run")))
    train.execute(run, "lm_ft")
    train.execute(run, "r_ft")
    return run


def test_stats(finished, recipe):
    for name, folder in finished.folders.items():
        if folder.complete:
            print(
                name, {k: v for k, v in folder.manifest.items() if k not in ("files", "versions", "settings")}
            )
