"""What the LSR scores can teach, before R-ft spends an hour on them.

R-ft moves p_R(c|x) to p_LSR(c|x, y). It learns nothing where the target is flat, where p_R is so sharp that
its softmax passes no gradient, or where the language model chooses no better than the retriever does. Where
p_R is almost uniform, as for cosines at temperature 1, Eq. 2 weighs all chunks the same whatever was learnt.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from radit_jax.config import RFtConfig
from radit_jax.method.losses import SATURATED, lsr_log_prob, retrieval_log_prob

FLAT = 0.9  # a target is flat where its effective number of chunks is above this share of all its chunks
SHARP = 0.99  # a target is one-hot where one chunk has more than this
WARNING_SHARE = 0.5  # a warning is given where more than this share of the examples is concerned
UNIFORM = 0.05  # of the way from 1/k to 1: where max p_R is below it on average, a warning is given

Diagnostics = dict[str, int | float | None]


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
    judged: Bool[np.ndarray, " E"]  # has an answer other than yes or no, so that the two above mean something


def diagnose(statistics: LsrStatistics, settings: RFtConfig) -> Diagnostics:
    """How much the scores can teach; a figure is None where it is over no example.

    Shares and means are over examples. The shapes of p_R and p_LSR are those of examples with two chunks or
    more: `highest_p_R` is the mean of max p_R, and `lead_of_highest` the mean of where that stands between
    1/k (0) and 1 (1), whatever an example's k. A chunk is *useful* if it is gold or holds an answer;
    `useful_*` and `mixed_*` are over the judged examples, `mixed_*` over those of them whose candidates are
    neither all useful nor all useless, so that there is something to rank. Chunks that tie for the first
    place share it.

    `supervised_tokens` is the share of answer tokens in all that the language model reads with a chunk.
    """
    mask = statistics.chunk_mask
    retriever, lm = _distributions(statistics, settings)
    return {
        "examples": len(mask),
        **_shapes(retriever, lm, mask),
        "gain_over_no_chunk": _gain_over_no_chunk(statistics),
        **_usefulness(statistics, retriever, lm),
        "truncated_pairs": int((statistics.truncated & mask).sum()),
        "truncated_examples": int((statistics.truncated & mask).any(axis=1).sum()),
        "supervised_tokens": _supervised_tokens(statistics),
    }


def warnings(diagnostics: Diagnostics, settings: RFtConfig) -> list[str]:
    """What to change, by the setting's name, where most targets are flat, or p_R is saturated or uniform."""
    messages = []
    if (diagnostics["flat_targets"] or 0) > WARNING_SHARE:
        messages.append(
            "score: expected targets p_LSR that prefer some chunks, got "
            f"{diagnostics['flat_targets']:.0%} flat ones "
            f"({diagnostics['effective_chunks']:.1f} effective chunks). "
            f"Lower r_ft.tau, now {settings.tau:g}{_other_form(settings)}."
        )
    if (diagnostics["saturated_queries"] or 0) > WARNING_SHARE:
        messages.append(
            f"score: expected a p_R that passes a gradient, got one above {SATURATED} on one chunk for "
            f"{diagnostics['saturated_queries']:.0%} of the queries. "
            f"Raise the score temperature r_ft.temperature, now {settings.temperature:g}."
        )
    lead = diagnostics["lead_of_highest"]
    if lead is not None and lead < UNIFORM:
        messages.append(
            f"score: expected p_R to prefer some chunks, got an almost uniform one: its highest is "
            f"{diagnostics['highest_p_R']:.3f} on average. Lower the score temperature r_ft.temperature, now "
            f"{settings.temperature:g}; cosines need about 0.05."
        )
    return messages


def _other_form(settings: RFtConfig) -> str:
    # The probabilities of a weak language model lie too close together for any sensible τ.
    if settings.lm_score in ("token_geomean", "prob"):
        return ", or set r_ft.lm_score=mean_log_prob with r_ft.tau=0.25"
    return ""


def _distributions(
    statistics: LsrStatistics, settings: RFtConfig
) -> tuple[Float[np.ndarray, "E K"], Float[np.ndarray, "E K"]]:
    """The logarithms of p_R (Eq. 2) and p_LSR (Eq. 4) under the settings of R-ft."""
    mask = jnp.asarray(statistics.chunk_mask)
    scores = jnp.asarray(statistics.retrieval_scores)
    log_probs = jnp.asarray(statistics.answer_log_probs)
    counts = jnp.asarray(statistics.answer_token_counts)
    retriever = retrieval_log_prob(scores, mask, settings.temperature)
    lm = lsr_log_prob(log_probs, counts, mask, form=settings.lm_score, tau=settings.tau)
    return np.asarray(retriever), np.asarray(lm)


