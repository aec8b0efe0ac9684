"""95 % intervals of a mean over questions that stand in groups.

They are percentiles of the mean when whole groups are resampled (bootstrap). With fewer groups than
`FEW_GROUPS` those are too narrow, and where all values are equal they have no width, however few there are.
There a share has Wilson's interval, a difference of two shares on the same questions Bonett and Price's
(Communications in Statistics, 2012), both with as many draws as groups, and any other figure the bootstrap's
BCa interval.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

FEW_GROUPS = 30
_Z = 1.959964  # standard errors on either side of a normal mean that hold 95 %
Figure = dict[str, float | None]  # "value", "low" and "high"
PerGroup = Float[np.ndarray, " G"]
# Entries of the matrix (samples, groups) that are in memory at once: 64 MiB of int64.
_AT_ONCE = 1 << 23


def bootstrap_interval(
    values: Float[np.ndarray, " B"],
    groups: Sequence[str],
    *,
    samples: int = 1000,
    seed: int,
    is_gain: bool = False,
) -> Figure:
    """The mean over B questions with its 95 % interval: `{"value", "low", "high"}`.

    Results of questions on one entity or passage depend on each other, so whole groups are drawn, with
    replacement; a sample's mean is over the questions of its groups. `groups` names each question's group.
    Without questions every entry is None. A single group says nothing of how much groups differ, so it has a
    value and no interval. `is_gain` says that the values are differences, of which 0 is no extreme.
    """
    if len(values) != len(groups):
        raise ValueError(
            f"bootstrap_interval: expected a group for every value, got {len(groups)} groups for "
            f"{len(values)} values. Name each value's group."
        )
    if not len(values):
        return _without_interval(None)
    value = float(np.mean(values))
    num_groups = len(set(groups))
    if num_groups == 1:
        return _without_interval(value)

    # 1) Where resampling says nothing, or too little.
    levels = set(np.unique(values).tolist())
    is_constant = len(levels) == 1
    if is_constant or num_groups < FEW_GROUPS:
        if not is_gain and levels <= {0, 1}:
            return share_interval(value, num_groups)
        if is_gain and levels <= {-1, 0, 1}:
            return _bonett_price(values, num_groups)
    rng = np.random.default_rng(seed)
    if num_groups < FEW_GROUPS and not is_constant:
        return _bca(value, values, groups, samples, rng)

    # 2) The percentiles.
    sample_means = _sample_means(values, groups, samples, rng)
    return _figure(value, sample_means)


def share_interval(share: float, num_draws: int) -> Figure:
    """Wilson's score interval of a share of so many draws."""
    squared = _Z**2 / num_draws
    middle = share + squared / 2
    # The spread of the share, and what few draws add to it.
    spread = share * (1 - share) / num_draws
    spread += squared / num_draws / 4
    half_width = _Z * spread**0.5
    low = (middle - half_width) / (1 + squared)
    high = (middle + half_width) / (1 + squared)
    return _within(0.0, share, low, high)


def _bonett_price(
    values: Float[np.ndarray, " B"],
    num_draws: int,
) -> Figure:
    """Bonett and Price's interval of a difference of two shares: one draw more is gained, and one is lost."""
    total = num_draws + 2
    gained = float(np.mean(values > 0))
    lost = float(np.mean(values < 0))
    gained = (gained * num_draws + 1) / total
    lost = (lost * num_draws + 1) / total
    middle = gained - lost
    # The variance of a draw that is 1, -1 or 0.
    variance = gained + lost - middle**2
    half_width = _Z * (variance / total) ** 0.5
    value = float(np.mean(values))
    low = middle - half_width
    high = middle + half_width
    return _within(-1.0, value, low, high)


def _within(
    least: float,
    value: float,
    low: float,
    high: float,
) -> Figure:
    """A figure whose interval lies between `least` and 1 and holds the value."""
    low = max(least, min(low, value))
    high = min(1.0, max(high, value))
    return _with_ends(value, low, high)


def _with_ends(
    value: float,
    low: float,
    high: float,
) -> Figure:
    return {
        "value": value,
        "low": float(low),
        "high": float(high),
    }


