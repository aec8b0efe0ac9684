"""Every jitted step becomes a program for CUDA and for a TPU, and those that may overwrite their state do."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from radit_jax.config import BertConfig, DecoderConfig, LoraConfig, OptimizerConfig
from radit_jax.data.batches.packing import pack_texts, to_batch
from radit_jax.lm.answer_rows import pack_answers
from radit_jax.lm.prefix_sharing import ONE_DEVICE, build_prefill_batch, split_shared_prefixes
from radit_jax.lm.training import initial_state
from radit_jax.method import answer_scoring, generation, likelihood, optimizers, steps
from radit_jax.models.attention import Kernel
from radit_jax.models.bert import Bert
from radit_jax.models.decoder import DecoderLm
from radit_jax.models.lora import quantized
from radit_jax.retrieval.search import encode_batch

# Heads as wide as the kernels of all platforms take them.
LLAMA = DecoderConfig(64, 32, 2, 2, 1, 128, 48)
BERT = Bert(BertConfig(64, 32, 2, 2, 48))
PLATFORMS = ("cuda", "tpu")
KERNELS: dict[str, Kernel] = {"cuda": "cudnn", "tpu": "splash"}
CALLS = {"cuda": ("__cudnn$fmhaSoftmax(",), "tpu": ("splash_mha_fwd",)}
BACKWARD_CALLS = {"cuda": ("__cudnn$fmhaSoftmaxBackward(",), "tpu": ("splash_mha_dq", "splash_mha_dkv")}
STOPS = generation.Stops((0, 1))
TX = optimizers.make_optimizer(OptimizerConfig(steps=9, peak_lr=1e-5))


@pytest.fixture(autouse=True)
def machine_of_the_platform(monkeypatch):
    """No library of a GPU is asked for, and Pallas' kernels are not interpreted."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)


def programs(function, *arguments, **options):
    """The function's program for each platform, traced once."""
    traced = function.trace(*arguments, **options)
    return {platform: program(traced, platform) for platform in PLATFORMS}


def program(traced: Any, platform: str) -> str:
    return traced.lower(lowering_platforms=(platform,)).as_text()


def num_overwritten(program: str) -> int:
    """How many arguments are donated to results."""
    return program.count("tf.aliasing_output") + program.count("jax.buffer_donor")


def lm(platform: str) -> DecoderLm:
    return DecoderLm(LLAMA, jnp.bfloat16, "full", KERNELS[platform])


def lm_params() -> Any:
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    return jax.eval_shape(DecoderLm(LLAMA).init, jax.random.key(0), tokens)["params"]


def lm_rows(*, continuation_ids=False):
    return to_batch([], [], row_length=128, targets_per_row=32, num_rows=2, continuation_ids=continuation_ids)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(
    "lora",
    [LoraConfig(), LoraConfig(rank=4), LoraConfig(rank=4, quantize="int4")],
    ids=["whole", "LoRA", "QLoRA"],
)
def test_a_step_of_lm_ft_overwrites_its_whole_state(platform, lora):
    params = lm_params()
    if lora.quantize != "none":
        params = jax.eval_shape(lambda params: quantized(params, lora), params)
    state = jax.eval_shape(initial_state(TX, lora), params)
    step: Any = steps.make_lm_step(lm(platform), TX, lora=lora if lora.rank else None)
    frozen = [params] if lora.rank else []
    text = program(step.trace(state, lm_rows(), *frozen), platform)
    assert num_overwritten(text) == len(jax.tree.leaves(state))
    for call in CALLS[platform] + BACKWARD_CALLS[platform]:
        assert call in text


def test_a_step_of_r_ft_overwrites_its_whole_state():
    texts = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
    params = jax.eval_shape(BERT.init, jax.random.key(0), *texts)["params"]
    state = jax.eval_shape(lambda params: steps.init_state(params, TX), params)
    queries = pack_texts([[1, 2, 3], [4, 5]], row_length=16, num_rows=1)
    batch = steps.RftBatch(
        queries, np.zeros((2, 3, 32), np.float32), np.zeros((2, 3), np.float32), np.ones((2, 3), bool)
    )
    step: Any = steps.make_r_ft_step(BERT, TX, temperature=1.0)
    for text in programs(step, state, batch).values():
        assert num_overwritten(text) == len(jax.tree.leaves(state))


def test_texts_are_embedded_on_both():
    tokens, mask = np.zeros((4, 16), np.int32), np.ones((4, 16), bool)
    params = jax.eval_shape(BERT.init, jax.random.key(0), tokens, mask)["params"]
    embed: Any = encode_batch
    assert all(programs(embed, BERT, params, tokens, mask).values())


@pytest.mark.parametrize("platform", PLATFORMS)
def test_rows_of_pairs_are_scored_by_the_kernel_if_no_chunk_is_shared(platform):
    score: Any = likelihood.continuation_log_probs
    for shared in (False, True):
        traced = score.trace(lm(platform), lm_params(), lm_rows(continuation_ids=shared), 8)
        assert (CALLS[platform][0] in program(traced, platform)) is not shared


@pytest.mark.parametrize("platform", PLATFORMS)
def test_prompts_are_read_by_the_kernel_and_decoding_overwrites_its_state(platform):
    """All that answers a question, each with the shapes that the one before it gives."""
    module, params = lm(platform), lm_params()

    # 1) Two prompts share a prefix of 100 tokens, in a row of 128.
    prompts = [[*range(100), 7, 8], [*range(100), 9]]
    batch = build_prefill_batch(split_shared_prefixes(prompts), ONE_DEVICE)
    assert batch.prefixes.tokens.shape == (1, 128)
    read: Any = generation.prefill_shared
    traced = read.trace(module, params, *batch)
    assert CALLS[platform][0] in program(traced, platform)
    prefilled = read.eval_shape(module, params, *batch)

    # 2) Decoding.
    weights = np.zeros((2, 1), np.float32)
    begin: Any = generation.init_decode
    options = {"max_new_tokens": 8, "stops": STOPS}
    assert program(begin.trace(prefilled, weights, **options), platform)
    state = begin.eval_shape(prefilled, weights, **options)
    decode: Any = generation.decode_steps
    text = program(decode.trace(module, params, state, 8, stops=STOPS), platform)
    assert num_overwritten(text) == len(jax.tree.leaves(state))
    gather: Any = generation.gather_answers
    assert program(gather.trace(state, np.zeros((1, 1), np.int32)), platform)

    # 3) Scoring the candidates.
    candidates = [(5, 6), (7,)]
    answers = pack_answers([candidates, candidates], STOPS, max_new_tokens=8, num_answers=2)
    score: Any = answer_scoring.score_answers
    numbers = np.array([[0, 1]], np.int32)
    assert program(score.trace(module, params, prefilled, numbers, answers, stops=STOPS), platform)
