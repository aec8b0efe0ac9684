"""Meshes over TPU slices and GPU nodes, of stand-ins for their devices: jax gives a CPU no slices."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from radit_jax.config import DecoderConfig, MeshConfig, OptimizerConfig
from radit_jax.data.batches.packing import to_batch
from radit_jax.method import optimizers, steps
from radit_jax.models.decoder import DecoderLm
from radit_jax.runtime.distributed import mesh as meshes


@dataclasses.dataclass(frozen=True)
class Device:
    """What meshes and programs ask of a device; its slice is its number's hundreds."""

    id: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100 80GB HBM3"
    chips_per_process: int = 8
    columns: int = 8  # of a slice, whose chips are numbered row by row

    core_on_chip = 0

    @property
    def slice_index(self) -> int:
        return self.id // 100

    @property
    def process_index(self) -> int:
        return self.id // self.chips_per_process

    @property
    def coords(self) -> tuple[int, int, int]:
        row, column = divmod(self.id % 100, self.columns)
        return column, row, 0

    @property
    def client(self) -> Any:
        return jax.devices()[0].client


def gpu_nodes(*sizes: int) -> list[Device]:
    """Nodes of so many GPUs, in an order that is not the nodes'."""
    devices = []
    for node, size in enumerate(sizes):
        devices += [Device(100 * node + number) for number in range(size)]
    return devices[::-1]


def v5e_slices(num_slices: int) -> list[Device]:
    """Slices of 4 × 4 chips."""
    chips = []
    for number in range(num_slices):
        chips += [Device(100 * number + chip, "tpu", "TPU v5 lite", 4, 4) for chip in range(16)]
    return chips


def ids(mesh: Any) -> list[Any]:
    return np.vectorize(lambda device: device.id)(mesh.devices).tolist()


def test_a_copy_on_each_node_has_the_nodes_own_gpus_in_their_order():
    mesh = meshes.make_mesh(MeshConfig(replica=-1), gpu_nodes(8, 8))
    assert dict(mesh.shape) == {"replica": 2, "fsdp": 8, "tensor": 1}
    first, second = ids(mesh)
    assert first == [[0], [1], [2], [3], [4], [5], [6], [7]]
    assert second == [[100], [101], [102], [103], [104], [105], [106], [107]]


def test_one_copy_over_two_nodes_is_cut_over_one_node_after_the_other():
    mesh = meshes.make_mesh(MeshConfig(), gpu_nodes(8, 8), rows=8)
    assert dict(mesh.shape) == {"replica": 1, "fsdp": 8, "tensor": 2}
    (copy,) = ids(mesh)
    # Neighbours on the tensor axis share a node, and so do those of each half of the fsdp axis.
    assert copy == [[0, 1], [2, 3], [4, 5], [6, 7], [100, 101], [102, 103], [104, 105], [106, 107]]


def test_replica_takes_the_slices_first_and_fsdp_what_it_leaves():
    mesh = meshes.make_mesh(MeshConfig(replica=2, tensor=4), gpu_nodes(8, 8, 8, 8))
    slice_of = np.asarray(ids(mesh)) // 100
    assert slice_of.shape == (2, 4, 4)
    # A copy is on two nodes, and each of them has half of the fsdp axis.
    assert slice_of[:, :, 0].tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]
    assert (slice_of == slice_of[:, :, :1]).all()


def test_a_slice_of_a_tpu_is_laid_out_as_it_would_be_alone():
    alone = meshes.make_mesh(MeshConfig(tensor=2), v5e_slices(1))
    both = meshes.make_mesh(MeshConfig(replica=-1, tensor=2), v5e_slices(2))
    assert both.devices.shape == (2, 8, 2)
    assert ids(both)[0] == ids(alone)[0]
    assert (np.asarray(ids(both)[1]) - 100).tolist() == ids(alone)[0]
    # Neighbours on the tensor axis are neighbours in the slice.
    for first, second in both.devices.reshape(-1, 2):
        assert sum(abs(a - b) for a, b in zip(first.coords, second.coords, strict=True)) == 1


def test_a_copy_for_each_slice_is_one_copy_on_a_single_slice():
    open_mesh = meshes.make_mesh(MeshConfig(replica=-1))
    assert open_mesh == meshes.make_mesh(MeshConfig())


@pytest.mark.parametrize(
    ("config", "nodes", "rows", "match"),
    [
        (MeshConfig(), (8, 4), 0, "expected slices of one size, got 2 slices of 8, 4 devices"),
        (MeshConfig(fsdp=1, tensor=16), (8, 8), 0, "got replica 1 × fsdp 1 × tensor 16"),
        # A batch of 5 rows leaves all devices to the tensor axis.
        (MeshConfig(), (8, 8), 5, "got replica 1 × fsdp 1 × tensor 16"),
        # Three nodes do not divide two copies of half the devices.
        (MeshConfig(replica=2, fsdp=2), (4, 4, 4), 0, "a multiple of the 3 slices .* replica 2 × fsdp 2"),
    ],
)
def test_a_mesh_that_the_slices_do_not_divide_is_refused(config, nodes, rows, match):
    with pytest.raises(ValueError, match=f"^mesh: .*{match}"):
        meshes.make_mesh(config, gpu_nodes(*nodes), rows=rows)


def test_a_flag_of_any_process_is_one_of_the_devices_of_all_slices(monkeypatch):
    devices = gpu_nodes(8, 8)
    monkeypatch.setattr(meshes.jax, "devices", lambda: devices)
    one_each, _ = meshes._any_of_devices.__wrapped__()
    assert one_each.mesh.devices.tolist() == devices


def test_a_training_step_on_two_nodes_lowers_for_cuda(monkeypatch):
    """A copy on each node, cuDNN's attention on each device's rows, forwards and backwards."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    mesh = meshes.make_mesh(MeshConfig(replica=-1), gpu_nodes(8, 8))
    config = DecoderConfig(
        vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=4, head_size=8, ffn_size=64
    )
    plain = DecoderLm(config, dtype=jnp.bfloat16)
    module = meshes.configure_attention(plain, mesh, MeshConfig(remat="full"), row_length=128)
    assert module.attention == "cudnn"

    # 1) The state, cut over a node's GPUs and copied to the other's, and a batch over all 16.
    tx = optimizers.make_optimizer(OptimizerConfig(steps=9, peak_lr=1e-5))
    init = lambda key: steps.init_state(plain.init(key, jnp.zeros((1, 4), jnp.int32))["params"], tx)  # noqa: E731
    state = meshes.abstract_sharded(jax.eval_shape(init, jax.random.key(0)), mesh)
    host_batch = to_batch([], [], row_length=128, targets_per_row=32, num_rows=16, continuation_ids=False)
    of_rows = meshes.batch_sharding(mesh)
    batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=of_rows), host_batch)
    kernel = state.params["model"]["layers"]["mlp"]["up_proj"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 4, 64)

    # 2) The step's program for CUDA.
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step: Any = steps.make_lm_step(module, tx, state_shardings=shardings)
    program = step.trace(state, batch).lower(lowering_platforms=("cuda",)).as_text()
    assert "mhlo.num_partitions = 16" in program
    assert re.search(r'"replica"=2, "fsdp"=8, "tensor"=1', program)
    assert "__cudnn$fmhaSoftmax(" in program and "__cudnn$fmhaSoftmaxBackward(" in program
