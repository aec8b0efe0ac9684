"""Choosing an answer: the language model's log-probabilities of each choice, under one of four rules.

The rules are those of `data/eval_tasks/task.py`. Where chunks are retrieved, a choice's probability is mixed
over them by Eq. 2 before the rule is applied. No terminator is scored.
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
from radit_jax.data.batches.prefix_trees import answer_ids
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
    by_chunk: Float[np.ndarray, "K C"]  # the same under each of the K chunks, before they are mixed


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
    """Each item's choice; and counts over all prompts: `truncated` Backgrounds, and `shots_dropped`.

    With `retrieval`, each chunk of an item is the Background of a prompt of its own, and Eq. 2 mixes a
    choice's probabilities under these prompts. With `concatenate` too, all chunks are one Background in one
    prompt, and nothing is mixed. Without `retrieval`, prompts have no Background. `shots[i]` are those of
    item i in the order of its prompt, so the last is right before the question.
    """
    if not all(item.choices for item in items):
        raise ValueError("choose: expected items with choices, got one without. Generate its answers.")
    if retrieval is None:
        retrieval = Retrieval.none(len(items))
    if shots is None:
        shots = [()] * len(items)

    results: list[ChoiceResult] = []
    counts = Counter(shots_dropped=0, truncated=0)
    for start in range(0, len(items), ITEMS_PER_BLOCK):
        block = slice(start, start + ITEMS_PER_BLOCK)
        block_items = items[block]

        # 1) log p of every choice under each Background. `counts` grows by the block's prompts.
        part = retrieval.part(block)
        backgrounds = part.concatenated() if concatenate else part.backgrounds()
        by_item = _log_probs(
            scorer,
            block_items,
            backgrounds,
            shots[block],
            counts,
            bar,
        )

        # 2) The rule's scores of the mixture, and the best choice by them. `nll_compl` compares log p with
        # the question to log p without it, the prior.
        priors = _priors(scorer, block_items) if rule == "nll_compl" else {}
        for item, by_chunk, weights in zip(block_items, by_item, backgrounds.log_probs, strict=True):
            log_probs = _mixed(by_chunk, weights)
            scores = rule_scores(rule, log_probs, item.choices, priors)
            choice = int(np.argmax(scores))
            results.append(ChoiceResult(choice, scores, log_probs, by_chunk))
    return results, counts


def rule_scores(
    rule: ScoringRule,
    log_probs: Float[np.ndarray, " C"],
    choices: Sequence[Choice],
    priors: Mapping[str, float],
) -> Float[np.ndarray, " C"]:
    """The scores by which choices are compared; `priors` are log p(scored | "Answer:")."""
    if rule == "per_character":
        num_characters = [max(1, len(choice.scored.strip())) for choice in choices]
        return log_probs / np.array(num_characters, np.float32)
    if rule == "nll_compl":
        choice_priors = [priors[choice.scored] for choice in choices]
        return log_probs - np.array(choice_priors, np.float32)
    return log_probs


def _log_probs(
    scorer: PairScorer,
    items: Sequence[EvalExample],
    backgrounds: Backgrounds,
    shots: Sequence[Shots],
    counts: Counter[str],
    bar: Progress | None,
) -> list[Float[np.ndarray, "_ _"]]:
    """log p(scored | prompt) of each item's choices under each of its Backgrounds: [K, C]."""
    # 1) Score all choices under all Backgrounds, in the order of items, Backgrounds and choices.
    trees: list[PrefixTree] = []
    for item, passages, item_shots in zip(items, backgrounds.passages, shots, strict=True):
        groups = _with_one_prompt(item.choices)
        for passage, choices in itertools.product(passages, groups):
            trees += _trees(scorer, choices, passage, item_shots, counts)
    scores = scorer.score_trees(trees, bar)

    # 2) Cut the scores into one matrix (Backgrounds, choices) an item.
    by_item = []
    start = 0
    for item, passages in zip(items, backgrounds.passages, strict=True):
        shape = (len(passages), len(item.choices))
        end = start + shape[0] * shape[1]
        by_item.append(scores[start:end].reshape(shape))
        start = end
    return by_item


def _with_one_prompt(choices: Sequence[Choice]) -> Iterable[Sequence[Choice]]:
    """The choices as groups that share their prompt: all of them, or each by itself."""
    # WinoGrande's options are in the prompt, other tasks' choices come after it.
    prompts = {choice.prompt for choice in choices}
    if len(prompts) == 1:
        return [choices]
    return [[choice] for choice in choices]


def _trees(
    scorer: PairScorer,
    choices: Sequence[Choice],
    passage: str | None,
    shots: Shots,
    counts: Counter[str],
) -> list[PrefixTree]:
    """The prompt as a prefix with the choices as continuations; one tree each where a row is too short."""
    tokenizer = scorer.model.tokenizer
    row_length = scorer.settings.sequence_length

    # A continuation's tokens count with weight 1, the prefix's with 0.
    continuations = [span(answer_ids(tokenizer, choice.scored), 1.0) for choice in choices]
    sizes = [len(continuation.tokens) for continuation in continuations]
    max_length = row_length - max(sizes)
    prompt = few_shot_prompt(
        tokenizer,
        shots,
        passage,
        choices[0].prompt,
        max_length=max_length,
    )
    counts.update(shots_dropped=prompt.shots_dropped, truncated=prompt.truncated)
    prefix = span(prompt.tokens)

    # A row limits the tokens of a tree, and how many of them may be scored.
    num_scored = sum(sizes)
    if len(prompt.tokens) + num_scored <= row_length and num_scored <= scorer.targets_per_row:
        return [PrefixTree(prefix, tuple(continuations))]
    return [PrefixTree(prefix, (continuation,)) for continuation in continuations]


def _priors(
    scorer: PairScorer,
    items: Sequence[EvalExample],
) -> dict[str, float]:
    """log p(scored | "Answer:") of every scored text."""
    tokenizer = scorer.model.tokenizer
    choices = itertools.chain.from_iterable(item.choices for item in items)
    texts = list(dict.fromkeys(choice.scored for choice in choices))

    # Many items have the same choices, such as yes and no: each text is scored once.
    prefix = span(tokenizer.encode_prompt(PRIOR_PROMPT))
    trees = []
    for text in texts:
        continuation = span(answer_ids(tokenizer, text), 1.0)
        trees.append(PrefixTree(prefix, (continuation,)))
    log_probs = scorer.score_trees(trees).tolist()
    return dict(zip(texts, log_probs, strict=True))


def _mixed(
    by_chunk: Float[np.ndarray, "K C"],
    log_probs: Float[np.ndarray, " K"],
) -> Float[np.ndarray, " C"]:
    """Eq. 2 for every choice: its log-probabilities under K chunks, mixed by `log_probs`, log p_R."""
    # `ensemble_log_prob` mixes over the last axis.
    by_choice = by_chunk.T
    weights = np.broadcast_to(log_probs[None], by_choice.shape)
    chunk_mask = jnp.ones(by_choice.shape, bool)
    mixed = ensemble_log_prob(jnp.asarray(by_choice), jnp.asarray(weights), chunk_mask)
    return np.asarray(mixed)
