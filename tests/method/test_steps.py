"""The training steps: what they optimise, and what they leave alone."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from exact import EXACT, assert_exact, drawn_in_float64

from radit_jax.config import BertConfig, DecoderConfig, LoraConfig, OptimizerConfig
from radit_jax.data.batches.packing import PrefixTree, concatenate_spans, pack_texts, span, to_batch
from radit_jax.method import likelihood, losses, optimizers, steps
from radit_jax.models.bert import Bert, encode
from radit_jax.models.decoder import DecoderLm
from radit_jax.models.lora import init_adapters

LLAMA = DecoderLm(
    DecoderConfig(
        vocab_size=40, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=2, head_size=8, ffn_size=24
    ),
    dtype=jnp.float64,
)
BERT = Bert(
    BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        ffn_size=24,
        max_length=16,
        pooling="mean",
    ),
    dtype=jnp.float64,
)
pytestmark = pytest.mark.usefixtures("float64")
TEMPERATURE = 2.0
READS_GRADIENT = optax.sgd(0.1, momentum=0.9)  # after one step its trace is the gradient


@pytest.fixture(scope="module")
def llama_params():
    return drawn_in_float64(LLAMA, jnp.zeros((1, 4), jnp.int32))


@pytest.fixture(scope="module")
def bert_params():
    return drawn_in_float64(BERT, jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool))


def lm_batch():
    rng = np.random.default_rng(0)
    sequences = [
        PrefixTree(
            span(rng.integers(1, 40, 5)),
            (concatenate_spans(span(rng.integers(1, 40, 4)), span(rng.integers(1, 40, answer), 1.0)),),
        )
        for answer in (1, 4, 2)
    ]
    return jax.tree.map(jnp.asarray, to_batch(sequences, [(0, 1), (2,)], row_length=24, targets_per_row=8))


def packed_queries(rng, lengths):
    queries = [rng.integers(1, 40, length).tolist() for length in lengths]
    return jax.tree.map(jnp.asarray, pack_texts(queries, row_length=8, num_rows=3))


def r_ft_batch(seed=0):
    rng = np.random.default_rng(seed)
    chunk_mask = jnp.asarray([[True] * 5, [True, True, True, False, True], [False] * 5])
    target = losses.retrieval_log_prob(jnp.asarray(rng.normal(size=(3, 5))), chunk_mask, 0.5)
    return steps.RftBatch(
        queries=packed_queries(rng, (6, 4, 2)),
        chunk_embeddings=jnp.asarray(rng.normal(size=(3, 5, 16))),
        target_log_probs=target,
        chunk_mask=chunk_mask,
    )


@functools.cache
def lm_step():
    return steps.make_lm_step(LLAMA, READS_GRADIENT)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_lora_step_changes_adapters_only_and_keeps_moments_of_them_alone(llama_params, name):
    lora = LoraConfig(rank=3, targets=("q_proj", "down_proj"))
    config = OptimizerConfig(steps=9, peak_lr=0.1, adam_lr=0.1, weight_decay=0.1, name=name)
    tx, before = optimizers.make_optimizer(config), jax.tree.map(np.array, llama_params)
    adapters = init_adapters(llama_params, lora, jax.random.key(0))
    state, step = steps.init_state(adapters, tx), steps.make_lm_step(LLAMA, tx, lora=lora)
    first = None
    for _ in range(3):
        state, metrics = step(state, lm_batch(), llama_params)
        first = first or metrics
    assert float(metrics["loss"]) < float(first["loss"])
    for leaf, start in zip(jax.tree.leaves(state.params), jax.tree.leaves(adapters), strict=True):
        assert np.abs(np.asarray(leaf - start)).max() > 1e-3
    jax.tree.map(np.testing.assert_array_equal, llama_params, before)
    shapes = {leaf.shape for leaf in jax.tree.leaves(adapters)}
    assert {leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim > 1} == shapes


def test_a_lora_steps_first_loss_and_gradient_are_those_of_the_whole_network(llama_params):
    """∂L/∂B = α/r · Aᵀ ∂L/∂W, by the chain rule at B = 0, where A learns nothing yet."""
    lora = LoraConfig(rank=3, alpha=6.0, targets=("up_proj",))
    adapters = init_adapters(llama_params, lora, jax.random.key(0))
    state = steps.init_state(adapters, READS_GRADIENT)
    state, metrics = steps.make_lm_step(LLAMA, READS_GRADIENT, lora=lora)(state, lm_batch(), llama_params)
    full, full_metrics = lm_step()(steps.init_state(llama_params, READS_GRADIENT), lm_batch())
    assert_exact(metrics["loss"], full_metrics["loss"])
    grads, full_grads = (
        optax.tree.get(found.opt_state, "trace")["model"]["layers"]["mlp"]["up_proj"]
        for found in (state, full)
    )
    a = adapters["model"]["layers"]["mlp"]["up_proj"]["lora_a"]
    expected = 2.0 * np.einsum("ldr,ldf->lrf", a, full_grads["kernel"])
    assert_exact(grads["lora_b"], expected)
    assert not np.asarray(grads["lora_a"]).any()


@functools.cache
def r_ft_step():
    return steps.make_r_ft_step(BERT, READS_GRADIENT, temperature=TEMPERATURE)


def run(step, params, batch, tx=READS_GRADIENT, times=1):
    state, trail = steps.init_state(params, tx), []
    for _ in range(times):
        state, metrics = step(state, batch)
        trail.append({name: float(value) for name, value in metrics.items()})
    return state, trail


def gradient(state):
    return optax.tree.get(state.opt_state, "trace")


def assert_equal_trees(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def by_name(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


# --- LM-ft ----------------------------------------------------------------------------------------


def test_the_lm_loss_is_the_mean_over_answer_tokens_of_the_whole_batch(llama_params):
    batch = lm_batch()
    _, [metrics] = run(lm_step(), llama_params, batch)
    log_probs = jax.jit(functools.partial(likelihood.token_log_probs, LLAMA))(llama_params, batch)
    assert metrics["answer_tokens"] == 7
    assert metrics["loss"] == pytest.approx(-float(log_probs.sum()) / 7, rel=EXACT)
    mean_of_means = -float((log_probs.sum(axis=1) / jnp.array([5, 2])).mean())
    assert abs(metrics["loss"] - mean_of_means) > 0.01


def test_the_lm_ft_gradient_does_not_depend_on_prompt_labels(llama_params):
    batch = lm_batch()
    # A slot for every token of the first row's prompts, at weight 0, with right and with wrong labels.
    free = batch.target_weights[0] == 0
    prompts = jnp.where(free, jnp.arange(8, dtype=jnp.int32) % 4, batch.target_slots[0])
    states = []
    for label in (batch.tokens[0, prompts + 1], jnp.full(8, 13, jnp.int32)):
        targets = batch.targets.at[0].set(jnp.where(free, label, batch.targets[0]))
        labelled = batch._replace(target_slots=batch.target_slots.at[0].set(prompts), targets=targets)
        states.append(run(lm_step(), llama_params, labelled)[0])
    plain, _ = run(lm_step(), llama_params, batch)
    assert_equal_trees(gradient(states[0]), gradient(states[1]))
    assert_exact(gradient(states[0]), gradient(plain))


def test_a_batch_taken_in_parts_gives_the_gradient_of_the_whole(llama_params):
    """Rows of 5 and 2 answer tokens: a mean of the parts' means would be another gradient."""
    in_parts = steps.make_lm_step(LLAMA, READS_GRADIENT, accumulate_steps=2)
    (whole, [metrics]), (parts, [metrics_of_parts]) = (
        run(step, llama_params, lm_batch()) for step in (lm_step(), in_parts)
    )
    assert metrics_of_parts == pytest.approx(metrics, rel=EXACT)
    assert_exact(gradient(parts), gradient(whole))


