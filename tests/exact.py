"""Equalities are proved in float64: there rounding is far below what any mistake does.

Two ways of computing one number in float32 differ by rounding, and by how much is a matter of the processor's
vectors, of how many threads share a sum, and of the compiler. A tolerance that one machine keeps says nothing
of the next. So what is equal by mathematics is computed in float64 (the fixture `float64`, `in_float64`) and
held to `EXACT`, half a million times float64's rounding and a thousandth of float32's, while a masked token
that is seen moves a logit by a hundredth. What our code stores in float32 is held to `STORED`, and what only
runs in float32, as a kernel, to what rounding does to the float64 result (`assert_rounded`).
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

EXACT = 1e-10  # of the largest number that is compared
STORED = 4 * float(np.finfo(np.float32).eps)  # relative; two numbers that were rounded to float32 up to twice
SUMS = 32  # the root of a thousand terms


def in_float64(tree: Any) -> Any:
    """The same numbers in float64, as parameters of a network that computes in it."""
    with jax.enable_x64(True):
        return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), tree)


def assert_exact(found: Any, wanted: Any) -> None:
    """Two trees of float64 arrays are equal but for float64's rounding."""
    found, wanted = (jax.tree.map(np.asarray, tree) for tree in (found, wanted))
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    assert {leaf.dtype for leaf in jax.tree.leaves((found, wanted))} == {np.dtype(np.float64)}
    size = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=EXACT * size)


def rounding_error(function: Callable[[Any], Any], inputs: Any, dtype: Any = np.float32) -> tuple[Any, Any]:
    """What a float64 function gives, and how far off it may be where it is computed in `dtype`, leaf by leaf.

    What a stable algorithm computes is exact for inputs that rounding moved a little. So every input is moved
    by half a step of `dtype`, up or down by chance, and the result may be `SUMS` times as far off as that
    moves it: rounding errors add up in sums, and do so at random.
    """
    rng, inputs = np.random.default_rng(0), in_float64(inputs)
    half_a_step = float(jnp.finfo(dtype).eps) / 2

    def move(leaf: Any) -> Any:
        return leaf * (1 + half_a_step * rng.choice([-1, 1], leaf.shape))

    with jax.enable_x64(True):
        wanted, *moved = (
            function(some) for some in (inputs, *(jax.tree.map(move, inputs) for _ in range(4)))
        )
    most = jax.tree.map(
        lambda leaf, *others: SUMS * max(np.abs(o - leaf).max() for o in others), wanted, *moved
    )
    return wanted, most


def drawn_in_float64(module: Any, *inputs: Any) -> Any:
    """The parameters that `random_params` draws, for a module that computes in float64."""
    from radit_jax.selfcheck.tiny_models import random_params

    return in_float64(random_params(module.clone(dtype=jnp.float32), *inputs))


def model_in_float64(model: Any) -> Any:
    """A `Model` that computes in float64."""
    return model._replace(module=model.module.clone(dtype=jnp.float64), params=in_float64(model.params))


def searcher_in_float64(searcher: Any) -> Any:
    """A `Searcher` whose encoder computes in float64."""
    encoder = dataclasses.replace(searcher.encoder, model=model_in_float64(searcher.encoder.model))
    return dataclasses.replace(searcher, encoder=encoder)


def assert_stored(found: Any, wanted: Any, size: float = 1.0) -> None:
    """`found`, made of what was stored in float32, up to `size` or larger, are the float64 `wanted`."""
    wanted = np.asarray(wanted, np.float64)
    most = STORED * max(size, float(np.abs(wanted).max(initial=0)))
    np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=0, atol=most)


def assert_rounded(found: Any, function: Callable[[Any], Any], inputs: Any, dtype: Any = np.float32) -> None:
    """`found` was computed in `dtype` and is as near to the float64 function as `rounding_error` allows.

    That is near: a bound that grew beyond a hundredth of what it guards would guard nothing.
    """
    wanted, most = rounding_error(function, inputs, dtype)
    for one, other, error in zip(*map(jax.tree.leaves, (found, wanted, most)), strict=True):
        other = np.asarray(other, np.float64)
        size = np.abs(other).max()
        error = max(float(error), STORED * size)
        assert error < 0.01 * size if dtype == np.float32 else error < size
        np.testing.assert_allclose(np.asarray(one, np.float64), other, rtol=0, atol=error)


def torch_model_in_float64(model: Any) -> Any:
    """A model of transformers in float64, its rotary angles as well, to be called in `torch_in_float64`."""
    with torch_in_float64():
        model.double()
        for name, module in list(model.named_modules()):
            if name.endswith("rotary_emb"):
                model.set_submodule(name, type(module)(module.config))
    return model


@contextlib.contextmanager
def torch_in_float64() -> Iterator[None]:
    """Where transformers asks for float32 by name, as its norms and softmaxes do, it gets float64."""
    import torch

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield
