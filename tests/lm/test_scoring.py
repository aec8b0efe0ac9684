"""Pairs are scored as they would be alone, whatever they share a row or a chunk with."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import assert_rounded, assert_stored, model_in_float64
from small import CHUNKS, LONG, QUESTIONS

from radit_jax.config import EvaluateConfig, MeshConfig, ScoreConfig
from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.batches.examples import question_example
from radit_jax.lm.scoring import NO_CHUNK, PairScorer
from radit_jax.lm.sharded_scoring import ShardedScorer
from radit_jax.models.decoder import DecoderLm
from radit_jax.runtime.distributed.mesh import configure_attention, make_mesh, put_params
from radit_jax.runtime.monitoring.progress import Progress
from radit_jax.runtime.pretrained.tokenizers import Tokenizer
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.selfcheck.tiny_models import random_params
from radit_jax.text.prompts import background

pytestmark = pytest.mark.usefixtures("float64")
EXAMPLES = [question_example(q, answer) for qs in QUESTIONS.values() for q in qs for answer in q.answers]
SPLASH = MeshConfig(attention="splash")
ROWS = (0, 1, LONG, NO_CHUNK)
PAIRS = np.array([(example, row) for example in range(len(EXAMPLES)) for row in ROWS])


LOCAL = {"window": 6, "global_every": 2, "local_rope_theta": 100.0, "query_divisor": 8}


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def lm64(request, lm):
    """Of Gemma 3's kind, with a window that is shorter than a chunk."""
    if request.param == "llama":
        return model_in_float64(lm)
    config = dataclasses.replace(lm.module.config, num_layers=2, family="gemma3", **LOCAL)
    module = DecoderLm(config)
    params = random_params(module, jnp.zeros((1, 4), jnp.int32))
    return model_in_float64(lm._replace(module=module, params=params))


@pytest.fixture(scope="module")
def scorer(lm64):
    devices = make_mesh(MeshConfig())
    settings = ScoreConfig(batch_size=8, sequence_length=64)
    with jax.enable_x64(True):
        return PairScorer(lm64._replace(params=put_params(lm64.params, devices)), devices, settings)


@pytest.fixture(scope="module")
def chunks(inputs):
    return Chunks(inputs["corpus"])


@pytest.fixture(scope="module")
def scored(scorer, chunks):
    with jax.enable_x64(True):
        return scorer.score(EXAMPLES, PAIRS, chunks)


def test_the_pairs_of_a_chunk_score_together_what_each_scores_alone(scorer, chunks, scored):
    for pair, log_prob, token_count, truncated in zip(PAIRS, *scored, strict=True):
        alone = scorer.score(EXAMPLES, pair[None], chunks)
        assert_stored(alone.answer_log_probs[0], log_prob)
        assert (alone.token_counts[0], alone.truncated[0]) == (token_count, truncated)


def test_a_score_is_the_sum_over_the_answers_tokens_behind_background_and_prompt(lm64, scored):
    tokenizer = lm64.tokenizer
    forward = jax.jit(lambda tokens: lm64.module.apply({"params": lm64.params}, tokens))
    for number in np.flatnonzero(PAIRS[:, 1] != LONG):
        example, row = EXAMPLES[PAIRS[number, 0]], PAIRS[number, 1]
        passage = "" if row == NO_CHUNK else background(CHUNKS[row].passage)
        context = [tokenizer.bos_id, *tokenizer.encode(passage), *tokenizer.encode(example.prompt)]
        answer = tokenizer.encode(example.answer)  # without a terminator
        tokens = np.zeros((1, 64), np.int32)
        tokens[0, : len(context + answer)] = context + answer
        log_probs = np.asarray(jax.nn.log_softmax(forward(jnp.asarray(tokens))[0]))
        by_hand = sum(log_probs[len(context) - 1 + i, token] for i, token in enumerate(answer))
        assert_stored(scored.answer_log_probs[number], by_hand)
        assert scored.token_counts[number] == len(context + answer)


def without_bos(tokenizer):
    """The same tokeniser for a model that reads nothing before a text."""
    hf = copy.deepcopy(tokenizer.hf)
    hf.bos_token = None
    return Tokenizer(hf)


def test_without_a_bos_the_text_begins_with_background_or_prompt(lm64, scorer, chunks):
    tokenizer = without_bos(lm64.tokenizer)
    startless = dataclasses.replace(scorer, model=scorer.model._replace(tokenizer=tokenizer))
    pairs = PAIRS[PAIRS[:, 1] != LONG]
    found = startless.score(EXAMPLES, pairs, chunks)
    forward = jax.jit(lambda tokens: lm64.module.apply({"params": lm64.params}, tokens))
    for (number, row), found_log_prob in zip(pairs, found.answer_log_probs, strict=True):
        example = EXAMPLES[number]
        passage = "" if row == NO_CHUNK else background(CHUNKS[row].passage)
        context = [*tokenizer.encode(passage), *tokenizer.encode(example.prompt)]
        answer = tokenizer.encode(example.answer)
        tokens = np.zeros((1, 64), np.int32)
        tokens[0, : len(context + answer)] = context + answer
        log_probs = np.asarray(jax.nn.log_softmax(forward(jnp.asarray(tokens))[0]))
        by_hand = sum(log_probs[len(context) - 1 + i, token] for i, token in enumerate(answer))
        assert_stored(found_log_prob, by_hand)


