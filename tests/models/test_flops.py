"""Operations counted by hand."""

import dataclasses

import jax.numpy as jnp
import pytest

from radit_jax.config import DecoderConfig, LoraConfig
from radit_jax.models.flops import attended_pairs, pairs_at, training_flops

SHAPE = DecoderConfig(
    vocab_size=50, hidden_size=10, num_layers=2, num_heads=3, num_kv_heads=1, head_size=4, ffn_size=7
)
# q and o 10 × 12, k and v 10 × 4, gate, up and down 10 × 7: of one layer.
KERNELS = 2 * 120 + 2 * 40 + 3 * 70
SEVEN_B = DecoderConfig(
    vocab_size=32000,
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_size=128,
    ffn_size=11008,
)


def test_a_multiply_add_is_two_and_the_backward_pass_twice_the_forward_pass():
    assert training_flops(SHAPE, tokens=5.0, attended=0.0, targets=0.0) == 3 * 2 * 5 * 2 * KERNELS
    assert training_flops(SHAPE, tokens=0.0, attended=15.0, targets=0.0) == 3 * 2 * 15 * 2 * (2 * 12)
    assert training_flops(SHAPE, tokens=0.0, attended=0.0, targets=4.0) == 3 * 2 * 4 * 500


def test_a_local_layer_sees_its_window_and_the_mean_is_of_all_layers():
    """Two layers, of which the second is global: positions 0 to 4 see 1 to 5, in the window 1 to 3."""
    local = dataclasses.replace(SHAPE, family="gemma2", window=3, global_every=2, query_divisor=4)
    assert pairs_at(local, jnp.arange(5)).tolist() == [1, 2, 3, 3.5, 4]
    assert attended_pairs(local, sequences=2.0, length=5) == 2 * 13.5
    all_local = dataclasses.replace(local, global_every=0)
    assert attended_pairs(all_local, sequences=1.0, length=5) == 1 + 2 + 3 + 3 + 3
    assert attended_pairs(SHAPE, sequences=1.0, length=5) == 15
    # Both layers' pairs have a score and a value in 3 heads of 4.
    assert training_flops(local, tokens=0.0, attended=13.5, targets=0.0) == 3 * 2 * (12 + 15) * 2 * 12


def test_under_lora_frozen_weights_have_no_gradient_and_adapters_come_in():
    lora = LoraConfig(rank=3, targets=("q_proj", "down_proj"))
    adapters = 2 * 3 * ((10 + 12) + (7 + 10))
    expected = 2 * (2 * (5 * 2 * KERNELS + 4 * 500) + 3 * (15 * 2 * 2 * 12 + 5 * adapters))
    assert training_flops(SHAPE, tokens=5.0, attended=15.0, targets=4.0, lora=lora) == expected
    whole = {"tokens": 5.0, "attended": 15.0, "targets": 4.0}
    assert training_flops(SHAPE, **whole, lora=LoraConfig()) == training_flops(SHAPE, **whole)


def test_seven_billion_parameters_take_six_operations_each_and_token_and_attention_a_little():
    tokens = 2048.0
    found = training_flops(SEVEN_B, tokens=tokens, attended=tokens * (tokens + 1) / 2, targets=tokens)
    parameters = 6_738_415_616 - 32000 * 4096 - 65 * 4096  # without the embedding and the norms
    assert found == pytest.approx(6 * parameters * tokens * 1.04, rel=0.005)