def test_the_fill_is_the_share_of_positions_that_hold_a_token(llama_params):
    _, [metrics] = run(lm_step(), llama_params, lm_batch())
    assert metrics["fill"] == pytest.approx((3 * 9 + 1 + 4 + 2) / 48)


def test_in_bfloat16_state_and_gradient_stay_float32_and_the_gradient_points_the_same_way(llama_params):
    step = steps.make_lm_step(LLAMA.clone(dtype=jnp.bfloat16), READS_GRADIENT)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), llama_params)
    exact, _ = run(lm_step(), llama_params, lm_batch())
    rounded, [metrics] = run(step, single, lm_batch())
    assert {leaf.dtype for leaf in jax.tree.leaves((rounded.params, gradient(rounded)))} == {
        jnp.float32.dtype
    }
    difference = optax.tree.norm(optax.tree.sub(gradient(exact), gradient(rounded)))
    assert 0 < difference < 0.05 * optax.tree.norm(gradient(exact))
    assert np.isfinite(metrics["loss"])


def test_a_batch_of_padding_changes_nothing(llama_params):
    empty = jax.tree.map(jnp.zeros_like, lm_batch())
    state, [metrics] = run(lm_step(), llama_params, empty)
    assert set(metrics) >= {"loss", "grad_norm", "answer_tokens", "tokens", "attended", "fill"}
    assert not any(metrics.values())
    assert_equal_trees(state.params, llama_params)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_lm_learns_a_batch_by_heart(llama_params, name):
    config = OptimizerConfig(steps=40, peak_lr=0.02, warmup_steps=5, name=name, adam_lr=0.02)
    tx = optimizers.make_optimizer(config)
    state, trail = run(steps.make_lm_step(LLAMA, tx), llama_params, lm_batch(), tx, times=40)
    assert trail[0]["loss"] > 3 and trail[-1]["loss"] < 0.2
    assert state.step == 40


