"""Devices: the mesh, and where batches, parameters and optimiser state lie on it.

The axes are `replica` (whole copies of the model), `fsdp` (one copy cut over the devices) and `tensor`. The
rows of a batch are spread over the first two. The sizes never change a result, only where it is computed.

The axis types are Auto: the compiler places what no one has placed. Under Explicit axes, jax's default, every
gather, linen's `Embed` among them, would have to name its output's sharding.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from radit_jax.config import MeshConfig
from radit_jax.models.attention import Kernel, Layout, why_unsupported
from radit_jax.models.llama import Llama
from radit_jax.runtime.distributed.memory import check_room

AXES = ("replica", "fsdp", "tensor")
KERNELS: dict[str, Kernel] = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}  # what `auto` is where
ROW_AXES = ("replica", "fsdp")
AnyMesh = Mesh | AbstractMesh  # the latter has no devices: sizes can be planned on it

# The first pattern found in a parameter's path decides; what none matches, norms and biases, is on every
# device. An optimiser's moment has its parameter's path at the end of its own, so one table serves both.
# Kernels are (layer, in, out): a pair of them, such as up and down, meets on the axis that `tensor` cuts.
# Of a quantised one both parts, kernel/qvalue and kernel/scale, lie as it would.
PARTITIONS: tuple[tuple[str, P], ...] = (
    (r"embed_tokens/embedding$", P("tensor", "fsdp")),
    (r"(q|k|v|gate|up)_proj/kernel\b", P(None, "fsdp", "tensor")),
    (r"(o|down)_proj/kernel\b", P(None, "tensor", "fsdp")),
    (r"lm_head/kernel$", P("fsdp", "tensor")),
    (r"(q|k|v|gate|up)_proj/lora_a$", P(None, "fsdp", None)),
    (r"(q|k|v|gate|up)_proj/lora_b$", P(None, None, "tensor")),
    (r"(o|down)_proj/lora_a$", P(None, "tensor", None)),
    (r"(o|down)_proj/lora_b$", P(None, None, "fsdp")),
    (r"(word|position|token_type)_embeddings/embedding$", P(None, "fsdp")),
    (r"(query|key|value|intermediate/dense)/kernel$", P(None, "fsdp", "tensor")),
    (r"output/dense/kernel$", P(None, "tensor", "fsdp")),
)


def mesh_shape(config: MeshConfig, num_devices: int, *, rows: int = 0) -> tuple[int, int, int]:
    """The sizes of `AXES` over so many devices, for batches of `rows` (0: of any number).

    Where `config` leaves both sizes open, `fsdp` is the largest that divides the batch, `tensor` the rest.
    """
    left = num_devices // config.replica
    fsdp, tensor = config.fsdp, config.tensor
    if fsdp == -1 and tensor == -1:
        divisors = (n for n in range(1, left + 1) if left % n == 0 and rows % (config.replica * n) == 0)
        fsdp = max(divisors, default=1)
    fsdp = left // tensor if fsdp == -1 else fsdp
    tensor = left // fsdp if tensor == -1 else tensor
    if config.replica * fsdp * tensor != num_devices:
        sizes = " × ".join(f"{axis} {getattr(config, axis)}" for axis in AXES)
        raise ValueError(
            f"mesh: {sizes} does not make {num_devices} devices; set mesh.fsdp=-1 and let "
            "mesh.replica × mesh.tensor divide their number"
        )
    return config.replica, fsdp, tensor


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None, *, rows: int = 0) -> Mesh:
    """The mesh of `config` over all devices, or over `devices`; its sizes are those of `mesh_shape`."""
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(config, len(devices), rows=rows)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def data_parallel_size(mesh: AnyMesh) -> int:
    """Into how many parts the rows of a batch are spread."""
    return math.prod(mesh.shape[axis] for axis in ROW_AXES)


def configure_attention(module: Llama, mesh: Mesh, config: MeshConfig, *, row_length: int) -> Llama:
    """`module` as it computes rows of `row_length` on `mesh`, with the attention and the remat of `config`.

    Where a kernel cannot serve, a line says why, and the reference takes its place.
    """
    own = KERNELS.get(mesh.devices.flat[0].platform, "xla")
    kernel = own if config.attention == "auto" else config.attention
    why = why_unsupported(
        kernel,
        head_size=module.config.head_size,
        num_kv_heads=module.config.num_kv_heads,
        dtype=module.dtype,
        row_length=row_length,
        tensor=mesh.shape["tensor"],
    )
    if why is not None:
        print(f"   attention: xla in the place of {kernel}: {why}", flush=True)
        kernel = "xla"
    return module.clone(attention=kernel, layout=row_layout(mesh), remat=config.remat)


def row_layout(mesh: Mesh) -> Layout:
    """What pins a network's activations to the rows of their devices."""
    return Layout(mesh, ROW_AXES, "tensor")


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """The sharding of any array whose first axis counts examples or rows."""
    return NamedSharding(mesh, P(ROW_AXES))


