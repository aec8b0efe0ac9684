"""The mesh of devices, and how batches, parameters and optimiser state are sharded over it.

The axes are `replica` (whole copies of the model), `fsdp` (each copy is cut over the axis) and `tensor`. The
rows of a batch are spread over the first two. The sizes never change a result, only where it is computed.
Of devices in several slices `replica` spans the slower network between them, then `fsdp` (`slices.py`).

The axis types are Auto: the compiler places what nobody has placed. Under Explicit axes, jax's default, every
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
from radit_jax.models.attention import LANES, Kernel, Layout, why_unsupported
from radit_jax.models.decoder import DecoderLm
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.memory import check_room
from radit_jax.runtime.distributed.slices import (
    MeshShape,
    count_slices,
    dcn_shape,
    flat_mesh,
    hybrid_devices,
)

AXES = ("replica", "fsdp", "tensor")
ROW_AXES = ("replica", "fsdp")
KERNELS: dict[str, Kernel] = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}  # `auto` by platform
AnyMesh = Mesh | AbstractMesh  # an AbstractMesh has no devices: a plan can be made on it

# The first pattern that is found in a parameter's path decides. A path that none matches (norms, biases) is
# on every device. The path of an optimiser's moment ends with its parameter's, so one table serves both.
# Kernels are (layer, in, out): two that follow each other, such as up and down, are cut on the axis between
# them. Both parts of a quantised kernel, kernel/qvalue and kernel/scale, are sharded as the kernel.
PARTITIONS: tuple[tuple[str, P], ...] = (
    (r"embed_tokens/embedding$", P("tensor", "fsdp")),
    (r"(q|k|v|gate|up)_proj/kernel\b", P(None, "fsdp", "tensor")),
    (r"(q|k|v)_proj/bias$", P(None, "tensor")),
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


def mesh_shape(
    config: MeshConfig,
    num_devices: int,
    *,
    rows: int = 0,
    num_slices: int = 1,
) -> MeshShape:
    """The sizes of `AXES` on `num_devices` devices, for batches of `rows` rows (0: any number).

    A `replica` of −1 is a copy for each slice. Of the others a size of −1 is open: if both are, `fsdp` is the
    largest that divides the batch, and `tensor` the rest.
    """
    replica = num_slices if config.replica == -1 else config.replica
    devices_per_replica = num_devices // replica
    fsdp, tensor = config.fsdp, config.tensor
    # 1) The open sizes.
    if fsdp == -1 and tensor == -1:
        fsdp = 1
        for size in range(1, devices_per_replica + 1):
            divides_devices = devices_per_replica % size == 0
            divides_rows = rows % (replica * size) == 0
            if divides_devices and divides_rows:
                fsdp = size
    if fsdp == -1:
        fsdp = devices_per_replica // tensor
    if tensor == -1:
        tensor = devices_per_replica // fsdp

    # 2) All devices have to be used.
    if replica * fsdp * tensor != num_devices:
        sizes = " × ".join(f"{axis} {getattr(config, axis)}" for axis in AXES)
        raise ValueError(
            f"mesh: expected replica × fsdp × tensor to be the {num_devices} devices, got {sizes}. Set "
            "mesh.fsdp=-1, and let mesh.replica × mesh.tensor divide the number of devices."
        )
    # 3) The slices have to divide them.
    shape = (replica, fsdp, tensor)
    dcn_shape(shape, num_slices)
    return shape


def make_mesh(
    config: MeshConfig,
    devices: Sequence[Any] | None = None,
    *,
    rows: int = 0,
) -> Mesh:
    """The mesh of `config` over `devices` (None: all of them), with the sizes of `mesh_shape`."""
    devices = list(jax.devices() if devices is None else devices)
    num_slices = count_slices(devices)
    shape = mesh_shape(config, len(devices), rows=rows, num_slices=num_slices)
    axis_types = (AxisType.Auto,) * len(AXES)
    if num_slices == 1:
        return jax.make_mesh(shape, AXES, axis_types=axis_types, devices=devices)
    # jax.make_mesh refuses devices of more than one slice.
    arranged = hybrid_devices(shape, devices, num_slices)
    return Mesh(arranged, AXES, axis_types=axis_types)


def own_mesh(config: MeshConfig) -> Mesh:
    """A mesh of this process's devices alone, for work that it shares with no other process.

    One copy of the model lies on them, cut over `tensor` as far as `config` says, and else over `fsdp`.
    """
    devices = jax.local_devices()
    tensor = math.gcd(max(config.tensor, 1), len(devices))
    return make_mesh(MeshConfig(replica=1, fsdp=-1, tensor=tensor), devices)


def data_parallel_size(mesh: AnyMesh) -> int:
    """The number of parts into which the rows of a batch are spread."""
    return math.prod(mesh.shape[axis] for axis in ROW_AXES)


def configure_attention(
    module: DecoderLm,
    mesh: Mesh,
    config: MeshConfig,
    *,
    row_length: int | None = None,
) -> DecoderLm:
    """`module` with the attention kernel and remat of `config`, for rows of `row_length` tokens on `mesh`.

    Where the kernel cannot compute them, a line says why, and the reference takes its place. Without a length
    the module reads rows of any: those of prompts, each by the kernel if that can.
    """
    # 1) The kernel that the platform has, or that was asked for.
    kernel = config.attention
    if kernel == "auto":
        kernel = KERNELS.get(mesh.devices.flat[0].platform, "xla")
    # 2) Whether it can compute these rows.
    reason = why_unsupported(
        kernel,
        module.config,
        dtype=module.dtype,
        row_length=row_length or LANES,
        tensor=mesh.shape["tensor"],
    )
    if reason is not None:
        print(f"   attention: xla in the place of {kernel}: {reason}", flush=True)
        kernel = "xla"
    return module.clone(attention=kernel, layout=row_layout(mesh), remat=config.remat)


def row_layout(mesh: Mesh) -> Layout:
    """The layout that keeps a network's activations on the devices of their rows."""
    return Layout(mesh, ROW_AXES, "tensor")


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """The sharding of an array whose first axis is the batch's."""
    return NamedSharding(mesh, P(ROW_AXES))


