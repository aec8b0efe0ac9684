"""The paper's recipe in small: checkpoints of others, datasets in their official form, a corpus."""

import json
import pathlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import small
import transformers

import radit_jax
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
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.pipeline.runner import Run
from radit_jax.runtime.pretrained.tokenizer_files import save_tokenizer
from radit_jax.runtime.storage.workdir import Workdir

FIXTURES = pathlib.Path(__file__).parent / "data" / "fixtures" / "raw"
LENGTH = 384


def optimizer(steps: int) -> OptimizerConfig:
    return OptimizerConfig(steps=steps, peak_lr=1e-3)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Experiment:
    """Tiny checkpoints in Hugging Face's form, the datasets' fixtures, and 40 passages."""
    folder = tmp_path_factory.mktemp("recipe")
    lm, encoder = small.language_model().tokenizer, small.encoder().tokenizer
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
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
            optimizer=optimizer(2), batch_size=8, text_tokens=10, num_examples=35, corpus_text_fraction=0.8
        ),
        evaluate=EvaluateConfig(
            max_new_tokens=2, batch_size=8, prompts_per_batch=16, sequence_length=LENGTH, bootstrap_samples=20
        ),
        export=ExportConfig(run_depth=0),
    )


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory) -> Run:
    run = Run(recipe, Workdir(tmp_path_factory.mktemp("run")))
    train.execute(run, "lm_ft")
    train.execute(run, "r_ft")
    return run


def test_training_reaches_both_tuned_models(finished):
    for stage, model in (("lm_ft", "lm"), ("r_ft", "query_encoder")):
        radit_jax.load(str(finished.folders[stage].verified_path(model)))
    assert 0 <= finished.folders["r_ft"].manifest["dev_mrr@10"] <= 1
    held_out = Corpus(finished.folders["corpus"]).questions("dev")
    scored = finished.folders["r_ft"].read_arrays("development.npz")["log_probs"]
    assert scored.shape == (len(held_out), 10)


def test_the_corpus_stage_counts_what_was_read_and_drawn(finished):
    facts = finished.folders["corpus"].manifest
    assert len(facts["lm_ft_train"]) == 20 and len(facts["r_ft_train"]) == 5
    assert sum(count["drawn"] for count in facts["lm_ft_train"].values()) == facts["lm_ft_train_tasks"]
    assert facts["chunks"] == finished.folders["corpus/chunks"].manifest["chunks"] == 79


def test_d_l_has_text_and_retrieves_only_for_examples_without_a_context(finished):
    retrieved = Retrieved.load(finished.folders["retrieve/lm_ft"], "train")
    own = np.array([example.background is not None for example in retrieved.examples])
    assert 0 < own.sum() < len(own)
    assert (retrieved.chunk_rows[own] == -1).all() and (retrieved.chunk_rows[~own] >= 0).all()
    instances = np.where(own, 1, 3)
    asked = instances[retrieved.is_question].sum()
    assert (~retrieved.is_question).sum() == round(asked / 9 / 3)  # 10 % of all instances


def test_d_r_has_its_number_of_examples_and_no_text_finds_its_own_chunk(finished):
    retrieved = Retrieved.load(finished.folders["retrieve/r_ft"], "train")
    assert (len(retrieved.examples), (~retrieved.is_question).sum()) == (35, 28)
    chunks = Corpus(finished.folders["corpus"]).chunks
    for example, rows in zip(retrieved.examples, retrieved.chunk_rows, strict=True):
        assert example.source_chunk not in {chunk.id for chunk in chunks.take(rows)}


def test_other_examples_leave_embeddings_as_they_are(finished, recipe):
    other = Run(replace(recipe, data=replace(recipe.data, lm_ft_cap=1)), finished.workdir)
    assert [stage.name for stage in other.missing("embed")] == []
    assert "retrieve/lm_ft" in [stage.name for stage in other.missing("lm_ft")]
