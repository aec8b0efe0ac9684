"""What the LSR scores can teach, before R-ft spends an hour on them.

R-ft moves p_R(c|x) towards p_LSR(c|x, y). It learns nothing if the target is flat, if p_R is so sharp that
its softmax passes no gradient, or if the language model chooses no better than the retriever. If p_R is
almost uniform, as for cosines at temperature 1, Eq. 2 weighs all chunks the same, whatever R-ft has learnt.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from radit_jax.config import RFtConfig
from radit_jax.method.losses import SATURATED, lsr_log_prob, retrieval_log_prob

FLAT = 0.9  # a target is flat if its effective number of chunks is above this share of all its chunks
SHARP = 0.99  # a target is one-hot if one chunk has a higher probability than this
WARNING_SHARE = 0.5  # a warning is given if it concerns more than this share of the examples
UNIFORM = 0.05  # of the way from 1/k to 1: a warning is given if max p_R is below it on average

Diagnostics = dict[str, int | float | None]
ChunkLogProbs = Float[np.ndarray, "E K"]  # of p_R or p_LSR, in nats
ChunkMask = Bool[np.ndarray, "E K"]
PerExample = Float[np.ndarray, " E"]


@dataclass(frozen=True)
class LsrStatistics:
    """E examples with K candidate chunks each; log-probabilities are nats, summed over an answer's tokens."""

    chunk_mask: Bool[np.ndarray, "E K"]
    retrieval_scores: Float[np.ndarray, "E K"]  # s(q, c), before the temperature
    answer_log_probs: Float[np.ndarray, "E K"]
    no_chunk_log_probs: Float[np.ndarray, " E"]
    answer_token_counts: Int[np.ndarray, " E"]
    token_counts: Int[np.ndarray, "E K"]  # chunk, prompt and answer, as the language model read them
    truncated: Bool[np.ndarray, "E K"]  # the chunk was cut to fit the row
    holds_answer: Bool[np.ndarray, "E K"]
    gold: Bool[np.ndarray, "E K"]
    judged: Bool[np.ndarray, " E"]  # the answer is not just yes or no, so that the two above mean something


def diagnose(statistics: LsrStatistics, settings: RFtConfig, temperature: float) -> Diagnostics:
    """How much the scores can teach; a figure over no example is None.

    Shares and means are over examples; those of the shapes of p_R and p_LSR, over examples with two chunks or
    more. `highest_p_R` is the mean of max p_R. `lead_of_highest` is the mean of its place on the way from 1/k
    (0) to 1 (1), whatever an example's k.

    A chunk is *useful* if it is gold or holds an answer. `useful_*` are over the judged examples, `mixed_*`
    over those of them whose candidates are neither all useful nor all useless, so that there is something to
    rank. Chunks that tie for the first place share it.

    `supervised_tokens` is the share of answer tokens in what the language model reads with a chunk.
    """
    mask = statistics.chunk_mask
    retriever, lm = _distributions(statistics, settings, temperature)
    truncated = statistics.truncated & mask
    return {
        "examples": len(mask),
        **_shapes(retriever, lm, mask),
        "gain_over_no_chunk": _gain_over_no_chunk(statistics),
        **_usefulness(statistics, retriever, lm),
        "truncated_pairs": int(truncated.sum()),
        "truncated_examples": int(truncated.any(axis=1).sum()),
        "supervised_tokens": _supervised_tokens(statistics),
    }


