"""Whether the accelerator computes what it should: the self-check, and the attention kernel."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.bench import Bench, measure
from radit_jax.config import DecoderConfig
from radit_jax.models.attention import Kernel, attend, why_unsupported
from radit_jax.runtime.distributed.mesh import KERNELS

# Of the relative error ‖x − y‖ / ‖y‖ of bfloat16 outputs and gradients against float32; rounding makes 0.003.
MOST_ERROR = 0.02


def selfcheck(bench: Bench) -> None:
    """Every property that `python -m radit_jax.selfcheck` proves."""
    from radit_jax.selfcheck import proofs  # noqa: F401 - it registers the properties
    from radit_jax.selfcheck.properties import PROPERTIES
    from radit_jax.selfcheck.tiny_models import TinyModels

    bench.recorder.write("machine", value=jax.__version__, unit="jax", notes=_machine())
    models = TinyModels()
    chosen = PROPERTIES[: bench.sizes.properties]
    broken = []
    for prop in chosen:
        with jax.default_matmul_precision("highest"):
            measured = float(prop.measure(models))
        if not prop.holds(measured):
            broken.append(prop.name)
            bench.recorder.write(prop.name, error=f"expected a bound of {prop.bound:g}, got {measured:.3g}")
    bench.recorder.write("properties that hold", value=len(chosen) - len(broken), unit=f"of {len(chosen)}")


def _machine() -> dict[str, Any]:
    device = jax.devices()[0]
    version = getattr(device.client, "platform_version", "")
    return {"device": device.device_kind, "platform": " ".join(str(version).split())[:80]}


def kernels(bench: Bench) -> None:
    """Attention over packed rows: the kernel in bfloat16 against the reference in float32, and its speed."""
    kernel = KERNELS.get(jax.devices()[0].platform, "splash")
    num_heads, num_kv_heads, head_size = bench.sizes.heads
    shape = DecoderConfig(8, num_heads * head_size, 1, num_heads, num_kv_heads, head_size, 8)
    for rows, length in bench.sizes.attention:
        what = f"{kernel}, {rows} rows of {length}"
        with bench.trying(what):
            reason = why_unsupported(kernel, shape, dtype=jnp.bfloat16, row_length=length)
            if reason is None:
                _compare(bench, kernel, rows, length)
            else:
                bench.recorder.write(what, left_out=reason)


def _compare(bench: Bench, kernel: Kernel, rows: int, length: int) -> None:
    # 1) Rows of segments of many lengths, with padding at the end.
    num_heads, num_kv_heads, head_size = bench.sizes.heads
    draw = np.random.default_rng(0)
    starts = draw.random((rows, length)) < 8 / length
    segments = 1 + np.cumsum(starts, axis=1)
    segments[:, length - length // 16 :] = 0
    segment_ids = jnp.asarray(segments, jnp.int32)
    is_real = (segment_ids > 0)[..., None, None]
    inputs = []
    for seed, heads in enumerate((num_heads, num_kv_heads, num_kv_heads)):
        key = jax.random.key(seed, impl="rbg")
        inputs.append(jax.random.normal(key, (rows, length, heads, head_size), jnp.bfloat16))
    weights = jax.random.normal(jax.random.key(3, impl="rbg"), inputs[0].shape)

    # 2) Outputs, and gradients of a weighted sum of them.
    def outputs_and_gradients(kernel: Kernel, *inputs: jax.Array) -> dict[str, jax.Array]:
        def total(*inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
            q, k, v = inputs
            outputs = attend(q, k, v, segment_ids, kernel, causal=True)
            outputs = jnp.where(is_real, outputs, 0)
            return (outputs * weights).sum(), outputs

        gradients, outputs = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(*inputs)
        return {"output": outputs, **dict(zip("qkv", gradients, strict=True))}

    by_kernel = jax.jit(functools.partial(outputs_and_gradients, kernel))
    by_reference = jax.jit(functools.partial(outputs_and_gradients, "xla"))
    with jax.default_matmul_precision("highest"):
        exact = by_reference(*(array.astype(jnp.float32) for array in inputs))
    of_rows = f"{rows} rows of {length}"
    for name, found in by_kernel(*inputs).items():
        error = _relative_error(found, exact[name])
        what = f"{kernel}, {of_rows}, {name}"
        # NaN is not below the bound.
        if error <= MOST_ERROR:
            bench.recorder.write(what, value=error, unit="relative error")
        else:
            bench.recorder.write(what, error=f"expected an error of at most {MOST_ERROR}, got {error:.3g}")
    del exact

    # 3) How long a forward and a backward pass take.
    seconds = bench.sizes.turn_seconds / 4
    for name, run in ((kernel, by_kernel), ("xla", by_reference)):
        what = f"{name}, {of_rows}, forwards and backwards"
        with bench.trying(what):
            clock = measure(functools.partial(run, *inputs), most_seconds=seconds)
            bench.rate(what, rows * length, "tokens", clock=clock)


def _relative_error(found: Any, exact: Any) -> float:
    difference = jnp.linalg.norm(found.astype(jnp.float32) - exact)
    return float(difference / jnp.linalg.norm(exact))
