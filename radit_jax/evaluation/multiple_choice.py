"""Choosing an answer: the language model's log-probabilities of each choice, under one of four rules.

The rules are those of `data/eval_tasks/registry.py`. Where chunks are retrieved, a choice's probability is
mixed over them by Eq. 2 before the rule is applied. No terminator is scored.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from radit_jax.data.batches.few_shot import Shot, few_shot_prompt
from radit_jax.data.batches.packing import PrefixTree, span
from radit_jax.data.eval_tasks.task import PRIOR_PROMPT, Choice, EvalExample, ScoringRule
from radit_jax.lm.answering import Backgrounds, Retrieval
from radit_jax.lm.scoring import PairScorer
from radit_jax.method.losses import ensemble_log_prob
from radit_jax.runtime.monitoring.progress import Progress

Shots = Sequence[Shot]
ITEMS_PER_BLOCK = 256  # whose prompts are in memory together


class ChoiceResult(NamedTuple):
    """The language model's choice among an item's C choices, and what it is based on."""

    choice: int  # the number of the one with the highest score, the first of equals
    scores: Float[np.ndarray, " C"]  # by the rule
    log_probs: Float[np.ndarray, " C"]  # log p(scored | prompt) in nats, mixed over the chunks


def choose(
    scorer: PairScorer,
    items: Sequence[EvalExample],
    rule: ScoringRule,
    *,
    retrieval: Retrieval | None = None,
    concatenate: bool = False,
    shots: Sequence[Shots] | None = None,
    bar: Progress | None = None,
) -> tuple[list[ChoiceResult], Counter[str]]:
    """Each item's choice; and how many prompts had their Background cut, and how many shots did not fit.

    Without `retrieval` items are asked without a Background; with `concatenate` an item's chunks are one
    Background, and nothing is mixed. `shots`, the nearest last, are each item's own.
    """
    if not all(item.choices for item in items):
        raise ValueError("choose: expected items with choices, got one without. Generate its answers.")
    retrieval = retrieval or Retrieval.none(len(items))
    shots = shots if shots is not None else [()] * len(items)
    results: list[ChoiceResult] = []
    counts = Counter(shots_dropped=0, truncated=0)
    for start in range(0, len(items), ITEMS_PER_BLOCK):
        block = slice(start, start + ITEMS_PER_BLOCK)
        part = retrieval.part(block)
        backgrounds = part.concatenated() if concatenate else part.backgrounds()
        log_probs = _log_probs(scorer, items[block], backgrounds, shots[block], counts, bar)
        priors = _priors(scorer, items[block]) if rule == "nll_compl" else {}
        for item, of_choices in zip(items[block], log_probs, strict=True):
            scores = rule_scores(rule, of_choices, item.choices, priors)
            results.append(ChoiceResult(int(np.argmax(scores)), scores, of_choices))
    return results, counts


def rule_scores(
    rule: ScoringRule,
    log_probs: Float[np.ndarray, " C"],
    choices: Sequence[Choice],
    priors: Mapping[str, float],
) -> Float[np.ndarray, " C"]:
    """The scores by which choices are compared; `priors` are log p(scored | "Answer:")."""
    if rule == "per_character":
        return log_probs / np.array([max(1, len(choice.scored.strip())) for choice in choices], np.float32)
    if rule == "nll_compl":
        return log_probs - np.array([priors[choice.scored] for choice in choices], np.float32)
    return log_probs


def _log_probs(
    scorer: PairScorer,
    items: Sequence[EvalExample],
    backgrounds: Backgrounds,
    shots: Sequence[Shots],
    counts: Counter[str],
    bar: Progress | None,
) -> list[Float[np.ndarray, " _"]]:
    """log p(scored | prompt) of each item's choices, mixed over its Backgrounds."""
    trees: list[PrefixTree] = []
    for item, passages, own_shots in zip(items, backgrounds.passages, shots, strict=True):
        for passage in passages:
            for choices in _with_one_prompt(item.choices):
                trees += _trees(scorer, choices, passage, own_shots, counts)
    scores = scorer.score_trees(trees, bar)

    # Scores are in the order of items, Backgrounds and choices.
    mixed, start = [], 0
    for item, passages, weights in zip(items, backgrounds.passages, backgrounds.log_probs, strict=True):
        shape = (len(passages), len(item.choices))
        end = start + shape[0] * shape[1]
        mixed.append(_mixed(scores[start:end].reshape(shape), weights))
        start = end
    return mixed


def _with_one_prompt(choices: Sequence[Choice]) -> Iterable[Sequence[Choice]]:
    """The choices as groups that share their prompt: all of them, or each by itself."""
    if len({choice.prompt for choice in choices}) == 1:
        return [choices]
    return [[choice] for choice in choices]


def _trees(
    scorer: PairScorer, choices: Sequence[Choice], passage: str | None, shots: Shots, counts: Counter[str]
) -> list[PrefixTree]:
    """The prompt as a prefix with the choices as continuations; one tree each where a row is too short."""
    tokenizer, length = scorer.model.tokenizer, scorer.settings.sequence_length
    continuations = [span(tokenizer.encode(choice.scored), 1.0) for choice in choices]
    sizes = [len(continuation.tokens) for continuation in continuations]
    prompt = few_shot_prompt(tokenizer, shots, passage, choices[0].prompt, max_length=length - max(sizes))
    counts.update(shots_dropped=prompt.shots_dropped, truncated=prompt.truncated)
    prefix = span(prompt.tokens)
    if len(prompt.tokens) + sum(sizes) <= length and sum(sizes) <= scorer.targets_per_row:
        return [PrefixTree(prefix, tuple(continuations))]
    return [PrefixTree(prefix, (continuation,)) for continuation in continuations]


def _priors(scorer: PairScorer, items: Sequence[EvalExample]) -> dict[str, float]:
    """log p(scored | "Answer:") of every scored text."""
    tokenizer = scorer.model.tokenizer
    choices = itertools.chain.from_iterable(item.choices for item in items)
    texts = list(dict.fromkeys(choice.scored for choice in choices))
    prefix = span(tokenizer.encode_prompt(PRIOR_PROMPT))
    trees = [PrefixTree(prefix, (span(tokenizer.encode(text), 1.0),)) for text in texts]
    return dict(zip(texts, scorer.score_trees(trees).tolist(), strict=True))


def _mixed(by_chunk: Float[np.ndarray, "K C"], log_probs: Float[np.ndarray, " K"]) -> Float[np.ndarray, " C"]:
    """Eq. 2 for every choice: its log-probabilities under K chunks, mixed by `log_probs`, log p_R."""
    weights = np.broadcast_to(log_probs[None], by_chunk.T.shape)
    mixed = ensemble_log_prob(jnp.asarray(by_chunk.T), jnp.asarray(weights), jnp.ones(by_chunk.T.shape, bool))
    return np.asarray(mixed)
