"""What takes more than a device has is refused before it is allocated, with what to set."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from radit_jax.config import MeshConfig
from radit_jax.runtime.distributed import memory
from radit_jax.runtime.distributed.mesh import abstract_sharded, init_sharded, make_mesh, put_params

KERNEL = {
    "lm_head": {"kernel": jnp.zeros((16, 6)), "bias": jnp.zeros(6)}
}  # 16 / 8 · 6 · 4 + 6 · 4 = 72 bytes


class Device:
    """A device of 8, which says that it has so many bytes."""

    def __init__(self, limit):
        self.limit = limit

    def memory_stats(self):
        return self.limit and {"bytes_limit": self.limit}


def let_devices_have(monkeypatch, *limits):
    monkeypatch.setattr(memory.jax, "local_devices", lambda: [Device(limit) for limit in limits])


def test_a_devices_share_is_its_part_of_what_is_cut_and_all_of_the_rest():
    mesh = make_mesh(MeshConfig())
    assert memory.bytes_per_device(abstract_sharded(KERNEL, mesh)) == 72
    assert (
        memory.bytes_per_device(jax.device_put(KERNEL, NamedSharding(mesh, PartitionSpec())))
        == 16 * 6 * 4 + 24
    )


def test_parameters_beyond_a_devices_memory_are_refused(monkeypatch):
    mesh = make_mesh(MeshConfig())
    let_devices_have(monkeypatch, 1000, 71)
    with pytest.raises(memory.DoesNotFitError, match="the model takes 0.00 GiB of each device"):
        put_params(KERNEL, mesh)
    let_devices_have(monkeypatch, 1000, 72)
    put_params(KERNEL, mesh)


def test_a_training_state_beyond_a_devices_memory_is_refused_before_it_is_made(monkeypatch):
    mesh, gib = make_mesh(MeshConfig()), 1 << 30

    def init():  # 4 TiB, which would be refused otherwise, but not by us
        return {"lm_head": {"kernel": jnp.zeros((1 << 20, 1 << 20))}}

    let_devices_have(monkeypatch, 16 * gib)
    message = "the training state takes 512.00 GiB of each device, which has 16.00 GiB"
    with pytest.raises(memory.DoesNotFitError, match=message):
        init_sharded(init, mesh)


def test_devices_that_do_not_say_how_much_they_have_are_not_asked(monkeypatch):
    let_devices_have(monkeypatch, None)
    put_params(KERNEL, make_mesh(MeshConfig()))


def test_what_the_runtime_refuses_is_said_with_the_stages_remedy():
    with (
        pytest.raises(
            ValueError,
            match=r"^score: expected .* the devices' memory, .*Out of memory.*\). Lower score.batch_size or",
        ),
        memory.naming_remedy("score"),
    ):
        jnp.zeros((1 << 40, 1 << 10)).block_until_ready()


def test_what_we_refuse_is_said_with_the_stages_remedy(monkeypatch):
    mesh = make_mesh(MeshConfig())
    let_devices_have(monkeypatch, 71)
    with (
        pytest.raises(
            ValueError, match=r"^lm_ft: .*the model takes .*\). Raise lm_ft.accumulate_steps, set "
        ),
        memory.naming_remedy("lm_ft"),
    ):
        put_params(KERNEL, mesh)


def test_other_errors_of_the_runtime_stay_what_they_are():
    fault = jax.errors.JaxRuntimeError("INTERNAL: something else")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory.naming_remedy("score"):
        raise fault
