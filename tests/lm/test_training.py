"""Rows in a reproducible order, and a run that was killed ends where one that was not does."""

import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest
from exact import assert_rounded
from flax.traverse_util import flatten_dict

from radit_jax.config import Folder, LoraConfig, MeshConfig, OptimizerConfig
from radit_jax.data.batches.examples import question_example
from radit_jax.data.batches.packing import PrefixTree, concatenate_spans, span
from radit_jax.data.batches.prefix_trees import fits, lm_sequence
from radit_jax.data.sources import folder
from radit_jax.lm import training
from radit_jax.lm.training import LmTraining, LmValidation, PackedTrees, train_lm
from radit_jax.method.likelihood import token_log_probs
from radit_jax.models.lora import merge_adapters
from radit_jax.runtime.distributed import memory
from radit_jax.runtime.distributed.memory import DoesNotFitError, bytes_per_device
from radit_jax.runtime.distributed.mesh import abstract_sharded, make_mesh
from radit_jax.runtime.pretrained.tokenizer_files import load_tokenizer
from radit_jax.runtime.storage.stage_folder import StageFolder


def tree(number, length=8):
    """A tree that fills a row of 8 by itself; its first token tells it from the others."""
    return PrefixTree(
        span([number]), (concatenate_spans(span([number + 100] * (length - 3)), span([7, 9], 1.0)),)
    )


def packed(seed=0, batch_size=2, count=5):
    trees = [tree(number) for number in range(1, count + 1)]
    return PackedTrees(trees, row_length=8, batch_size=batch_size, seed=seed)


def rows_of(batch):
    return [int(first) for first in batch.tokens[:, 0]]


def test_every_epoch_holds_every_row_once_in_an_order_of_its_own():
    trees = packed()
    drawn = [row for step in range(5) for row in rows_of(trees.shuffled(step))]  # two epochs of five rows
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == [1, 2, 3, 4, 5]
    assert drawn[:5] != drawn[5:]


def test_a_batch_depends_on_the_seed_and_the_step_alone():
    steps = [7, 0, 3]
    here = [rows_of(packed().shuffled(step)) for step in steps]
    trees = packed()
    there = [rows_of(trees.shuffled(step)) for step in reversed(steps)]
    assert here == there[::-1]
    others = packed(seed=1)
    assert here != [rows_of(others.shuffled(step)) for step in steps]


def test_in_order_reads_every_row_once_and_fills_the_last_batch_with_empty_rows():
    trees = packed()
    assert len(trees) == 3
    assert [rows_of(trees.in_order(number)) for number in range(3)] == [[1, 2], [3, 4], [5, 0]]
    assert not trees.in_order(2).segment_ids[1].any()


def test_rows_have_slots_for_the_tree_with_the_most_targets():
    greedy = PrefixTree(span([1]), (span([5] * 7, 1.0),))
    trees = PackedTrees([tree(2), greedy], row_length=8, batch_size=2, seed=0)
    assert (trees.in_order(0).target_weights > 0).sum(axis=1).tolist() == [2, 7]


def test_the_fill_is_the_share_of_positions_that_hold_a_token():
    trees = PackedTrees([tree(1), tree(2, length=6)], row_length=8, batch_size=2, seed=0)
    assert trees.facts == {"rows": 2, "fill": 0.875}


def test_only_trees_with_continuations_have_continuation_ids():
    continuationed = PrefixTree(span([1]), (span([2, 3], 1.0), span([4], 1.0)))
    assert packed().shuffled(0).continuation_ids is None
    both = PackedTrees([tree(1), continuationed], row_length=8, batch_size=2, seed=0)
    assert both.in_order(0).continuation_ids is not None


def test_a_row_has_no_more_sequences_than_a_kernel_has_room_for():
    short = [PrefixTree(span([]), (concatenate_spans(span([1]), span([2], 1.0)),)) for _ in range(12)]
    rows = PackedTrees(short, row_length=64, batch_size=2, seed=0).rows
    assert [len(row) for row in rows] == [3, 3, 3, 3]  # 64 / 16 runs, of which the padding may be one


@pytest.mark.slow
def test_rows_of_examples_on_wikipedia_are_nearly_full(shared_data, tmp_path):
    """Each of 600 questions under its gold passage and two others, in LLaMA's tokens."""
    shutil.copy(shared_data / "tokenizers" / "llama_tokenizer.model", tmp_path / "tokenizer.model")
    tokenizer = load_tokenizer(tmp_path)
    corpus = folder.read_folder(Folder(folder=str(shared_data / "wiki"), train_questions=600), seed=0)
    asked = corpus.questions["train"]
    wanted = {gold for question in asked for gold in question.gold_chunks[:1]}
    passages = {chunk.id: chunk.passage for chunk in corpus.chunks if chunk.id in wanted}
    others = list(passages.values())
    trees = []
    for number, question in enumerate(asked):
        example = question_example(question, question.answers[0])
        if not fits(tokenizer, example, 384):  # the stages leave such questions out, and count them
            continue
        own = [passages[gold] for gold in question.gold_chunks[:1]]
        for passage in [*own, others[number % len(others)], others[-1 - number % len(others)]]:
            tree, _ = lm_sequence(tokenizer, passage, example, max_length=384, terminator=True)
            trees.append(tree)
    for row_length in (384, 2048):
        packed = PackedTrees(trees, row_length=row_length, batch_size=16, seed=0)
        batches = [packed.in_order(number) for number in range(len(packed))]
        held = sum(int((batch.segment_ids > 0).sum()) for batch in batches)
        assert held == sum(len(part.tokens) for tree in trees for part in tree.spans)
        assert packed.fill == held / (len(packed.rows) * row_length) > 0.95


