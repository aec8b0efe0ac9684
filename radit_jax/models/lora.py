"""LoRA (arXiv 2106.09685): a frozen network with a low-rank path beside its projections, x W + α/r · x A B.

Adapters are a tree of their own, in which each lies where the kernel that it adapts lies among the
parameters. R is the rank:

    model/layers/self_attn/q_proj/lora_a         L D R
    model/layers/self_attn/q_proj/lora_b         L R (heads · H)

`adapted` shows the network both trees as one. Nothing is copied, so a step holds the kernels once, and a
gradient with respect to the adapters alone never forms one of a kernel.

QLoRA (arXiv 2305.14314) is this over kernels that `quantized` keeps in 8 or 4 bits, through qwix: here whole
numbers times a float32 scale, there a data type of its own. The network multiplies by what they stand for.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PRNGKeyArray

from radit_jax.config import PROJECTIONS, LoraConfig
from radit_jax.models.attention import widened

QUANTIZED_TOGETHER = 64  # inputs that share a scale in 4 bits, as in QLoRA
Leaves = dict[tuple[str, ...], Any]


def init_adapters(params: Any, lora: LoraConfig, rng: PRNGKeyArray) -> Any:
    """Float32 adapters of the kernels that `lora` names; B is 0, so that the network is what it was.

    An element of A has variance 1 / D: then x A is about as large as x.
    """
    kernels: Leaves = flatten_dict(params)
    adapters: Leaves = {}
    for number, path in enumerate(sorted(path for path in kernels if _is_target(path, lora))):
        num_layers, size_in, size_out = kernels[path].shape
        key = jax.random.fold_in(rng, number)
        adapters[*path[:-1], "lora_a"] = (
            jax.random.normal(key, (num_layers, size_in, lora.rank)) / size_in**0.5
        )
        adapters[*path[:-1], "lora_b"] = jnp.zeros((num_layers, lora.rank, size_out))
    return unflatten_dict(adapters)


def adapted(params: Any, adapters: Any, lora: LoraConfig) -> Any:
    """What the network reads: the parameters as they are, A and α/r · B beside the kernels."""
    leaves: Leaves = flatten_dict(params) | flatten_dict(adapters)
    scale = lora.alpha / lora.rank
    return unflatten_dict({p: leaf * scale if p[-1] == "lora_b" else leaf for p, leaf in leaves.items()})


def quantized(params: Any, lora: LoraConfig) -> Any:
    """The parameters with every projection's kernel as a `qwix.QArray` of `lora.quantize`.

    A scale serves the D inputs of an output in 8 bits, `QUANTIZED_TOGETHER` of them in 4; all D where that
    does not divide them.
    """
    import qwix

    def quantize(path: tuple[str, ...], leaf: Array) -> Any:
        if len(path) < 2 or path[-2] not in PROJECTIONS:
            return leaf
        tiled = lora.quantize == "int4" and leaf.shape[1] % QUANTIZED_TOGETHER == 0
        together = QUANTIZED_TOGETHER if tiled else leaf.shape[1]
        dtype = jnp.dtype(lora.quantize)
        return qwix.quantize(leaf, dtype, channelwise_axes=(0, 2), tiled_axes={1: together})

    leaves: Leaves = flatten_dict(params)
    return unflatten_dict({path: quantize(path, leaf) for path, leaf in leaves.items()})


def dequantized(matrix: Any) -> Float[Array, "*axes"]:
    """What a `qwix.QArray` stands for, in float32."""
    import qwix

    return qwix.dequantize(matrix)


def merge_adapters(params: Any, adapters: Any, lora: LoraConfig) -> Any:
    """Plain parameters of the same function: W + α/r · A B, in the dtype of W, which is not quantised."""
    leaves: Leaves = flatten_dict(adapted(params, adapters, lora))

    def whole(path: tuple[str, ...]) -> Float[Array, "..."]:
        a, b = (leaves.get((*path[:-1], name)) for name in ("lora_a", "lora_b"))
        return leaves[path] if a is None or path[-1] != "kernel" else _add(leaves[path], a, b)

    return unflatten_dict({path: whole(path) for path in leaves if path[-1] not in ("lora_a", "lora_b")})


def _is_target(path: tuple[str, ...], lora: LoraConfig) -> bool:
    return path[-1] == "kernel" and path[-2] in lora.targets


@jax.jit
def _add(
    kernel: Float[Array, "L D F"], a: Float[Array, "L D R"], b: Float[Array, "L R F"]
) -> Float[Array, "L D F"]:
    product = jnp.einsum("ldr,lrf->ldf", a, b, precision="highest")
    return (widened(kernel) + product).astype(kernel.dtype)
