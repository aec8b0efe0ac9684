"""95 % bootstrap intervals: percentiles of the mean when whole groups of questions are resampled."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

Figure = dict[str, float | None]  # "value", "low" and "high"
# Entries of the matrix (samples, groups) that are in memory at once: 64 MiB of int64.
_AT_ONCE = 1 << 23


def bootstrap_interval(
    values: Float[np.ndarray, " B"],
    groups: Sequence[str],
    *,
    samples: int = 1000,
    seed: int,
) -> Figure:
    """The mean over B questions with its 95 % percentile interval: `{"value", "low", "high"}`.

    Results of questions on one entity or passage depend on each other, so whole groups are drawn, with
    replacement; a sample's mean is over the questions of its groups. `groups` names each question's group.
    Without questions every entry is None. A single group says nothing of how much groups differ, so it has a
    value and no interval.
    """
    if len(values) != len(groups):
        raise ValueError(
            f"bootstrap_interval: expected a group for every value, got {len(groups)} groups for "
            f"{len(values)} values. Name each value's group."
        )
    if not len(values):
        return _without_interval(None)
    value = float(np.mean(values))
    if len(set(groups)) == 1:
        return _without_interval(value)
    rng = np.random.default_rng(seed)
    sample_means = _sample_means(values, groups, samples, rng)
    return _figure(value, sample_means)


def average_interval(
    values: Sequence[Float[np.ndarray, " _"]],
    groups: Sequence[Sequence[str]],
    *,
    samples: int = 1000,
    seed: int,
) -> Figure:
    """The mean of several sets' means, each set with the same weight, with its 95 % percentile interval.

    Each set is resampled by itself, so the interval says how these sets' questions vary, not how sets vary.
    There is no interval where a set is a single group.
    """
    # Not the mean over all questions: a large set would outweigh the others.
    set_means = [np.mean(set_values) for set_values in values]
    value = float(np.mean(set_means))
    num_groups = [len(set(set_groups)) for set_groups in groups]
    if 1 in num_groups:
        return _without_interval(value)

    # Sets have random numbers of their own, so that their samples are independent.
    rngs = np.random.default_rng(seed).spawn(len(values))
    sample_means = []
    for set_values, set_groups, rng in zip(values, groups, rngs, strict=True):
        sample_means.append(_sample_means(set_values, set_groups, samples, rng))
    return _figure(value, np.mean(sample_means, axis=0))


def with_interval(figure: Mapping[str, float | None] | None) -> str:
    """A figure as a person reads it: the value with its 95 % interval; "–" where no question has the metric.

    A value without an interval is over a single group of questions (see `bootstrap_interval`).

    >>> with_interval({"value": 0.5, "low": 0.25, "high": 0.75})
    '0.500 [0.250, 0.750]'
    >>> with_interval({"value": 0.5, "low": None, "high": None})
    '0.500 [one group]'
    """
    if figure is None or figure["value"] is None:
        return "–"
    value, low, high = figure["value"], figure["low"], figure["high"]
    if low is None:
        return f"{value:.3f} [one group]"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _without_interval(value: float | None) -> Figure:
    return {"value": value, "low": None, "high": None}


def _figure(value: float, sample_means: Float[np.ndarray, " S"]) -> Figure:
    # 95 % of the samples are between these two.
    low, high = np.percentile(sample_means, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high)}


def _sample_means(
    values: Float[np.ndarray, " B"],
    groups: Sequence[str],
    samples: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, " S"]:
    """The mean over questions in each of S bootstrap samples of groups."""
    # A group enters a mean by its number of questions and their sum.
    _, group_of_value = np.unique(np.asarray(groups), return_inverse=True)
    group_sizes = np.bincount(group_of_value).astype(np.float64)
    group_sums = np.bincount(group_of_value, weights=values)
    num_groups = len(group_sizes)

    # Samples are drawn in blocks that fit into memory; the generator goes on from block to block.
    equal_chances = np.full(num_groups, 1 / num_groups)
    block_size = max(1, _AT_ONCE // num_groups)
    means = []
    for start in range(0, samples, block_size):
        num_samples = min(block_size, samples - start)
        # draws[s, g]: how often group g was drawn into sample s.
        draws = rng.multinomial(num_groups, equal_chances, size=num_samples)
        sums = draws @ group_sums
        num_values = draws @ group_sizes
        means.append(sums / num_values)
    return np.concatenate(means)


def paired_gain(
    after: Float[np.ndarray, " B"],
    before: Float[np.ndarray, " B"],
    groups: Sequence[str],
    *,
    samples: int = 1000,
    seed: int,
) -> Figure:
    """The mean of `after − before` on the same questions, with its interval.

    Both are resampled together, so questions that are easy for both systems do not widen the interval.
    """
    return bootstrap_interval(after - before, groups, samples=samples, seed=seed)
