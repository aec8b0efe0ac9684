"""Every (example, chunk) is an instance of its own; with LoRA, adapters are kept beside the model."""

import json
from collections import Counter
from dataclasses import replace
from functools import reduce
from operator import getitem

import numpy as np
import pytest
from exact import assert_stored
from small import CHUNKS, LONG, QUESTIONS, TOWERS

from radit_jax.config import (
    EvaluateConfig,
    LmFtConfig,
    LoraConfig,
    MeshConfig,
    OptimizerConfig,
    ScoreConfig,
)
from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.data.batches.examples import question_example
from radit_jax.evaluation import task_suite
from radit_jax.evaluation.questions import load_tasks, without_too_long
from radit_jax.evaluation.task_suite import evaluate_task, retrieve_for_task
from radit_jax.lm.answering import Answer
from radit_jax.lm.scoring import PairScorer
from radit_jax.runtime.distributed.mesh import make_mesh
from radit_jax.runtime.pretrained.model_io import load_model
from radit_jax.runtime.pretrained.tensor_files import open_tensors
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.stages.lm_ft import _kilt_validation, _packed_instances, instances, run
from radit_jax.text.prompts import background


def test_an_example_is_an_instance_under_each_of_its_chunks_and_its_answer_ends_with_eos(inputs, lm):
    examples = [question_example(question, question.answers[0]) for question in QUESTIONS["dev"]]
    rows = np.array([[4, LONG], [7, -1]])  # −1 is no chunk
    retrieved = Retrieved(examples, rows, np.zeros(rows.shape, np.float32))
    trees, truncated = instances(retrieved, Chunks(inputs["corpus"]), lm.tokenizer, max_length=64)
    assert truncated == 1
    wanted = [(0, background(CHUNKS[4].passage)), (0, None), (1, background(CHUNKS[7].passage))]
    assert len(trees) == len(wanted)
    for tree, (number, passage) in zip(trees, wanted, strict=True):
        [continuation] = tree.continuations
        answer = continuation.tokens[continuation.weights > 0].tolist()
        assert answer == [*lm.tokenizer.encode(examples[number].answer), lm.tokenizer.eos_id]
        assert lm.tokenizer.decode(continuation.tokens).startswith(examples[number].prompt)
        assert passage is None or lm.tokenizer.decode(tree.prefix.tokens) == passage
        assert not tree.prefix.weights.any()
        assert len(tree.prefix.tokens) + len(continuation.tokens) <= 64


def test_an_example_with_a_background_of_its_own_is_one_instance_under_that_or_under_none(inputs, lm):
    asked = question_example(QUESTIONS["dev"][0], "Hill")
    examples = [replace(asked, background="Its own context."), replace(asked, background="")]
    rows = np.full((2, 3), -1)
    retrieved = Retrieved(examples, rows, np.zeros(rows.shape, np.float32))
    trees, truncated = instances(retrieved, Chunks(inputs["corpus"]), lm.tokenizer, max_length=200)
    assert (len(trees), truncated) == (2, 0)
    own, none = (lm.tokenizer.decode(tree.prefix.tokens) for tree in trees)
    assert own == background("Its own context.")
    assert none == ""


def test_kilts_development_questions_judge_a_checkpoint_as_evaluation_will(
    inputs, lm, searcher, tmp_path, monkeypatch
):
    """The same questions, without the one that is too long, under the same chunks with the same settings."""
    calls = []

    def generate(model, prompts, retrieval, settings, *, shots, per_token, bar):
        calls.append((prompts, retrieval.rows.tolist(), retrieval.log_probs.tolist(), settings, per_token))
        return [[Answer(f"{row[0]} Finch", 1.0)] for row in retrieval.rows], Counter()

    monkeypatch.setattr(task_suite, "generate_answers", generate)
    (tmp_path / "kilt").mkdir()
    asked = [
        {
            "id": str(row),
            "input": f"Who built {TOWERS[row][0]}?" if row else "very " * 90,
            "output": [{"answer": TOWERS[row][1], "provenance": [{"wikipedia_id": f"c{row}"}]}],
        }
        for row in range(4)
    ]
    lines = "".join(json.dumps(line) + "\n" for line in asked)
    (tmp_path / "kilt" / "wow-dev-kilt.jsonl").write_text(lines)
    evaluate = EvaluateConfig(
        tasks=("wow",),
        tasks_folder=str(tmp_path),
        split="official",
        chunks_per_answer=2,
        sequence_length=96,
        max_new_tokens=2,
    )
    validate = _kilt_validation(inputs, lm, 8, evaluate, 0.05, 0, MeshConfig())
    scorer = PairScorer(lm, make_mesh(MeshConfig()), ScoreConfig())
    trial = without_too_long(load_tasks(evaluate, seed=0)[0], lm.tokenizer, evaluate)
    found = retrieve_for_task(trial, searcher, Chunks(inputs["corpus"]), evaluate, 0.05)
    results = evaluate_task(trial, scorer, evaluate, "wow", retrieved=found).results
    assert len(results) == 3
    assert validate(lm.params) == {"kilt_dev": np.mean([result["f1"] for result in results])}
    assert calls[0] == calls[1] and calls[0][-1]


