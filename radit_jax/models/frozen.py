"""Parameters that nothing trains, in the dtype that their network computes in.

A network of bfloat16 casts its kernels and embeddings each time that it uses them. Those that stay as they
are can be cast once: the products get the same numbers, and a device holds half the bytes. Norms, biases and
what is added to attention's scores are used in float32, and stay in it.
"""

from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from radit_jax.config import EvaluateConfig, LmFtConfig
from radit_jax.models.lora import Leaves, Path

_CAST_AT_USE = ("kernel", "embedding")
_USED_AS_STORED = "relative_attention_bias"  # an embedding that is added to attention's scores


def frozen_shapes(shapes: Any, dtype: Any) -> Any:
    """`jax.ShapeDtypeStruct`s of parameters, with the dtypes in which a network of `dtype` may hold them."""
    leaves: Leaves = flatten_dict(shapes)
    for path, shape in leaves.items():
        if _is_cast(path, shape, dtype):
            leaves[path] = shape.update(dtype=jnp.dtype(dtype))
    return unflatten_dict(leaves)


def cast_frozen(params: Any, dtype: Any) -> Any:
    """Arrays of parameters in the dtypes of `frozen_shapes`."""
    leaves: Leaves = flatten_dict(params)
    for path, array in leaves.items():
        if _is_cast(path, array, dtype):
            leaves[path] = array.astype(dtype)
    return unflatten_dict(leaves)


def is_frozen(lm_ft: LmFtConfig, tasks: EvaluateConfig | None) -> bool:
    """Whether LM-ft may hold its network so: under adapters, and where `tasks` validate it in its dtype.

    What is quantised is made of the numbers that were saved.
    """
    lora = lm_ft.lora
    has_adapters = lora.rank > 0 and lora.quantize == "none"
    return has_adapters and (tasks is None or tasks.dtype == lm_ft.dtype)


def _is_cast(path: Path, leaf: Any, dtype: Any) -> bool:
    """Whether the network casts this leaf to a narrower dtype. A quantised kernel has parts of its own."""
    is_named = path[-1] in _CAST_AT_USE and _USED_AS_STORED not in path
    is_whole = not hasattr(leaf, "qvalue")
    return is_named and is_whole and jnp.dtype(dtype).itemsize < leaf.dtype.itemsize