def test_only_pairs_whose_chunk_was_cut_are_marked_as_truncated(scored):
    np.testing.assert_array_equal(scored.truncated, PAIRS[:, 1] == LONG)


def test_a_score_belongs_to_its_pair_in_whatever_order_pairs_come(scorer, chunks, scored):
    order = np.random.default_rng(0).permutation(len(PAIRS))
    shuffled = scorer.score(EXAMPLES, PAIRS[order], chunks)
    assert_stored(shuffled.answer_log_probs, scored.answer_log_probs[order])
    np.testing.assert_array_equal(shuffled.truncated, scored.truncated[order])


def test_shards_give_the_scores_of_all_pairs_at_once(scorer, chunks, scored, tmp_path):
    loads = []

    def load():
        loads.append(scorer)
        return scorer

    folder = StageFolder(tmp_path)
    sharded = ShardedScorer(load, folder, chunks, shard_size=9)
    for _ in range(2):  # made, and read back
        found = sharded.score("pairs", EXAMPLES, PAIRS, "score")
        assert_stored(found.answer_log_probs, scored.answer_log_probs)
        np.testing.assert_array_equal(found.token_counts, scored.token_counts)
        np.testing.assert_array_equal(found.truncated, scored.truncated)
    assert len(loads) == 1
    count = -(-len(PAIRS) // 9)
    sizes = []
    for number in range(count):
        arrays = folder.read_arrays(f"pairs-{number:05d}-of-{count:05d}")
        sizes.append(len(arrays["truncated"]))
    assert count > 1 and max(sizes) <= 9 and sum(sizes) == len(PAIRS)


def test_parts_are_scored_as_each_is_alone_and_the_next_is_read_meanwhile(scorer, chunks, scored):
    parts, asked = np.array_split(np.arange(len(PAIRS)), 4), []

    def in_parts():
        for number, part in enumerate(parts):
            asked.append(number)
            yield PAIRS[part]

    each = scorer.score_each(in_parts(), EXAMPLES, chunks)
    found = [next(each)]
    assert asked[:2] == [0, 1]  # when the first is handed out, the second has been asked for
    found += each
    together = np.concatenate([part.answer_log_probs for part in found])
    assert_stored(together, scored.answer_log_probs)


def test_a_kernel_reads_the_trees_of_one_continuation_and_the_reference_the_others(lm64, scorer, chunks):
    settings = ScoreConfig(batch_size=8, sequence_length=128)
    # Of the first chunk one example asks, of the second two.
    pairs = np.array([[0, 0], [1, 1], [2, 1]])
    with jax.enable_x64(False):  # the kernel computes in float32
        module = configure_attention(
            lm64.module.clone(dtype=jnp.float32), scorer.mesh, SPLASH, row_length=128
        )
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), scorer.model.params)
        by_kernel = PairScorer(scorer.model._replace(params=params), scorer.mesh, settings, module)
        found = by_kernel.score(EXAMPLES, pairs, chunks).answer_log_probs

    def exact(params):
        reader = PairScorer(scorer.model._replace(params=params), scorer.mesh, settings)
        return reader.score(EXAMPLES, pairs, chunks).answer_log_probs

    assert_rounded(found, exact, lm64.params)


def test_the_fill_is_that_of_all_rows_that_were_scored(scorer, chunks):
    fresh = PairScorer(scorer.model, scorer.mesh, scorer.settings)
    counts = fresh.score(EXAMPLES, PAIRS[:1], chunks).token_counts
    assert fresh.filled.share == counts[0] / 64
    more = fresh.score(EXAMPLES, PAIRS[1:2], chunks).token_counts
    assert fresh.filled.share == pytest.approx((counts[0] + more[0]) / 128)


def test_progress_counts_every_pair_once(scorer, chunks):
    with Progress(len(PAIRS), "score", "pairs") as bar:
        scorer.score(EXAMPLES, PAIRS, chunks, bar)
    assert bar.done == len(PAIRS)


def test_no_pairs_have_no_scores(scorer, chunks):
    nothing = scorer.score(EXAMPLES, np.zeros((0, 2), int), chunks)
    assert nothing.answer_log_probs.shape == nothing.truncated.shape == (0,)


def test_a_model_that_answers_is_read_into_its_layout(inputs):
    """And each of its copies has as many rows of a batch."""
    settings, answers = ScoreConfig(batch_size=12), EvaluateConfig()
    path = inputs["lm"].verified_path("lm")
    scorer = PairScorer.load(path, settings, MeshConfig(answering_tensor=2), answers=answers)
    assert dict(scorer.mesh.shape) == {"replica": 4, "fsdp": 1, "tensor": 2}
    assert scorer.settings.batch_size == 12
    kernel = scorer.model.params["model"]["layers"]["mlp"]["up_proj"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (1, 16, 16)
    whole = PairScorer.load(path, settings, MeshConfig(), answers=answers)
    assert (whole.mesh.shape["replica"], whole.settings.batch_size) == (8, 16)
    # One that only scores lies as in training.
    scores = PairScorer.load(path, settings, MeshConfig())
    assert (scores.mesh.shape["fsdp"], scores.settings.batch_size) == (4, 12)