# --- R-ft -----------------------------------------------------------------------------------------


def test_the_kl_gradient_reaches_every_query_encoder_parameter(bert_params):
    step = r_ft_step()
    state, _ = run(step, bert_params, r_ft_batch())
    sizes = {name: np.abs(grad).max() for name, grad in by_name(gradient(state)).items()}
    # A bias of the attention keys moves all scores of a query alike, so its gradient is zero by nature.
    unreached = {name for name, size in sizes.items() if size < EXACT}
    assert unreached == {name for name in sizes if "key/bias" in name}
    assert len(sizes) > 15


def test_r_ft_leaves_the_chunk_tower_and_the_stored_embeddings_alone(bert_params):
    chunk_params = jax.tree.map(jnp.copy, bert_params)
    batch = r_ft_batch()
    before = jax.tree.map(np.array, (chunk_params, batch))
    # The query tower starts as the chunk tower: the very same arrays, which a step must not destroy.
    state, _ = run(r_ft_step(), chunk_params, batch)
    assert_equal_trees((chunk_params, batch), before)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, chunk_params)
    assert max(jax.tree.leaves(moved)) > 1e-4


def r_ft_text_batch(batch):
    """`batch` with texts of its chunks in place of their embeddings."""
    rng = np.random.default_rng(1)
    tokens = jnp.asarray(rng.integers(1, 40, (3, 5, 7)), jnp.int32)
    mask = jnp.asarray(np.arange(7) < rng.integers(2, 8, (3, 5, 1)))
    return steps.RftTextBatch(batch.queries, tokens, mask, batch.target_log_probs, batch.chunk_mask)


def embedded(module, params, text_batch):
    """The chunks' vectors, [3, 5, 16]."""
    texts = (part.reshape(15, 7) for part in (text_batch.chunk_tokens, text_batch.chunk_token_mask))
    return jax.jit(encode, static_argnums=0)(module, params, *texts).reshape(3, 5, 16)


def test_both_towers_learn_from_the_texts_what_the_query_tower_learns_from_their_embeddings(bert_params):
    batch = r_ft_batch()
    chunk_params = jax.tree.map(lambda leaf: leaf * 1.1, bert_params)
    text_batch = r_ft_text_batch(batch)
    embeddings = embedded(BERT, chunk_params, text_batch)
    step = steps.make_r_ft_text_step(BERT, READS_GRADIENT, chunk_module=BERT, temperature=TEMPERATURE)
    both, [metrics] = run(step, {"query": bert_params, "chunk": chunk_params}, text_batch)
    one, [wanted] = run(r_ft_step(), bert_params, batch._replace(chunk_embeddings=embeddings))
    assert metrics["loss"] == pytest.approx(wanted["loss"], rel=EXACT)
    found = gradient(both)
    assert_exact(found["query"], gradient(one))
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(found["chunk"])) > 1e-3
    # What stands in the place of a chunk that is not there teaches nothing.
    tokens = jnp.where(batch.chunk_mask[:, :, None], text_batch.chunk_tokens, 9)
    other = text_batch._replace(chunk_tokens=tokens)
    again, _ = run(step, {"query": bert_params, "chunk": chunk_params}, other)
    assert_equal_trees(gradient(again), found)