def _shapes(
    retriever: Float[np.ndarray, "E K"], lm: Float[np.ndarray, "E K"], mask: Bool[np.ndarray, "E K"]
) -> Diagnostics:
    num_chunks = mask.sum(axis=1)
    has_choice = num_chunks >= 2
    effective = np.exp(_entropy(lm))
    highest = np.exp(retriever).max(axis=1)
    lead = (num_chunks * highest - 1) / np.maximum(num_chunks - 1, 1)
    correlation = spearman(retriever, lm, mask)
    return {
        "effective_chunks": _mean(effective, has_choice),
        "flat_targets": _mean(effective > FLAT * num_chunks, has_choice),
        "one_hot_targets": _mean(np.exp(lm).max(axis=1) > SHARP, has_choice),
        "highest_p_R": _mean(highest, has_choice),
        "lead_of_highest": _mean(lead, has_choice),
        "saturated_queries": _mean(highest > SATURATED, has_choice),
        "spearman": _mean(correlation, np.isfinite(correlation)),
    }


def _gain_over_no_chunk(statistics: LsrStatistics) -> float | None:
    """Nats per answer token by which an example's chunks raise its answer over none, on average."""
    mask = statistics.chunk_mask
    num_tokens = np.maximum(statistics.answer_token_counts, 1)
    num_chunks = np.maximum(mask.sum(axis=1), 1)
    gains = statistics.answer_log_probs - statistics.no_chunk_log_probs[:, None]
    gains = np.where(mask, gains, 0.0).sum(axis=1)
    return _mean(gains / num_chunks / num_tokens, np.any(mask, axis=1))


def _usefulness(
    statistics: LsrStatistics, retriever: Float[np.ndarray, "E K"], lm: Float[np.ndarray, "E K"]
) -> Diagnostics:
    mask = statistics.chunk_mask
    useful = (statistics.holds_answer | statistics.gold) & mask
    judged = statistics.judged & mask.any(axis=1)
    mixed = judged & useful.any(axis=1) & (mask & ~useful).any(axis=1)
    by_lm, by_retriever = _first_is(useful, lm), _first_is(useful, retriever)
    return {
        "judged_examples": int(judged.sum()),
        "gold_among_candidates": _mean(np.any(statistics.gold & mask, axis=1), judged),
        "answer_among_candidates": _mean(np.any(statistics.holds_answer & mask, axis=1), judged),
        "useful_lm_first": _mean(by_lm, judged),
        "useful_retriever_first": _mean(by_retriever, judged),
        "mixed_examples": int(mixed.sum()),
        "mixed_lm_first": _mean(by_lm, mixed),
        "mixed_retriever_first": _mean(by_retriever, mixed),
    }


def spearman(
    a: Float[np.ndarray, "E K"], b: Float[np.ndarray, "E K"], mask: Bool[np.ndarray, "E K"]
) -> Float[np.ndarray, " E"]:
    """Rank correlation of each row's unmasked entries; NaN where one side does not rank them at all."""
    ranks_a, ranks_b = _centred_ranks(a, mask), _centred_ranks(b, mask)
    scale = np.sqrt((ranks_a**2).sum(axis=1) * (ranks_b**2).sum(axis=1))
    return np.where(scale > 0, (ranks_a * ranks_b).sum(axis=1) / np.where(scale > 0, scale, 1.0), np.nan)


def _centred_ranks(
    values: Float[np.ndarray, "E K"], mask: Bool[np.ndarray, "E K"]
) -> Float[np.ndarray, "E K"]:
    """Ranks with mean 0 in each row: half of how many entries are smaller minus how many are larger."""
    mine, other = values[:, :, None], values[:, None, :]
    both = mask[:, :, None] & mask[:, None, :]
    return ((both & (mine > other)).sum(axis=2) - (both & (mine < other)).sum(axis=2)) / 2


def _entropy(log_probs: Float[np.ndarray, "E K"]) -> Float[np.ndarray, " E"]:
    probs = np.exp(log_probs)
    return -(probs * np.where(probs > 0, log_probs, 0.0)).sum(axis=1)


def _first_is(
    useful: Bool[np.ndarray, "E K"], log_probs: Float[np.ndarray, "E K"]
) -> Float[np.ndarray, " E"]:
    """The share of useful ones among the chunks that have the row's highest probability.

    Taking the first by position would credit the LM with the retriever's choice where a target is flat.
    """
    first = log_probs == log_probs.max(axis=1, keepdims=True)
    return (first & useful).sum(axis=1) / first.sum(axis=1)


def _supervised_tokens(statistics: LsrStatistics) -> float | None:
    read = int(statistics.token_counts[statistics.chunk_mask].sum())
    answers = int((statistics.answer_token_counts * statistics.chunk_mask.sum(axis=1)).sum())
    return answers / read if read else None


def _mean(values: np.ndarray, where: Bool[np.ndarray, " E"]) -> float | None:
    return float(values[where].mean()) if where.any() else None
