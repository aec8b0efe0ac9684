"""Decoding and scoring one token at a time, by uncached passes in float64: what fast answering must equal."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from exact import in_float64
from scipy.special import logsumexp

from radit_jax.config import DecoderConfig
from radit_jax.method.generation import Stops
from radit_jax.models.decoder import DecoderLm

STOPS = (1, 2)
ENDS = Stops(STOPS)
MODULE = DecoderLm(
    DecoderConfig(
        vocab_size=6, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_size=8, ffn_size=24
    ),
    dtype=jnp.float64,
)
_RNG = np.random.default_rng(0)
PROMPTS = [_RNG.integers(0, 6, length).tolist() for length in (5, 3, 7, 4)]


# Gemma 3's kind, whose window is shorter than most prompts.
WINDOWED = MODULE.clone(
    config=dataclasses.replace(
        MODULE.config,
        family="gemma3",
        window=4,
        global_every=2,
        local_rope_theta=100.0,
        query_divisor=8,
    )
)
MODULES = {"llama": MODULE, "gemma3": WINDOWED}


def sharp_params(module: DecoderLm = MODULE):
    """Parameters whose next-token distributions have clear favourites."""
    with jax.enable_x64(False):
        init = jax.jit(DecoderLm(module.config).init)
        params = init(jax.random.key(2), jnp.zeros((1, 4), jnp.int32))["params"]
    return in_float64(jax.tree.map(lambda x: 25 * x if x.ndim > 1 else x, params))


def padded(prompts):
    """Rows of prompts with two unused slots after the longest, and the prompts' lengths."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    rows = np.zeros((len(prompts), lengths.max() + 2), np.int32)
    for row, prompt in zip(rows, prompts, strict=True):
        row[: len(prompt)] = prompt
    return jnp.asarray(rows), jnp.asarray(lengths)


_known: dict[tuple[int, ...], np.ndarray] = {}  # by parameters, which live as long as the tests, and tokens
_logits = jax.jit(lambda params, tokens: MODULE.apply({"params": params}, tokens))


def next_log_probs(params, tokens: list[int]) -> np.ndarray:
    """The log-probabilities of what follows `tokens`, by one uncached pass over a padded row."""
    if (key := (id(params), *tokens)) not in _known:
        row = jnp.array([tokens + [0] * (24 - len(tokens))], jnp.int32)
        logits = np.asarray(_logits(params, row)[0, len(tokens) - 1])
        _known[key] = logits - logsumexp(logits)
    return _known[key]


def slow_greedy(params, prompt: list[int], max_new_tokens: int) -> tuple[int, ...]:
    answer = ()
    while len(answer) < max_new_tokens:
        token = int(next_log_probs(params, prompt + list(answer)).argmax())
        if token in STOPS:
            break
        answer += (token,)
    return answer


def slow_log_prob(params, prompt: list[int], answer: tuple[int, ...], max_new_tokens: int) -> float:
    total = sum(next_log_probs(params, prompt + list(answer[:i]))[token] for i, token in enumerate(answer))
    if len(answer) < max_new_tokens:
        of_stops: Any = logsumexp(next_log_probs(params, prompt + list(answer))[list(STOPS)])
        total += of_stops
    return float(total)
