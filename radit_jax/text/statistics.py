"""95 % intervals by the bootstrap, resampling whole groups of questions."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Figure = dict[str, float | None]


def bootstrap_interval(
    values: Float[np.ndarray, " B"], groups: Sequence[str], *, samples: int = 1000, seed: int
) -> Figure:
    """The mean over questions with its 95 % percentile interval: `{"value", "low", "high"}`.

    Questions on one entity or passage stand or fall together, so whole groups are drawn, with replacement;
    a sample's mean is over the questions of its groups. Without questions every entry is None.
    """
    if len(values) != len(groups):
        raise ValueError(
            f"bootstrap_interval: {len(values)} values but {len(groups)} groups; give one per value"
        )
    if not len(values):
        return {"value": None, "low": None, "high": None}
    _, members = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(members).astype(np.float64)
    sums = np.bincount(members, weights=values)
    # Row s says how often each group was drawn into sample s.
    draws = np.random.default_rng(seed).multinomial(
        len(sizes), np.full(len(sizes), 1 / len(sizes)), size=samples
    )
    low, high = np.percentile((draws @ sums) / (draws @ sizes), [2.5, 97.5])
    return {"value": float(np.mean(values)), "low": float(low), "high": float(high)}


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
