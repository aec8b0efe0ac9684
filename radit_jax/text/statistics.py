"""95 % intervals by the bootstrap, resampling whole groups of questions."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

Figure = dict[str, float | None]
_AT_ONCE = 1 << 23  # numbers of draws in memory together, 64 MiB


def bootstrap_interval(
    values: Float[np.ndarray, " B"], groups: Sequence[str], *, samples: int = 1000, seed: int
) -> Figure:
    """The mean over questions with its 95 % percentile interval: `{"value", "low", "high"}`.

    Questions on one entity or passage stand or fall together, so whole groups are drawn, with replacement;
    a sample's mean is over the questions of its groups. Without questions every entry is None; a single group
    says nothing of how much groups differ, so it has a value and no interval.
    """
    if len(values) != len(groups):
        raise ValueError(
            f"bootstrap_interval: {len(values)} values but {len(groups)} groups; give one per value"
        )
    if not len(values):
        return {"value": None, "low": None, "high": None}
    value = float(np.mean(values))
    if len(set(groups)) == 1:
        return {"value": value, "low": None, "high": None}
    return _figure(value, _sample_means(values, groups, samples, np.random.default_rng(seed)))


def average_interval(
    values: Sequence[Float[np.ndarray, " _"]],
    groups: Sequence[Sequence[str]],
    *,
    samples: int = 1000,
    seed: int,
) -> Figure:
    """The mean of several sets' means, each set weighing the same, with its 95 % percentile interval.

    Each set is resampled by itself, so the interval is that of these sets and not of sets like them. Where a
    set is a single group there is none.
    """
    value = float(np.mean([np.mean(own) for own in values]))
    if any(len(set(own)) == 1 for own in groups):
        return {"value": value, "low": None, "high": None}
    rngs = np.random.default_rng(seed).spawn(len(values))
    drawn = [_sample_means(v, g, samples, rng) for v, g, rng in zip(values, groups, rngs, strict=True)]
    return _figure(value, np.mean(drawn, axis=0))


def with_interval(figure: Mapping[str, float | None] | None) -> str:
    """A figure with its interval as a person reads it.

    >>> with_interval({"value": 0.5, "low": 0.25, "high": 0.75})
    '0.500 [0.250, 0.750]'
    >>> with_interval({"value": 0.5, "low": None, "high": None})
    '0.500 [one group]'
    """
    if figure is None or figure["value"] is None:  # no question was judged by it
        return "–"
    if figure["low"] is None:
        return f"{figure['value']:.3f} [one group]"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _figure(value: float, sample_means: Float[np.ndarray, " S"]) -> Figure:
    low, high = np.percentile(sample_means, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high)}


def _sample_means(
    values: Float[np.ndarray, " B"], groups: Sequence[str], samples: int, rng: np.random.Generator
) -> Float[np.ndarray, " S"]:
    """The mean over questions in each bootstrap sample of groups."""
    _, members = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(members).astype(np.float64)
    sums = np.bincount(members, weights=values)
    alike, block = np.full(len(sizes), 1 / len(sizes)), max(1, _AT_ONCE // len(sizes))
    means = []
    for start in range(0, samples, block):
        # Row s says how often each group was drawn into sample s; blocks go on with the same random numbers.
        draws = rng.multinomial(len(sizes), alike, size=min(block, samples - start))
        means.append((draws @ sums) / (draws @ sizes))
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

    Both are resampled together, so what makes a question easy for both systems does not widen the interval.
    """
    return bootstrap_interval(after - before, groups, samples=samples, seed=seed)
