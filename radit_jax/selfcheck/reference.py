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
    return jnp.ones(array.shape, bool)


def float64(array: Any) -> Array64:
    return np.asarray(array, np.float64)


def softmax64(logits: Array64) -> Array64:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def kl64(p: Array64, q: Array64) -> Array64:
    return np.array(
        [sum(a * np.log(a / b) for a, b in zip(*pair, strict=True)) for pair in zip(p, q, strict=True)]
    )


def deviation(function: Callable[..., Array], reference: Callable[..., Array64], *numbers: Array64) -> float:
    """The largest difference between a float32 function and its float64 reference, in value or gradient."""
    numbers = tuple(float64(np.float32(array)) for array in numbers)
    inputs = tuple(jnp.asarray(array, jnp.float32) for array in numbers)
    worst = np.abs(function(*inputs) - reference(*numbers)).max()
    gradients = jax.grad(lambda *x: function(*x).sum(), argnums=tuple(range(len(inputs))))(*inputs)
    for i, gradient in enumerate(gradients):
        exact = central_differences(lambda x, i=i: reference(*numbers[:i], x, *numbers[i + 1 :]), numbers[i])
        worst = max(worst, np.abs(gradient - exact).max())
    return float(worst)


def central_differences(function: Callable[[Array64], Array64], at: Array64, nudge: float = 1e-5) -> Array64:
    """The gradient of a float64 function's sum."""
    gradient = np.zeros_like(at)
    for index in np.ndindex(*at.shape):
        step = np.zeros_like(at)
        step[index] = nudge
        gradient[index] = (function(at + step) - function(at - step)).sum() / (2 * nudge)
    return gradient


def gradient_distance(one: Any, other: Any) -> float:
    """The largest difference between two gradients, relative to the norm of the second as a whole."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs) / norm(other)


def norm(gradient: Any) -> float:
    return max(float(optax.tree.norm(gradient)), 1e-30)


def path_name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
