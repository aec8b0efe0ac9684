"""Every family of decoders against transformers, on random networks with rows longer than their window."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from exact import assert_exact, torch_in_float64
from hf_decoders import SIZES, VARIANTS, apply, decoder_pair

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
    """A random torch model with all of its parameters drawn, and ours read from its folder, in float64."""
    return decoder_pair(request.param, tmp_path_factory.mktemp(request.param))


def random_tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(1, SIZES["vocab_size"], shape).astype(np.int32)


def their_logits(theirs, tokens):
    with torch_in_float64():
        return theirs(torch.tensor(tokens).long()).logits.numpy()


def test_logits_are_those_of_transformers(pair):
    theirs, *ours = pair
    tokens = random_tokens(2, 40)
    assert_exact(apply(ours, tokens), their_logits(theirs, tokens))


def test_packed_rows_are_those_of_each_alone(pair):
    theirs, *ours = pair
    first, second = random_tokens(1, 21), random_tokens(1, 17)
    packed = np.concatenate([first, second, np.zeros((1, 4), np.int32)], axis=1)
    positions = np.array([[*range(21), *range(17), 0, 0, 0, 0]], np.int32)
    segments = np.array([[1] * 21 + [2] * 17 + [0] * 4], np.int32)
    logits = apply(ours, packed, positions=positions, segment_ids=segments)
    assert_exact(logits[:, :21], their_logits(theirs, first))
    assert_exact(logits[:, 21:38], their_logits(theirs, second))


def test_continuations_of_a_shared_prefix_are_those_of_each_alone(pair):
    """Places in the row are further apart than positions: a window by places would cut the prefix off."""
    theirs, *ours = pair
    prefix, first, second = random_tokens(1, 11), random_tokens(1, 9), random_tokens(1, 10)
    row = np.concatenate([prefix, first, second], axis=1)
    positions = np.array([[*range(11), *range(11, 20), *range(11, 21)]], np.int32)
    continuations = np.array([[0] * 11 + [1] * 9 + [2] * 10], np.int32)
    logits = apply(ours, row, positions=positions, continuation_ids=continuations)
    alone = [np.concatenate([prefix, each], axis=1) for each in (first, second)]
    assert_exact(logits[:, :20], their_logits(theirs, alone[0]))
    assert_exact(logits[:, 20:], their_logits(theirs, alone[1])[:, 11:])


def test_a_cache_with_padding_gives_the_logits_of_the_whole_row(pair):
    """Prompts of 12 and 5 tokens in 12 slots, then two blocks: slots are further apart than positions."""
    theirs, *ours = pair
    prompts, later = random_tokens(2, 12), random_tokens(2, 14)
    lengths = np.array([12, 5])
    segments = (np.arange(12)[None] < lengths[:, None]).astype(np.int32)
    _, cache = apply(ours, prompts, "extend", segment_ids=segments)
    cache = cache.grow(14)
    states = []
    for start, stop in ((0, 7), (7, 14)):
        positions = lengths[:, None] + np.arange(start, stop)[None]
        hidden, block = apply(ours, later[:, start:stop], "extend", positions=positions, cache=cache)
        cache = cache.write(block, 12 + start)
        states.append(hidden)
    module, params = ours
    logits = module.apply({"params": params}, jnp.concatenate(states, axis=1), method="logits")
    for row, length in enumerate(lengths):
        whole = np.concatenate([prompts[row, :length], later[row]])[None]
        assert_exact(logits[row], their_logits(theirs, whole)[0, length:])


def test_greedy_tokens_are_those_of_transformers(pair):
    from radit_jax.method.generation import greedy

    theirs, *ours = pair
    prompts = random_tokens(2, 12)
    with torch_in_float64():
        generated = theirs.generate(
            torch.tensor(prompts).long(),
            attention_mask=torch.ones(prompts.shape, dtype=torch.long),
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=None,
        )
    ids = greedy(*ours, jnp.asarray(prompts), jnp.array([12, 12]), max_new_tokens=16, stop_ids=())
    np.testing.assert_array_equal(ids, generated[:, 12:])
