"""What the LSR scores can teach, before R-ft spends an hour on them.

R-ft moves p_R(c|x) to p_LSR(c|x, y). It learns nothing where the target is flat, where p_R is so sharp that
its softmax passes no gradient, or where the language model chooses no better than the retriever does. Where
p_R is almost uniform, as of cosines at temperature 1, Eq. 2 mixes all chunks alike whatever was learnt.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from radit_jax.config import RFtConfig
from radit_jax.method.losses import SATURATED, lsr_log_prob, retrieval_log_prob

FLAT = 0.9  # a target is flat where its effective number of chunks is above this share of all its chunks
SHARP = 0.99  # a target is one-hot where one chunk has more than this
MOST = 0.5  # the share of examples from which on a warning is due
UNIFORM = 0.05  # of the way from 1/k to 1: where p_R's highest stands on average below it, a warning is due

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
    judged: Bool[np.ndarray, " E"]  # the two above mean something: a question, and not one of yes or no


def diagnose(signal: LsrStatistics, settings: RFtConfig) -> Diagnostics:
    """How much the scores can teach; a figure is None where no example has a say in it.

    Shares and means are over examples. The shapes of p_R and p_LSR are those of examples with two chunks or
    more: `highest_p_R` is the mean of max p_R, and `lead_of_highest` the mean of where that stands between
    1/k (0) and 1 (1), whatever an example's k. A chunk is *useful* if it is gold or holds an answer;
    `useful_*` and `mixed_*` are over the judged examples, `mixed_*` over those of them whose candidates are
    neither all useful nor all useless, the ones that have something to rank. Chunks that tie for the first
    place share it.
    `supervised_tokens` is the share of answer tokens in all that the language model reads with a chunk.
    """
    mask = signal.chunk_mask
    retriever, lm = _distributions(signal, settings)
    return {
        "examples": len(mask),
        **_shapes(retriever, lm, mask),
        "gain_over_no_chunk": _gain_over_no_chunk(signal),
        **_usefulness(signal, retriever, lm),
        "truncated_pairs": int((signal.truncated & mask).sum()),
        "truncated_examples": int((signal.truncated & mask).any(axis=1).sum()),
        "supervised_tokens": _supervised_tokens(signal),
    }


def warnings(diagnostics: Diagnostics, settings: RFtConfig) -> list[str]:
    """What to change, by the setting's name, where most targets are flat or most p_R saturated."""
    found = []
    if (diagnostics["flat_targets"] or 0) > MOST:
        found.append(
            f"score: {diagnostics['flat_targets']:.0%} of the targets p_LSR are flat "
            f"({diagnostics['effective_chunks']:.1f} effective chunks), needed is a preference among chunks; "
            f"lower r_ft.tau, now {settings.tau:g}{_other_form(settings)}"
        )
    if (diagnostics["saturated_queries"] or 0) > MOST:
        found.append(
            f"score: p_R is above {SATURATED} on one chunk for {diagnostics['saturated_queries']:.0%} "
            "of the queries, where it passes no gradient, needed is a softer one; "
            f"raise the score temperature r_ft.temperature, now {settings.temperature:g}"
        )
    lead = diagnostics["lead_of_highest"]
    if lead is not None and lead < UNIFORM:
        found.append(
            f"score: expected p_R to prefer some chunks, got an almost uniform one: its highest is "
            f"{diagnostics['highest_p_R']:.3f} on average. Lower the score temperature r_ft.temperature, now "
            f"{settings.temperature:g}; cosines need about 0.05."
        )
    return found


def _other_form(settings: RFtConfig) -> str:
    # The probabilities of a weak language model lie too close together for any sensible τ.
    if settings.lm_score in ("token_geomean", "prob"):
        return ", or set r_ft.lm_score=mean_log_prob with r_ft.tau=0.25"
    return ""


def _distributions(
    signal: LsrStatistics, settings: RFtConfig
) -> tuple[Float[np.ndarray, "E K"], Float[np.ndarray, "E K"]]:
    """The logarithms of p_R (Eq. 2) and p_LSR (Eq. 4) under the settings of R-ft."""
    scores, log_probs, counts, mask = map(
        jnp.asarray,
        (signal.retrieval_scores, signal.answer_log_probs, signal.answer_token_counts, signal.chunk_mask),
    )
    retriever = retrieval_log_prob(scores, mask, settings.temperature)
    lm = lsr_log_prob(log_probs, counts, mask, form=settings.lm_score, tau=settings.tau)
    return np.asarray(retriever), np.asarray(lm)


def _shapes(
    retriever: Float[np.ndarray, "E K"], lm: Float[np.ndarray, "E K"], mask: Bool[np.ndarray, "E K"]
) -> Diagnostics:
    number = mask.sum(axis=1)
    choice = number >= 2
    effective = np.exp(_entropy(lm))
    highest = np.exp(retriever).max(axis=1)
    lead = (number * highest - 1) / np.maximum(number - 1, 1)
    correlation = spearman(retriever, lm, mask)
    return {
        "effective_chunks": _mean(effective, choice),
        "flat_targets": _mean(effective > FLAT * number, choice),
        "one_hot_targets": _mean(np.exp(lm).max(axis=1) > SHARP, choice),
        "highest_p_R": _mean(highest, choice),
        "lead_of_highest": _mean(lead, choice),
        "saturated_queries": _mean(highest > SATURATED, choice),
        "spearman": _mean(correlation, np.isfinite(correlation)),
    }


def _gain_over_no_chunk(signal: LsrStatistics) -> float | None:
    """Nats per answer token by which an example's chunks raise its answer over none, on average."""
    mask, tokens = signal.chunk_mask, np.maximum(signal.answer_token_counts, 1)
    gains = np.where(mask, signal.answer_log_probs - signal.no_chunk_log_probs[:, None], 0.0).sum(axis=1)
    return _mean(gains / np.maximum(mask.sum(axis=1), 1) / tokens, np.any(mask, axis=1))


def _usefulness(
    signal: LsrStatistics, retriever: Float[np.ndarray, "E K"], lm: Float[np.ndarray, "E K"]
) -> Diagnostics:
    mask = signal.chunk_mask
    useful = (signal.holds_answer | signal.gold) & mask
    judged = signal.judged & mask.any(axis=1)
    mixed = judged & useful.any(axis=1) & (mask & ~useful).any(axis=1)
    by_lm, by_retriever = _first_is(useful, lm), _first_is(useful, retriever)
    return {
        "judged_examples": int(judged.sum()),
        "gold_among_candidates": _mean(np.any(signal.gold & mask, axis=1), judged),
        "answer_among_candidates": _mean(np.any(signal.holds_answer & mask, axis=1), judged),
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

    Of a flat target the first by position would be the retriever's choice, and count as the LM's.
    """
    first = log_probs == log_probs.max(axis=1, keepdims=True)
    return (first & useful).sum(axis=1) / first.sum(axis=1)


def _supervised_tokens(signal: LsrStatistics) -> float | None:
    read = int(signal.token_counts[signal.chunk_mask].sum())
    answers = int((signal.answer_token_counts * signal.chunk_mask.sum(axis=1)).sum())
    return answers / read if read else None


def _mean(values: np.ndarray, where: Bool[np.ndarray, " E"]) -> float | None:
    return float(values[where].mean()) if where.any() else None