def put_batch(batch: Any, mesh: Mesh, parts: int = 1) -> Any:
    """Spread a batch (a tree of host arrays, rows first) over the mesh; a step takes it in `parts` parts.

    Every process has the whole batch, which is a pure function of the step, and gives its own devices their
    rows. So neither the batch nor its order depends on the number of processes.
    """
    for leaf in jax.tree.leaves(batch):
        _check_rows(len(leaf), mesh, parts)
    # Each device asks for its own rows. `device_put` of the whole batch takes one process longer.
    sharding = batch_sharding(mesh)

    def put(array: Any) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda rows: array[rows])

    return jax.tree.map(put, batch)


def _check_rows(num_rows: int, mesh: Mesh, parts: int) -> None:
    """Refuse a batch whose rows, or those of its parts, do not divide over the mesh."""
    num_groups = data_parallel_size(mesh)
    unit = num_groups * parts
    if num_rows % unit == 0:
        return
    # The error names the next sizes that fit.
    below = num_rows // unit * unit
    fitting = f"{below} or {below + unit}" if below else f"{unit}"
    sizes = f"replica {mesh.shape['replica']} × fsdp {mesh.shape['fsdp']}"
    of_parts = f" in each of {parts} parts" if parts > 1 else ""
    raise ValueError(
        f"mesh: expected rows that divide over {sizes} = {num_groups} devices{of_parts}, got {num_rows}. "
        f"Use a batch size of {fitting}."
    )


