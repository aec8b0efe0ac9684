"""What the device can do at most: the fastest product in bfloat16, and a copy."""

import functools
import json

import jax
import jax.numpy as jnp

from benchmarks.gpu.bench import PEAK, Bench, measure

CHAINED = 8  # products in a call, of each other's results, so that no time goes into dispatching them


def peak(bench: Bench) -> None:
    """Products of several shapes on random numbers; the fastest is the peak that rows are compared with."""
    best = 0.0
    seconds = bench.sizes.turn_seconds / 4
    for rows, size_in, size_out in bench.sizes.products:
        what = f"{rows} × {size_in} × {size_out}, bfloat16"
        with bench.trying(what):
            # Results have the size of inputs, so that they stay in range.
            inputs = _normal(0, (rows, size_in))
            up = _normal(1, (size_in, size_out)) / size_in**0.5
            down = _normal(2, (size_out, size_in)) / size_out**0.5
            clock = measure(functools.partial(_products, inputs, up, down), most_seconds=seconds)
            flops = 2.0 * CHAINED * rows * size_in * size_out
            best = max(best, flops / clock.seconds)
            # The row itself is compared with the best so far.
            (bench.recorder.out / PEAK).write_text(json.dumps({"flops": best}))
            bench.rate(what, CHAINED, "products", clock=clock, flops=flops)

    with bench.trying("copy"):
        numbers = _normal(3, (bench.sizes.copied,))
        clock = measure(functools.partial(_copied, numbers), most_seconds=seconds)
        gigabytes = 2 * numbers.nbytes / 1e9
        bench.rate("copy, read and written", gigabytes, "GB", clock=clock)


def _normal(seed: int, shape: tuple[int, ...]) -> jax.Array:
    key = jax.random.key(seed, impl="rbg")
    draw = jax.jit(jax.random.normal, static_argnums=(1, 2))
    return draw(key, shape, jnp.bfloat16)


@jax.jit
def _products(inputs: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    """`CHAINED` products: up and down again, each of what the one before it gave."""
    return jax.lax.fori_loop(0, CHAINED // 2, lambda _, x: (x @ up) @ down, inputs)


@jax.jit
def _copied(numbers: jax.Array) -> jax.Array:
    return numbers + jnp.bfloat16(1)
