"""LoRA (arXiv 2106.09685): a frozen network whose projections have a low-rank path, x W + α/r · x A B.

Adapters are a tree of their own. Each lies where the kernel that it adapts lies among the parameters; R is
the rank:

    model/layers/self_attn/q_proj/lora_a         L D R
    model/layers/self_attn/q_proj/lora_b         L R (heads · H)

`adapted` shows the network both trees as one. Nothing is copied, so a step holds the kernels once, and a
gradient with respect to the adapters alone never forms the gradient of a kernel.

QLoRA (arXiv 2305.14314) is LoRA over kernels that `quantized` keeps in 8 or 4 bits, through qwix. Here they
are whole numbers times a float32 scale, there a data type of its own. The network multiplies by the numbers
that they stand for.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PRNGKeyArray

from radit_jax.config import PROJECTIONS, LoraConfig
from radit_jax.models.attention import widened

QUANTIZED_TOGETHER = 64  # inputs that share a scale in 4 bits, as in QLoRA

Path = tuple[str, ...]  # the keys that lead to a leaf
Leaves = dict[Path, Any]


def init_adapters(params: Any, lora: LoraConfig, rng: PRNGKeyArray) -> Any:
    """Float32 adapters of the kernels that `lora` names; B is 0, so that the function stays what it was.

    An element of A has variance 1 / D: then x A is about as large as x.
    """
    kernels: Leaves = flatten_dict(params)
    # Each target has its own key by its rank in the order of paths.
    targets = sorted(path for path in kernels if _is_target(path, lora))
    adapters: Leaves = {}
    for number, (*module, _) in enumerate(targets):
        num_layers, size_in, size_out = kernels[*module, "kernel"].shape
        shape_a = num_layers, size_in, lora.rank
        shape_b = num_layers, lora.rank, size_out

        key = jax.random.fold_in(rng, number)
        normal = jax.random.normal(key, shape_a)
        adapters[*module, "lora_a"] = normal / size_in**0.5
        adapters[*module, "lora_b"] = jnp.zeros(shape_b)
    return unflatten_dict(adapters)


def adapted(params: Any, adapters: Any, lora: LoraConfig) -> Any:
    """What the network reads: the parameters as they are, with A and α/r · B next to the kernels."""
    # The leaves of both trees; only B changes.
    scale = lora.alpha / lora.rank
    leaves: Leaves = flatten_dict(params) | flatten_dict(adapters)
    for path, leaf in leaves.items():
        if path[-1] == "lora_b":
            leaves[path] = leaf * scale
    return unflatten_dict(leaves)


def quantized(params: Any, lora: LoraConfig) -> Any:
    """The parameters with the kernel of every projection as a `qwix.QArray` of `lora.quantize`.

    In 8 bits, the D inputs of an output share a scale. In 4 bits, `QUANTIZED_TOGETHER` of them do, or all D
    if that does not divide them.
    """
    import qwix  # which only QLoRA needs

    dtype = jnp.dtype(lora.quantize)

    def quantize(kernel: Float[Array, "L D F"]) -> Any:
        _, size_in, _ = kernel.shape
        is_divisible = size_in % QUANTIZED_TOGETHER == 0
        together = size_in
        if lora.quantize == "int4" and is_divisible:
            together = QUANTIZED_TOGETHER
        return qwix.quantize(
            kernel,
            dtype,
            channelwise_axes=(0, 2),  # each layer and each output has scales of its own
            tiled_axes={1: together},
        )

    leaves: Leaves = flatten_dict(params)
    # Embeddings, norms, biases and the head stay as they are.
    for path, leaf in leaves.items():
        if path[-1] == "kernel" and path[-2] in PROJECTIONS:
            leaves[path] = quantize(leaf)
    return unflatten_dict(leaves)


def dequantized(matrix: Any) -> Float[Array, "*axes"]:
    """The numbers that a `qwix.QArray` stands for, in float32."""
    import qwix

    return qwix.dequantize(matrix)


def merge_adapters(params: Any, adapters: Any, lora: LoraConfig) -> Any:
    """Plain parameters of the same function: W + α/r · A B, in the dtype of W, which is not quantised."""
    leaves: Leaves = flatten_dict(adapted(params, adapters, lora))
    merged: Leaves = {}
    for path, leaf in leaves.items():
        # The adapter of a kernel goes into it.
        *module, name = path
        if name in ("lora_a", "lora_b"):
            continue
        lora_a = leaves.get((*module, "lora_a"))
        lora_b = leaves.get((*module, "lora_b"))
        has_adapter = name == "kernel" and lora_a is not None
        if has_adapter:
            leaf = _add_product(leaf, lora_a, lora_b)
        merged[path] = leaf
    return unflatten_dict(merged)


def _is_target(path: Path, lora: LoraConfig) -> bool:
    *module, name = path
    return name == "kernel" and module[-1] in lora.targets


@jax.jit
def _add_product(
    kernel: Float[Array, "L D F"],
    lora_a: Float[Array, "L D R"],
    lora_b: Float[Array, "L R F"],
) -> Float[Array, "L D F"]:
    # By default a TPU would round both factors to bfloat16.
    product = jnp.einsum(
        "ldr,lrf->ldf",
        lora_a,
        lora_b,
        precision="highest",
    )
    total = widened(kernel) + product
    return total.astype(kernel.dtype)
