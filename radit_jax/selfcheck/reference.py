"""Float64 references by loops, and distances between gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

Array64 = np.ndarray


def all_real(array: Array) -> Array:
    """A mask of the array's shape that is True everywhere."""
    return jnp.ones(array.shape, bool)


def float64(array: Any) -> Array64:
    """The array in float64, on the host."""
    return np.asarray(array, np.float64)


def softmax64(logits: Array64) -> Array64:
    """exp(x) / Σ exp(x) over the last axis."""
    # The largest weight is 1, so that none overflows.
    shifted = logits - logits.max(axis=-1, keepdims=True)
    weights = np.exp(shifted)
    return weights / weights.sum(axis=-1, keepdims=True)


def kl64(p: Array64, q: Array64) -> Array64:
    """KL(p ‖ q) [B] in nats of distributions [B, K], summed by a loop."""
    # One distribution and one outcome at a time, as the definition says it.
    divergences = []
    for p_row, q_row in zip(p, q, strict=True):
        divergence = 0.0
        for a, b in zip(p_row, q_row, strict=True):
            divergence += a * np.log(a / b)
        divergences.append(divergence)
    return np.array(divergences)


def deviation(
    function: Callable[..., Array],
    reference: Callable[..., Array64],
    *arguments: Array64,
) -> float:
    """The largest difference between a float32 function and its float64 reference, in value or gradient."""
    # Both get the same numbers, which float32 holds exactly.
    rounded = [float64(np.float32(argument)) for argument in arguments]
    inputs = [jnp.asarray(argument, jnp.float32) for argument in rounded]
    error = function(*inputs) - reference(*rounded)
    worst = np.abs(error).max()

    # The gradient for each argument, with the others as they are.
    def total(*inputs: Array) -> Array:
        return function(*inputs).sum()

    all_arguments = tuple(range(len(inputs)))
    gradients = jax.grad(total, argnums=all_arguments)(*inputs)
    for i, gradient in enumerate(gradients):

        def reference_at(x: Array64, i: int = i) -> Array64:
            before, after = rounded[:i], rounded[i + 1 :]
            return reference(*before, x, *after)

        expected = central_differences(reference_at, rounded[i])
        worst = max(worst, np.abs(gradient - expected).max())
    return float(worst)


def central_differences(
    function: Callable[[Array64], Array64],
    at: Array64,
    nudge: float = 1e-5,
) -> Array64:
    """The gradient of the sum of a float64 function's values: (f(x + h) − f(x − h)) / 2h for each entry."""
    # Move one entry at a time.
    gradient = np.zeros_like(at)
    for index in np.ndindex(*at.shape):
        step = np.zeros_like(at)
        step[index] = nudge
        difference = function(at + step) - function(at - step)
        gradient[index] = difference.sum() / (2 * nudge)
    return gradient


def gradient_distance(one: Any, other: Any) -> float:
    """The largest difference between two gradients, relative to the norm of the second as a whole."""
    # The largest over all parameters.
    differences = []
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    for leaf, other_leaf in pairs:
        difference = np.abs(leaf - other_leaf).max()
        differences.append(float(difference))
    return max(differences) / norm(other)


def norm(gradient: Any) -> float:
    """The L2 norm over all leaves, and at least 1e-30, so that it can be divided by."""
    return max(float(optax.tree.norm(gradient)), 1e-30)


def path_name(path: tuple[Any, ...]) -> str:
    """A parameter's path with slashes: `layers/attention/query/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