def _bca(
    value: float,
    values: Float[np.ndarray, " B"],
    groups: Sequence[str],
    samples: int,
    rng: np.random.Generator,
) -> Figure:
    """The bootstrap's BCa interval, which allows for skew, over whole groups."""
    from scipy.stats import bootstrap  # a second to import

    def mean(sums: Any, sizes: Any, axis: int = -1) -> Any:
        total = np.sum(sums, axis)
        return total / np.sum(sizes, axis)

    # It has no ends where groups do not differ, and warns.
    data = _by_group(values, groups)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = bootstrap(
            data,
            mean,
            n_resamples=samples,
            paired=True,
            vectorized=True,
            method="BCa",
            rng=rng,
        )
    low, high = result.confidence_interval
    if np.isnan(low) or np.isnan(high):
        return _figure(value, result.bootstrap_distribution)
    return _with_ends(value, low, high)


def _by_group(values: Float[np.ndarray, " B"], groups: Sequence[str]) -> tuple[PerGroup, PerGroup]:
    """The sum of each group's values, and how many there are."""
    _, group_of_value = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(group_of_value, weights=values)
    sizes = np.bincount(group_of_value).astype(np.float64)
    return sums, sizes


def average_interval(
    values: Sequence[Float[np.ndarray, " _"]],
    groups: Sequence[Sequence[str]],
    *,
    samples: int = 1000,
    seed: int,
    is_gain: bool = False,
) -> Figure:
    """The mean of several sets' means, each set with the same weight, with its 95 % interval.

    Each set is resampled by itself, so the interval says how these sets' questions vary, not how sets vary.
    There is no interval where a set is a single group. Where a set is small, or all its values are equal, the
    sets' own intervals are put together: their distances from the means add in squares (MOVER).
    """
    # Not the mean over all questions: a large set would outweigh the others.
    set_means = [np.mean(set_values) for set_values in values]
    value = float(np.mean(set_means))
    num_groups = [len(set(set_groups)) for set_groups in groups]
    if 1 in num_groups:
        return _without_interval(value)
    constant = [np.ptp(set_values) == 0 for set_values in values]
    if min(num_groups) < FEW_GROUPS or any(constant):
        figures = []
        for set_values, set_groups in zip(values, groups, strict=True):
            figure = bootstrap_interval(
                set_values,
                set_groups,
                samples=samples,
                seed=seed,
                is_gain=is_gain,
            )
            figures.append(figure)
        return _put_together(value, figures)

    # Sets have random numbers of their own, so that their samples are independent.
    rngs = np.random.default_rng(seed).spawn(len(values))
    sample_means = []
    for set_values, set_groups, rng in zip(values, groups, rngs, strict=True):
        sample_means.append(_sample_means(set_values, set_groups, samples, rng))
    return _figure(value, np.mean(sample_means, axis=0))


def _put_together(
    value: float,
    figures: Sequence[Mapping[str, Any]],
) -> Figure:
    """The average of independent figures, by the distances of their ends (MOVER)."""
    below = above = 0.0
    for figure in figures:
        middle = figure["value"]
        below += (middle - figure["low"]) ** 2
        above += (figure["high"] - middle) ** 2
    count = len(figures)
    low = value - below**0.5 / count
    high = value + above**0.5 / count
    return _with_ends(value, low, high)


def percent_with_interval(figure: Mapping[str, float | None] | None) -> str:
    """A share or a gain in percent with its interval, for tables that have to be narrow.

    >>> percent_with_interval({"value": 0.7467, "low": 0.7051, "high": 1.0})
    '74.7 [70.5, 100]'
    """
    if figure is None or figure["value"] is None:
        return "–"
    value = in_percent(figure["value"])
    if figure["low"] is None:
        return f"{value} [one group]"
    low = in_percent(figure["low"])
    high = in_percent(figure["high"])
    return f"{value} [{low}, {high}]"


def in_percent(share: float | None) -> str:
    """A share in percent with one decimal; "–" for None.

    >>> in_percent(0.7467), in_percent(1.0)
    ('74.7', '100')
    """
    if share is None:
        return "–"
    text = f"{100 * share:.1f}"
    return "100" if text == "100.0" else text


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
    return _with_ends(value, low, high)


def _sample_means(
    values: Float[np.ndarray, " B"],
    groups: Sequence[str],
    samples: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, " S"]:
    """The mean over questions in each of S bootstrap samples of groups."""
    # A group enters a mean by its number of questions and their sum.
    group_sums, group_sizes = _by_group(values, groups)
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
    return bootstrap_interval(
        after - before,
        groups,
        samples=samples,
        seed=seed,
        is_gain=True,
    )