def put_batch(batch: Any, mesh: Mesh, parts: int = 1) -> Any:
    """A batch, host arrays with examples first, as arrays spread over the mesh; a step takes it in `parts`.

    Every process has the whole batch, which is a pure function of the step, and hands its own devices their
    rows; so neither the batch nor its order depends on how many processes there are.
    """
    sharding, unit = batch_sharding(mesh), data_parallel_size(mesh) * parts
    for rows in {len(leaf) for leaf in jax.tree.leaves(batch) if len(leaf) % unit}:
        below = rows // unit * unit
        fitting = f"{below} or {below + unit}" if below else f"{unit}"
        taken = f", taken in {parts} parts," if parts > 1 else ""
        raise ValueError(
            f"mesh: a batch of {rows} rows{taken} does not divide over replica {mesh.shape['replica']} × "
            f"fsdp {mesh.shape['fsdp']} = {data_parallel_size(mesh)} devices; use a batch size of {fitting}"
        )

    def spread(array: Any) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda rows: array[rows])

    return jax.tree.map(spread, batch)


def tree_shardings(tree: Any, mesh: AnyMesh) -> Any:
    """A `NamedSharding` for each leaf (an array or its shape) of a tree of parameters or training state."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, _partition(path, leaf.shape, mesh)), tree
    )


def abstract_sharded(tree: Any, mesh: AnyMesh) -> Any:
    """The shapes of a tree of parameters or training state, with the shardings of `tree_shardings`."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        tree_shardings(tree, mesh),
    )


def put_params(params: Any, mesh: Mesh) -> Any:
    """Parameters that came from a file or a single device, laid out over the mesh.

    Of several processes each brings the whole of what is on its own device, or its part of what is on all.
    """
    check_room("the model", abstract_sharded(params, mesh))
    shardings = tree_shardings(params, mesh)
    if jax.process_count() == 1:
        return jax.device_put(params, shardings)
    return jax.tree.map(_put, params, shardings)


def _put(array: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return jax.jit(lambda same: same, out_shardings=sharding)(array)
    # device_put would send every array around to see that all processes have the same.
    return jax.make_array_from_callback(array.shape, sharding, lambda part: np.asarray(array[part]))


def gather(array: Any) -> np.ndarray:
    """An array of the mesh on the host: the whole of it, on every process."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def gather_hosts(array: np.ndarray) -> np.ndarray:
    """What each of several processes has, an array of one shape everywhere, one behind the other."""
    return np.asarray(multihost_utils.process_allgather(array, tiled=False))


def mesh_of(params: Any) -> Mesh | None:
    """The mesh that parameters are laid out over, if they are."""
    shardings = [leaf.sharding for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array)]
    mesh = next((sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding)), None)
    return mesh if isinstance(mesh, Mesh) else None


def batch_placer(params: Any) -> Callable[[Any], Any]:
    """What lays host arrays, rows first, over the mesh of `params`, if their number divides; else it is the
    identity, and every device has them all."""
    mesh = mesh_of(params)

    def spread(rows: Any) -> Any:
        if mesh is None or mesh.size == 1 or len(jax.tree.leaves(rows)[0]) % data_parallel_size(mesh):
            return rows
        return put_batch(rows, mesh)

    return spread


def any_process(flag: bool) -> Any:
    """Whether any process has the flag; true or false, waited for only where it is read."""
    if jax.process_count() == 1:
        return flag
    spread, any_of = _all_devices()
    return any_of(jax.make_array_from_callback((jax.device_count(),), spread, lambda _: np.full(1, flag)))


@functools.cache
def _all_devices() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, P("all")), jax.jit(jnp.any, out_shardings=NamedSharding(mesh, P()))


def init_sharded(init: Callable[..., Any], mesh: Mesh, *args: Any) -> tuple[Any, Any]:
    """`init(*args)` computed in place on the mesh, and its shardings, for the step's `state_shardings`.

    Without `out_shardings` jit would replicate the optimiser's moments, which are created out of nothing.
    """
    shapes = abstract_sharded(jax.eval_shape(init, *args), mesh)
    check_room("the training state", shapes)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    return jax.jit(init, out_shardings=shardings)(*args), shardings


def _partition(path: tuple[Any, ...], shape: tuple[int, ...], mesh: AnyMesh) -> P:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    spec = next((spec for pattern, spec in PARTITIONS if re.search(pattern, name)), P())
    if len(spec) != len(shape):
        return P()  # a scalar that an optimiser keeps beside the moments
    # An axis that does not divide stays whole: a vocabulary of 790 pieces over 8 devices.
    whole = [axis is None or size % mesh.shape[axis] for axis, size in zip(spec, shape, strict=True)]
    return P(*(None if keep else axis for axis, keep in zip(spec, whole, strict=True)))