def retrieved_in(folder):
    """The train questions with a chunk each, as both splits."""
    examples = [question_example(question, question.answers[0]) for question in QUESTIONS["train"]]
    rows = np.array([[0], [1], [2], [3]])
    retrieved = Retrieved(examples, rows, np.zeros(rows.shape, np.float32))
    source = StageFolder(folder / "retrieved")
    for split in ("train", "dev"):
        retrieved.save(source, split)
    source.finish()
    return source


def run_with_lora(inputs, folder, **lora):
    source = retrieved_in(folder)
    lm_ft = LmFtConfig(
        OptimizerConfig(steps=2, peak_lr=0.1), LoraConfig(rank=2, **lora), batch_size=8, sequence_length=64
    )
    output = StageFolder(folder / "lm_ft")
    facts = run({**inputs, "retrieved": source}, output, lm_ft=lm_ft, seed=0, mesh=MeshConfig())
    output.finish(**facts)
    return output


def test_lora_leaves_the_adapters_and_a_language_model_in_which_they_are_merged(inputs, lm, tmp_path):
    output = run_with_lora(inputs, tmp_path)
    # One layer: q, k, v and o are 16 × 16, gate, up and down 16 × 32, each with 2 ranks.
    assert output.manifest["adapter_parameters"] == 2 * (4 * (16 + 16) + 3 * (16 + 32))
    written = open_tensors(output.verified_path("hf/lm_adapter"))
    params = load_model(output.verified_path("lm")).params
    prefix, layers = "base_model.model.model.layers.0.mlp.up_proj.lora_", "model layers mlp up_proj kernel"
    kernel, before = (reduce(getitem, layers.split(), tree)[0] for tree in (params, lm.params))
    a, b = (written[f"{prefix}{name}.weight"].whole() for name in "AB")
    assert_stored(kernel, before + 16 / 2 * (b @ a.astype(np.float64)).T)
    assert np.abs(kernel - before).max() > 1e-3
    embedding = params["model"]["embed_tokens"]["embedding"]
    np.testing.assert_array_equal(embedding, lm.params["model"]["embed_tokens"]["embedding"])


def test_qlora_merges_into_the_kernels_as_they_were(inputs, lm, tmp_path):
    pytest.importorskip("qwix")
    output = run_with_lora(inputs, tmp_path, quantize="int4")
    written = open_tensors(output.verified_path("hf/lm_adapter"))
    a, b = (
        written[f"base_model.model.model.layers.0.self_attn.v_proj.lora_{name}.weight"].whole()
        for name in "AB"
    )
    kernel, before = (
        params["model"]["layers"]["self_attn"]["v_proj"]["kernel"][0]
        for params in (load_model(output.verified_path("lm")).params, lm.params)
    )
    assert np.abs(b).max() > 1e-3
    assert_stored(kernel, before + 16 / 2 * (b @ a.astype(np.float64)).T)


def test_validation_may_be_on_some_development_examples_and_training_is_on_all(inputs, lm, tmp_path):
    folders = {**inputs, "retrieved": retrieved_in(tmp_path)}
    every = LmFtConfig(OptimizerConfig(1, 1e-3), batch_size=1, sequence_length=96)
    one = replace(every, validate_examples=1)

    def num_trees(split, settings):
        packed, _ = _packed_instances(folders, split, lm.tokenizer, settings, 0)
        return sum(map(len, packed.rows))

    assert [num_trees("dev", settings) for settings in (every, one)] == [4, 1]
    assert [num_trees("train", settings) for settings in (every, one)] == [4, 4]
