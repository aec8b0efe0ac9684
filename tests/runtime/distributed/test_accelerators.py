"""Targets: what a name means."""

import pytest

from radit_jax.runtime.distributed.accelerators import CHIPS, GIB, find_target, peak_flops


@pytest.mark.parametrize(
    ("name", "chips", "hosts", "topology"),
    [
        ("v5e-256", 256, 64, "v5e:16x16"),
        ("v5p-16", 8, 2, "v5p:2x2x2"),  # its name counts cores
        ("v5p-128", 64, 16, "v5p:4x4x4"),
        ("v4-8", 4, 1, "v4:2x2x1"),
        ("v6e-32", 32, 8, "v6e:4x8"),
        ("v5e-8", 8, 1, "v5e:2x4"),  # a host with eight chips
        ("v6e-1", 1, 1, "v6e:1x1"),
        ("h100-8", 8, 1, ""),
        ("a100-24", 24, 3, ""),
    ],
)
def test_a_target_is_named_as_it_is_rented(name, chips, hosts, topology):
    target = find_target(name)
    assert (target.num_chips, target.num_hosts, target.topology) == (chips, hosts, topology)


def test_slices_of_a_tpu_are_counted_and_nodes_of_gpus_are_slices():
    both = find_target("v5e-16", slices=2)
    assert (both.name, both.num_chips, both.num_hosts, both.num_slices) == ("2 × v5e-16", 32, 8, 2)
    assert both.topology == "v5e:4x4"
    assert find_target("v5e-8", slices=3).num_hosts == 3
    assert [find_target(name).num_slices for name in ("h100-4", "h100-8", "h100-64")] == [1, 1, 8]


@pytest.mark.parametrize(
    ("name", "slices", "match"),
    [
        ("v5e-16", 0, "--slices: expected 1 or more, got 0"),
        ("h100-8", 2, "--slices: expected it for a TPU only, got 2 with h100-8. Name all GPUs"),
    ],
)
def test_slices_that_cannot_be_are_refused(name, slices, match):
    with pytest.raises(ValueError, match=match):
        find_target(name, slices)


def test_a_host_that_is_a_whole_slice_has_the_memory_of_its_machine_type():
    memory = {name: find_target(name).chip.host_memory / 1e9 for name in ("v5e-1", "v5e-4", "v5e-8", "v6e-8")}
    assert memory == {"v5e-1": 48, "v5e-4": 192, "v5e-8": 384, "v6e-8": 1440}


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("v5e", "expected KIND-NUMBER of a kind among v4, v5e, v5p, v6e, a100, h100, h200, got 'v5e'"),
        ("tpu-8", "kind among v4, v5e, .*, got 'tpu-8'"),
        ("v5e-12", "one of the slices v5e-1, v5e-4, .*, got v5e-12"),
        ("v5p-3", "one of the slices v5p-2, v5p-8, .*, got v5p-3"),
        ("h100-0", "expected at least one chip, got 'h100-0'"),
        ("a100-20", "expected up to 8 GPUs or whole nodes of 8, got a100-20"),
    ],
)
def test_a_target_that_does_not_exist_is_refused(name, match):
    with pytest.raises(ValueError, match=match):
        find_target(name)


def test_a_chip_never_offers_more_memory_than_is_built_in():
    built_in = {"v4": 32, "v5e": 16, "v5p": 96, "v6e": 32, "a100": 80, "h100": 80, "h200": 141}
    assert all(CHIPS[kind].memory < size * GIB for kind, size in built_in.items())
    assert set(built_in) == set(CHIPS)


def test_the_peak_of_a_device_is_that_of_its_chip():
    assert peak_flops("TPU v5 lite") == peak_flops("TPU v5e") == CHIPS["v5e"].flops == 197e12
    assert peak_flops("TPU v5") == peak_flops("TPU v5p") == CHIPS["v5p"].flops == 459e12
    assert peak_flops("NVIDIA H200") == peak_flops("NVIDIA H100 80GB HBM3") == CHIPS["h100"].flops == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert [peak_flops(kind) for kind in ("cpu", "TPU v3", "NVIDIA GeForce RTX 4090")] == [None] * 3