def tree_shardings(tree: Any, mesh: AnyMesh) -> Any:
    """The `NamedSharding` of each leaf (array or shape) of a tree of parameters or training state."""

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, _partition(path, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _partition(
    path: tuple[Any, ...],
    shape: tuple[int, ...],
    mesh: AnyMesh,
) -> P:
    """The `PartitionSpec` of a leaf by `PARTITIONS`."""
    spec = _spec_of(jax.tree_util.keystr(path, simple=True, separator="/"))
    if len(spec) != len(shape):
        return P()  # a scalar that an optimiser keeps with its moments
    # A dimension that does not divide stays whole: a vocabulary of 790 pieces over 8 devices.
    axes = []
    for axis, size in zip(spec, shape, strict=True):
        stays_whole = axis is None or size % mesh.shape[axis]
        axes.append(None if stays_whole else axis)
    return P(*axes)


def _spec_of(name: str) -> P:
    for pattern, spec in PARTITIONS:
        if re.search(pattern, name):
            return spec
    return P()


def abstract_sharded(tree: Any, mesh: AnyMesh) -> Any:
    """The shapes of a tree of parameters or training state, with the shardings of `tree_shardings`."""

    def abstract(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(abstract, tree, tree_shardings(tree, mesh))


def put_params(params: Any, mesh: Mesh) -> Any:
    """Spread parameters from a file, or from one device, over the mesh.

    Each of several processes has every array whole on its own device, or its part of an array on all devices.
    """
    check_room("the model", abstract_sharded(params, mesh))
    # With one process jax moves the arrays by itself.
    shardings = tree_shardings(params, mesh)
    if jax.process_count() == 1:
        return jax.device_put(params, shardings)
    return jax.tree.map(_put_array, params, shardings)


def _put_array(array: Any, sharding: NamedSharding) -> jax.Array:
    # An array of all processes' devices moves in a computation of all, whatever order the meshes have.
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return jax.device_put(array, sharding)

    # Of others, device_put would send every one around to see that all processes have the same.
    def read_part(part: Any) -> np.ndarray:
        return np.asarray(array[part])

    return jax.make_array_from_callback(array.shape, sharding, read_part)


def gather(array: Any) -> np.ndarray:
    """The whole of an array that is spread over the mesh, on the host of every process."""
    if isinstance(array, jax.Array):
        is_here = array.is_fully_addressable or array.is_fully_replicated
        if not is_here:
            array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def gather_hosts(array: np.ndarray) -> np.ndarray:
    """The arrays of all processes, which have one shape, stacked in the processes' order."""
    return np.asarray(multihost_utils.process_allgather(array, tiled=False))


def concatenate_hosts(array: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """The arrays of all processes end to end, in the processes' order; process p has `lengths[p]` rows."""
    padded = np.zeros((max(lengths), *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    parts = gather_hosts(padded)
    return np.concatenate([part[:length] for part, length in zip(parts, lengths, strict=True)])


def sum_hosts(array: np.ndarray) -> np.ndarray:
    """The sum of the arrays of all processes that work together, which have one shape."""
    return gather_hosts(array).sum(axis=0) if processes.is_multiprocess() else array


def exchange_hosts(array: np.ndarray) -> np.ndarray:
    """What each process has for this one, in the processes' order; `array[p]` is what this one has for p."""
    # A row of the table is its process's, and then a column is; a process's devices have the same.
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    num_processes = jax.process_count()
    mesh = Mesh(np.array(devices).reshape(num_processes, -1), ("hosts", "local"))
    row = NamedSharding(mesh, P("hosts"))
    column = NamedSharding(mesh, P(None, "hosts"))
    shape = (num_processes, *array.shape)
    table = jax.make_array_from_process_local_data(row, array[None], shape)
    turned = jax.jit(lambda same: same, out_shardings=column)(table)
    return np.asarray(turned.addressable_data(0))[:, 0]


def mesh_of(params: Any) -> Mesh | None:
    """The mesh that parameters are spread over, or None."""
    # All parameters have one mesh: the first that has any says which.
    for leaf in jax.tree.leaves(params):
        sharding = leaf.sharding if isinstance(leaf, jax.Array) else None
        if isinstance(sharding, NamedSharding):
            return sharding.mesh if isinstance(sharding.mesh, Mesh) else None
    return None


def batch_placer(params: Any) -> Callable[[Any], Any]:
    """A function that spreads a batch of host arrays, rows first, over the mesh of `params`.

    Where there is no mesh, or the rows do not divide over it, it returns the batch, and every device has all.
    """
    mesh = mesh_of(params)

    def place(batch: Any) -> Any:
        if mesh is None or mesh.size == 1:
            return batch
        num_rows = len(jax.tree.leaves(batch)[0])
        # A last batch of any length, for example of questions.
        divides = num_rows % data_parallel_size(mesh) == 0
        return put_batch(batch, mesh) if divides else batch

    return place


def any_process(flag: bool) -> Any:
    """Whether any process has the flag: true or false, perhaps still on the devices until it is read."""
    if jax.process_count() == 1:
        return flag
    # Each device of this process has the process's flag.
    sharding, any_of = _any_of_devices()
    shape = (jax.device_count(),)
    flags = jax.make_array_from_callback(shape, sharding, lambda _: np.full(1, flag))
    return any_of(flags)


@functools.cache
def _any_of_devices() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    """The sharding of one flag a device, and the compiled OR over them."""
    mesh = flat_mesh(jax.devices())
    one_each = NamedSharding(mesh, P("all"))
    everywhere = NamedSharding(mesh, P())
    return one_each, jax.jit(jnp.any, out_shardings=everywhere)


def init_sharded(init: Callable[..., Any], mesh: Mesh, *args: Any) -> tuple[Any, Any]:
    """`init(*args)`, computed on the mesh, and its shardings, which are the step's `state_shardings`.

    Without `out_shardings` jit would replicate the optimiser's moments, which no input has shardings for.
    """
    # 1) Shapes and shardings, without any memory.
    shapes = abstract_sharded(jax.eval_shape(init, *args), mesh)
    check_room("the training state", shapes)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    # 2) The state, each device its own part.
    create = jax.jit(init, out_shardings=shardings)
    return create(*args), shardings
