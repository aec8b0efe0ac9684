"""The head: products of states with a matrix, in which gradients need not be as wide as logits."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from radit_jax.models.attention import wide


class HeadKernel(NamedTuple):
    """The head's matrix in two forms, so that several products on the same matrix cast it once."""

    exact: Float[Array, "*axes"]  # as it is stored: D V, or V D where the embedding serves as the head
    rounded: Float[Array, "*axes"]  # the same in the dtype that the network computes in


def head_kernel(exact: Float[Array, "*axes"], dtype: Any) -> HeadKernel:
    """Both forms of a matrix."""
    return HeadKernel(exact, exact.astype(dtype))


def head_logits(
    hidden: Float[Array, "*rows D"],
    kernel: HeadKernel,
    *,
    tied: bool,
    rounds_gradient: bool = False,
) -> Float[Array, "*rows V"]:
    """The logits of states, in the `wide` dtype; `tied` says that the matrix has V first.

    The matrix' gradient is that of the stored form, in its dtype: sums over several calls are not rounded.
    With `rounds_gradient` the gradient of the logits is rounded to the dtype of the rounded matrix. Products
    with it are then no wider than those of the forward pass.
    """
    dtype = kernel.rounded.dtype
    rows = hidden.reshape(-1, hidden.shape[-1]).astype(dtype)
    axes = "vd" if tied else "dv"
    logits: Any = _products(axes, rounds_gradient, rows, *kernel)
    return logits.reshape(*hidden.shape[:-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _products(
    axes: str,
    rounds_gradient: bool,
    rows: Float[Array, "n D"],
    exact: Float[Array, "*axes"],
    rounded: Float[Array, "*axes"],
) -> Float[Array, "n V"]:
    return _einsum(f"nd,{axes}->nv", rows, rounded)


def _forward(
    axes: str,
    rounds_gradient: bool,
    rows: Float[Array, "n D"],
    exact: Float[Array, "*axes"],
    rounded: Float[Array, "*axes"],
) -> tuple[Float[Array, "n V"], Any]:
    # Of the stored matrix only the dtype is of use to the backward pass.
    like_exact = jnp.zeros((), exact.dtype)
    return _products(axes, rounds_gradient, rows, exact, rounded), (rows, rounded, like_exact)


def _backward(
    axes: str,
    rounds_gradient: bool,
    kept: Any,
    of_logits: Float[Array, "n V"],
) -> tuple[Float[Array, "n D"], Float[Array, "*axes"], None]:
    rows, rounded, like_exact = kept
    if rounds_gradient:
        of_logits = of_logits.astype(rounded.dtype)
    of_rows = _einsum(f"nv,{axes}->nd", of_logits, rounded)
    of_exact = _einsum(f"nv,nd->{axes}", of_logits, rows)
    # The rounded form has no gradient of its own.
    return of_rows.astype(rows.dtype), of_exact.astype(like_exact.dtype), None


_products.defvjp(_forward, _backward)


def _einsum(
    axes: str,
    left: Float[Array, "i j"],
    right: Float[Array, "k l"],
) -> Float[Array, "m n"]:
    """A product that is summed, and returned, in the wide dtype."""
    return jnp.einsum(axes, left, right, preferred_element_type=wide(right.dtype))
