"""Devices in slices, and meshes that span several of them.

A slice is what one fast network joins, and XLA numbers it by `slice_index`: the chips of a TPU slice, or the
GPUs of an NVLink domain, which on most machines is a node. Between slices is the slower network of the data
centre (DCN). Devices without such a number, for example CPUs, are one slice.
"""

import collections
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

MeshShape = tuple[int, int, int]  # replica, fsdp, tensor


def count_slices(devices: Sequence[Any]) -> int:
    """How many slices `devices` are in. Raises ValueError where one has more of them than another."""
    slice_indices = [getattr(device, "slice_index", 0) for device in devices]
    sizes = collections.Counter(slice_indices)
    if len(set(sizes.values())) > 1:
        described = ", ".join(str(sizes[index]) for index in sorted(sizes))
        raise ValueError(
            f"mesh: expected slices of one size, got {len(sizes)} slices of {described} devices. Start the "
            "run with as many chips of every TPU slice, or GPUs of every node."
        )
    return len(sizes)


def dcn_shape(shape: MeshShape, num_slices: int) -> MeshShape:
    """How many parts each axis of a mesh of `shape` is in, of those that different slices hold.

    `replica` is divided over the slices first, and then `fsdp`, so that only sums of gradients, or gathered
    parameters, cross the slower network. Raises ValueError where the slices do not divide the two: sums
    inside a layer, which `tensor` makes, never leave a slice.

    >>> dcn_shape((2, 4, 2), 2), dcn_shape((2, 8, 1), 4)
    ((2, 1, 1), (2, 2, 1))
    """
    replica, fsdp, tensor = shape
    replica_parts = math.gcd(replica, num_slices)
    fsdp_parts = num_slices // replica_parts
    if fsdp % fsdp_parts:
        raise ValueError(
            f"mesh: expected replica × fsdp to be a multiple of the {num_slices} slices (of a TPU, or GPU "
            f"nodes), got replica {replica} × fsdp {fsdp} × tensor {tensor}. Set mesh.replica=-1 for a copy "
            f"on each slice, lower mesh.tensor, or use batch sizes that {num_slices} divides."
        )
    return replica_parts, fsdp_parts, 1


def hybrid_devices(
    shape: MeshShape,
    devices: Sequence[Any],
    num_slices: int,
) -> np.ndarray:
    """The devices of several slices in the order of a mesh of `shape`: along an axis, slice after slice."""
    over_dcn = dcn_shape(shape, num_slices)
    inside = [size // parts for size, parts in zip(shape, over_dcn, strict=True)]
    # jax.make_mesh splits physical axes for a v5e only; elsewhere this helps where it would give up.
    return mesh_utils.create_hybrid_device_mesh(
        inside,
        over_dcn,
        devices,
        allow_split_physical_axes=True,
    )


def flat_mesh(devices: Sequence[Any]) -> Mesh:
    """A mesh of one axis, `all`, over devices of any slices in the order in which they are given."""
    return Mesh(np.asarray(devices), ("all",), axis_types=(AxisType.Auto,))