def warnings(diagnostics: Diagnostics, settings: RFtConfig, temperature: float) -> list[str]:
    """Which setting to change where most targets are flat, or p_R is saturated or almost uniform."""
    messages = []

    # The target: p_LSR.
    flat = diagnostics["flat_targets"] or 0
    if flat > WARNING_SHARE:
        effective = diagnostics["effective_chunks"]
        messages.append(
            "score: expected targets p_LSR that prefer some chunks, "
            f"got {flat:.0%} flat ones ({effective:.1f} effective chunks). "
            f"Lower r_ft.tau, now {settings.tau:g}{_other_form(settings)}."
        )

    # What is trained: p_R, too sharp or too flat.
    saturated = diagnostics["saturated_queries"] or 0
    if saturated > WARNING_SHARE:
        messages.append(
            "score: expected a p_R that passes a gradient, "
            f"got one above {SATURATED} on one chunk for {saturated:.0%} of the queries. "
            f"Raise the score temperature retrieve.temperature, now {temperature:g}."
        )
    lead = diagnostics["lead_of_highest"]
    if lead is not None and lead < UNIFORM:
        highest = diagnostics["highest_p_R"]
        messages.append(
            "score: expected p_R to prefer some chunks, "
            f"got an almost uniform one: its highest is {highest:.3f} on average. "
            f"Lower the score temperature retrieve.temperature, now {temperature:g}; "
            "cosines need about 0.05."
        )
    return messages


def _other_form(settings: RFtConfig) -> str:
    # The probabilities of a weak language model lie too close together for any sensible τ.
    if settings.lm_score in ("token_geomean", "prob"):
        return ", or set r_ft.lm_score=mean_log_prob with r_ft.tau=0.25"
    return ""


def _distributions(
    statistics: LsrStatistics, settings: RFtConfig, temperature: float
) -> tuple[ChunkLogProbs, ChunkLogProbs]:
    """The logarithms of p_R (Eq. 2) and p_LSR (Eq. 4) under R-ft's settings and p_R's temperature."""
    mask = jnp.asarray(statistics.chunk_mask)
    scores = jnp.asarray(statistics.retrieval_scores)
    retriever = retrieval_log_prob(scores, mask, temperature)

    log_probs = jnp.asarray(statistics.answer_log_probs)
    counts = jnp.asarray(statistics.answer_token_counts)
    lm = lsr_log_prob(log_probs, counts, mask, form=settings.lm_score, tau=settings.tau)
    return np.asarray(retriever), np.asarray(lm)


def _shapes(
    retriever: ChunkLogProbs,
    lm: ChunkLogProbs,
    mask: ChunkMask,
) -> Diagnostics:
    """How sharp p_R and p_LSR are, and how alike they rank the chunks."""
    num_chunks = mask.sum(axis=1)
    has_choice = num_chunks >= 2

    # The effective number of chunks is the exponential of the entropy.
    effective = np.exp(_entropy(lm))
    highest_of_lm = np.exp(lm).max(axis=1)

    # Where max p_R lies between its least value, 1/k, and 1.
    highest = np.exp(retriever).max(axis=1)
    num_others = np.maximum(num_chunks - 1, 1)
    lead = (num_chunks * highest - 1) / num_others

    correlation = spearman(retriever, lm, mask)
    return {
        "effective_chunks": _mean(effective, has_choice),
        "flat_targets": _mean(effective > FLAT * num_chunks, has_choice),
        "one_hot_targets": _mean(highest_of_lm > SHARP, has_choice),
        "highest_p_R": _mean(highest, has_choice),
        "lead_of_highest": _mean(lead, has_choice),
        "saturated_queries": _mean(highest > SATURATED, has_choice),
        "spearman": _mean(correlation, np.isfinite(correlation)),
    }


def _gain_over_no_chunk(statistics: LsrStatistics) -> float | None:
    """Nats per answer token that a chunk adds to the answer's log-probability without one, on average."""
    mask = statistics.chunk_mask
    # Empty answers and examples without chunks are divided by 1.
    num_tokens = np.maximum(statistics.answer_token_counts, 1)
    num_chunks = np.maximum(mask.sum(axis=1), 1)
    gains = statistics.answer_log_probs - statistics.no_chunk_log_probs[:, None]
    total = np.where(mask, gains, 0.0).sum(axis=1)
    per_token = total / num_chunks / num_tokens
    return _mean(per_token, np.any(mask, axis=1))