NO_LORA = LoraConfig()


class Killed(Exception):
    pass


def train(lm, folder, killed_before=None, lora=NO_LORA, **validation):
    """Four steps with a checkpoint after every second one."""
    trees = packed(batch_size=8, count=9)

    def batch_at(step):
        if step == killed_before:
            raise Killed
        return trees.shuffled(step)

    return train_lm(
        "test",
        lm.module,
        lm.params,
        batch_at,
        StageFolder(folder),
        training=LmTraining(
            OptimizerConfig(steps=4, peak_lr=0.05, decay="cosine", weight_decay=0.1),
            MeshConfig(),
            checkpoint_every=2,
            lora=lora,
        ),
        validation=LmValidation(packed(batch_size=8, count=3), **{"every": 4, **validation}),
    )


def compile_once(monkeypatch):
    """Runs share one compiled step: most of a test's time."""
    make, steps = training.make_lm_step, []

    def make_once(*args, **options):
        if not steps:
            steps.append(make(*args, **options))
        return steps[0]

    monkeypatch.setattr(training, "make_lm_step", make_once)


def test_a_state_that_no_device_holds_is_refused_before_the_first_step(lm, tmp_path, monkeypatch):
    model = bytes_per_device(abstract_sharded(lm.params, make_mesh(MeshConfig())))
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": model + 100})
    monkeypatch.setattr(memory.jax, "local_devices", lambda: [device])
    with pytest.raises(DoesNotFitError, match="the training state takes"):  # the model alone would have room
        train(lm, tmp_path)
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_killed_run_that_resumes_equals_one_that_was_never_killed(lm, tmp_path, monkeypatch):
    compile_once(monkeypatch)
    whole, facts = train(lm, tmp_path / "whole")
    with pytest.raises(Killed):
        train(lm, tmp_path / "killed", killed_before=3)
    resumed, resumed_facts = train(lm, tmp_path / "killed")
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert resumed_facts == facts
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["name"] == "test":  # eight rows of eight tokens, but for one of nine in all that comes later
            assert (line["tokens"], line["fill"], line["answer_tokens"]) == (64, 1.0, 16)
            assert line["attended"] == 8 * sum(range(1, 9)) and line["grad_norm"] > 0
    assert {line["name"] for line in lines} == {"test", "test/validation", "test/speed", "test/time"}
    assert all(line["tokens_per_second_per_device"] > 0 for line in lines if line["name"] == "test/speed")
    assert facts["best_step"] == facts["steps"] == 4  # it learns, so the last parameters are the best
    # What is kept are those parameters: the tokens 7 and 9 behind the others, in nats.
    tokens = np.concatenate(
        [np.concatenate([part.tokens for part in tree(n).spans])[None] for n in (1, 2, 3)]
    )

    def by_hand(params):
        logits = lm.module.clone(dtype=jnp.float64).apply({"params": params}, jnp.asarray(tokens))
        log_probs = jax.nn.log_softmax(logits[:, 5:7])
        return np.take_along_axis(np.asarray(log_probs), tokens[:, 6:8, None], axis=-1).mean()

    assert_rounded(facts["dev_log_prob"], by_hand, whole)


@pytest.mark.slow
def test_a_killed_lora_run_that_resumes_equals_one_that_was_never_killed(lm, tmp_path, monkeypatch):
    compile_once(monkeypatch)
    lora, before = LoraConfig(rank=2), jax.tree.map(np.array, lm.params)
    whole, facts = train(lm, tmp_path / "whole", lora=lora)
    with pytest.raises(Killed):
        train(lm, tmp_path / "killed", killed_before=3, lora=lora)
    resumed, resumed_facts = train(lm, tmp_path / "killed", lora=lora)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert resumed_facts == facts and facts["best_step"] == 4
    jax.tree.map(np.testing.assert_array_equal, lm.params, before)
    # What was trained, and all that a checkpoint has of parameters, is adapters.
    assert {path[-1] for path in flatten_dict(whole)} == {"lora_a", "lora_b"}
    saved = ocp.metadata(tmp_path / "whole" / "checkpoints" / "latest" / "4").metadata
    num_adapter = sum(leaf.size for leaf in jax.tree.leaves(whole))
    assert sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(saved)) < 3 * num_adapter + 10
    # They do what the parameters that were measured did.
    batch = jax.tree.map(jnp.asarray, packed(batch_size=8, count=3).in_order(0))

    def by_hand(params):
        frozen, adapters = params
        exact = lm.module.clone(dtype=jnp.float64)
        return token_log_probs(exact, merge_adapters(frozen, adapters, lora), batch).sum() / 6

    assert_rounded(facts["dev_log_prob"], by_hand, (lm.params, whole))


def test_another_measure_may_select_the_parameters(lm, tmp_path):
    seen = []

    def validate(params):
        seen.append(jax.tree.map(np.asarray, params))
        return {"measure": [0.1, 0.7, 0.7][len(seen) - 1]}

    kept, facts = train(lm, tmp_path, more_figures=validate, every=2, select="measure")
    assert facts == {"steps": 4, "best_step": 2, "measure": pytest.approx(0.7)}  # the earliest of equals
    jax.tree.map(np.testing.assert_array_equal, kept, seen[1])