def test_each_tower_makes_vectors_in_its_own_way_when_both_learn(bert_params):
    chunk_tower = BERT.clone(config=replace(BERT.config, pooling="mean", normalize=True))
    batch = r_ft_batch()
    text_batch = r_ft_text_batch(batch)
    step = steps.make_r_ft_text_step(BERT, READS_GRADIENT, temperature=TEMPERATURE, chunk_module=chunk_tower)
    both, [metrics] = run(step, {"query": bert_params, "chunk": bert_params}, text_batch)
    stored = batch._replace(chunk_embeddings=embedded(chunk_tower, bert_params, text_batch))
    one, [wanted] = run(r_ft_step(), bert_params, stored)
    assert metrics["loss"] == pytest.approx(wanted["loss"], rel=EXACT)
    assert_exact(gradient(both)["query"], gradient(one))


def test_r_ft_reaches_the_target_distribution(bert_params):
    tx = optimizers.make_optimizer(OptimizerConfig(steps=60, peak_lr=0.01))
    step = steps.make_r_ft_step(BERT, tx, temperature=TEMPERATURE)
    _, trail = run(step, bert_params, r_ft_batch(), tx, times=60)
    assert trail[0]["loss"] > 0.4 and trail[-1]["loss"] < 0.01


def test_the_r_ft_loss_is_the_mean_over_queries_that_have_chunks(bert_params):
    batch = r_ft_batch()
    _, [metrics] = run(r_ft_step(), bert_params, batch)
    log_prob = functools.partial(steps.query_log_prob, BERT, temperature=TEMPERATURE)
    log_probs = jax.jit(log_prob)(bert_params, batch=batch)
    each = losses.r_ft_loss(log_probs, batch.target_log_probs, batch.chunk_mask)
    assert each[2] == 0
    assert metrics["loss"] == pytest.approx(float(each[:2].mean()), rel=EXACT)


def test_what_masked_chunks_and_padded_tokens_hold_changes_no_gradient(bert_params):
    batch = r_ft_batch()
    mask = batch.chunk_mask
    other = batch._replace(
        queries=batch.queries._replace(tokens=jnp.where(batch.queries.texts < 0, 9, batch.queries.tokens)),
        chunk_embeddings=jnp.where(mask[:, :, None], batch.chunk_embeddings, jnp.nan),
        target_log_probs=jnp.where(mask, batch.target_log_probs, jnp.nan),
    )
    step = r_ft_step()
    (state, metrics), (other_state, other_metrics) = (run(step, bert_params, b) for b in (batch, other))
    assert metrics == other_metrics
    assert_equal_trees(gradient(state), gradient(other_state))


def test_saturated_queries_are_counted(bert_params):
    share = {}
    for scale in (1e3, 1e-3):
        batch = r_ft_batch()
        batch = batch._replace(chunk_embeddings=batch.chunk_embeddings * scale)
        share[scale] = run(r_ft_step(), bert_params, batch)[1][0]["saturated_queries"]
    assert share == {1e3: 1.0, 1e-3: 0.0}


# --- the base retriever ---------------------------------------------------------------------------


def test_contrastive_training_tells_the_pairs_of_a_batch_apart(bert_params):
    rng = np.random.default_rng(0)
    tokens = [jnp.asarray(rng.integers(1, 40, (4, 6)), jnp.int32) for _ in range(2)]
    mask = jnp.ones((4, 6), bool)
    tx = optimizers.make_optimizer(OptimizerConfig(steps=40, peak_lr=0.01))
    params = {"query": bert_params, "chunk": bert_params}
    step = steps.make_contrastive_step(BERT, tx, temperature=1.0)
    batch = steps.ContrastiveBatch(tokens[0], mask, tokens[1], mask)
    state, trail = run(step, params, batch, tx, times=40)
    assert trail[0]["loss"] > 0.5 and trail[-1]["loss"] < 0.05
    assert set(state.params) == {"query", "chunk"}


# --- optimisers -----------------------------------------------------------------------------------