def _usefulness(
    statistics: LsrStatistics,
    retriever: ChunkLogProbs,
    lm: ChunkLogProbs,
) -> Diagnostics:
    """How often useful chunks are retrieved, and put first by the language model and by the retriever."""
    mask = statistics.chunk_mask
    gold = statistics.gold & mask
    holds_answer = statistics.holds_answer & mask
    useful = holds_answer | gold
    useless = mask & ~useful

    # Over these examples the shares are taken.
    judged = statistics.judged & mask.any(axis=1)
    has_both = useful.any(axis=1) & useless.any(axis=1)
    mixed = judged & has_both
    by_lm = _first_is(useful, lm)
    by_retriever = _first_is(useful, retriever)
    return {
        "judged_examples": int(judged.sum()),
        "gold_among_candidates": _mean(np.any(gold, axis=1), judged),
        "answer_among_candidates": _mean(np.any(holds_answer, axis=1), judged),
        "useful_lm_first": _mean(by_lm, judged),
        "useful_retriever_first": _mean(by_retriever, judged),
        "mixed_examples": int(mixed.sum()),
        "mixed_lm_first": _mean(by_lm, mixed),
        "mixed_retriever_first": _mean(by_retriever, mixed),
    }


def spearman(
    a: Float[np.ndarray, "E K"],
    b: Float[np.ndarray, "E K"],
    mask: ChunkMask,
) -> PerExample:
    """Rank correlation of each row's unmasked entries; NaN where one side does not rank them at all."""
    ranks_a = _centred_ranks(a, mask)
    ranks_b = _centred_ranks(b, mask)
    product = (ranks_a * ranks_b).sum(axis=1)
    squares_a = (ranks_a**2).sum(axis=1)
    squares_b = (ranks_b**2).sum(axis=1)
    scale = np.sqrt(squares_a * squares_b)

    is_ranked = scale > 0
    correlation = product / np.where(is_ranked, scale, 1.0)
    return np.where(is_ranked, correlation, np.nan)


def _centred_ranks(
    values: Float[np.ndarray, "E K"],
    mask: ChunkMask,
) -> Float[np.ndarray, "E K"]:
    """Ranks with mean 0 in each row: half the number of smaller entries minus the number of larger ones."""
    # Compare every entry of a row with every other.
    entry = values[:, :, None]
    other = values[:, None, :]
    is_pair = mask[:, :, None] & mask[:, None, :]
    num_smaller = (is_pair & (entry > other)).sum(axis=2)
    num_larger = (is_pair & (entry < other)).sum(axis=2)
    return (num_smaller - num_larger) / 2


def _entropy(log_probs: ChunkLogProbs) -> PerExample:
    """−Σ p log p of each row in nats, where 0 · log 0 is 0."""
    probs = np.exp(log_probs)
    finite_log_probs = np.where(probs > 0, log_probs, 0.0)
    return -(probs * finite_log_probs).sum(axis=1)


def _first_is(
    useful: ChunkMask,
    log_probs: ChunkLogProbs,
) -> PerExample:
    """The share of useful chunks among those that have the row's highest probability.

    Taking the first by position would credit the LM with the retriever's choice where a target is flat.
    """
    is_first = log_probs == log_probs.max(axis=1, keepdims=True)
    num_useful = (is_first & useful).sum(axis=1)
    return num_useful / is_first.sum(axis=1)


def _supervised_tokens(statistics: LsrStatistics) -> float | None:
    """Answer tokens over all tokens of the pairs of an example and a chunk."""
    mask = statistics.chunk_mask
    num_tokens = int(statistics.token_counts[mask].sum())
    answer_tokens = statistics.answer_token_counts * mask.sum(axis=1)
    num_answer_tokens = int(answer_tokens.sum())
    return num_answer_tokens / num_tokens if num_tokens else None


def _mean(
    values: PerExample | Bool[np.ndarray, " E"],
    where: Bool[np.ndarray, " E"],
) -> float | None:
    if not where.any():
        return None
    return float(values[where].mean())
