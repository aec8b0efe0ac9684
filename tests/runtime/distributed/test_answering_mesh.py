"""A model that answers is in whole copies, and none of its kernels crosses between devices for a token."""

import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from radit_jax.config import DecoderConfig, EvaluateConfig, MeshConfig
from radit_jax.lm.answering import placement_of
from radit_jax.lm.prefix_sharing import build_prefill_batch, split_shared_prefixes
from radit_jax.method.generation import Stops, decode_steps, init_decode, prefill_shared
from radit_jax.models.decoder import DecoderLm
from radit_jax.runtime.distributed import answering_mesh as layouts
from radit_jax.runtime.distributed.answering_mesh import (
    AnsweringModel,
    Room,
    answering_mesh,
    answering_sizes,
    for_each_process,
    tokens_at_once,
)
from radit_jax.runtime.distributed.memory import DoesNotFitError
from radit_jax.runtime.distributed.mesh import make_mesh, put_params, row_layout
from radit_jax.selfcheck.tiny_models import random_params

# Every kernel is larger than what decoding may gather: q 32 × 64, k and v 32 × 32, o 64 × 32, gate 32 × 96.
SHAPE = DecoderConfig(
    vocab_size=136, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_size=16, ffn_size=96
)
ENDS = Stops((0,))
OPEN = MeshConfig()
NUM_PROMPTS = 16
# A device's part has 100 + 3360 / tensor bytes: a norm is on every device, and a kernel is cut.
PARAMS = {
    "norm": {"weight": jax.ShapeDtypeStruct((25,), jnp.float32)},
    "up_proj": {"kernel": jax.ShapeDtypeStruct((1, 1, 840), jnp.float32)},
}


def sizes_of(config=OPEN, num_kv_heads=8, room=3460, num_devices=8, **slices: int):
    model = AnsweringModel(PARAMS, num_kv_heads)
    of_parts = Room(float(room), float(room))
    found = answering_sizes(config, model, room=of_parts, num_devices=num_devices, **slices)
    return found and (found.replica, found.fsdp, found.tensor)


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (100 + 3360, (8, 1, 1)),
        (100 + 3359, (4, 1, 2)),
        (100 + 1000, (2, 1, 4)),
        (100 + 420, (1, 1, 8)),
        (100 + 419, None),
        (float("inf"), (8, 1, 1)),
    ],
)
def test_a_copy_is_on_as_few_devices_as_have_room_for_it(room, expected):
    assert sizes_of(room=room) == expected


def test_a_device_has_whole_heads_where_that_is_possible():
    # Of 12 devices 3 would do, but 4 have two of the 8 heads each.
    assert sizes_of(num_devices=12, room=100 + 1200) == (3, 1, 4)
    assert sizes_of(num_devices=12, room=100 + 1200, num_kv_heads=2) == (4, 1, 3)


def test_a_copy_is_within_a_slice():
    assert sizes_of(num_slices=2, room=100 + 900) == (2, 1, 4)
    assert sizes_of(num_slices=2, room=100 + 500) is None


def test_the_setting_says_how_many_devices_share_a_copy():
    assert sizes_of(MeshConfig(answering_tensor=4, remat="full")) == (2, 1, 4)
    with pytest.raises(ValueError, match="^mesh.answering_tensor: expected a divisor of the 4 .* got 8"):
        sizes_of(MeshConfig(answering_tensor=8), num_slices=2)
    with pytest.raises(DoesNotFitError):
        answering_mesh(MeshConfig(answering_tensor=16), AnsweringModel(PARAMS, 8), own=True)


def test_other_models_prompts_and_what_is_held_take_of_the_room(monkeypatch):
    model = AnsweringModel(PARAMS, 8, token_bytes=16)

    def tensor_of(**how):
        return dict(answering_mesh(OPEN, model, **how).shape)["tensor"]

    # Half of a device's memory is for parameters.
    monkeypatch.setattr(layouts, "device_memory", lambda: 2 * (100 + 3360))
    assert tensor_of() == tensor_of(own=True) == 1
    assert tensor_of(num_models=2) == 4  # each has 1730 bytes, and takes 1780 where two share it
    assert tensor_of(held=2000) == 2
    # Four times a device's part of the prompts is taken off: 16 bytes a token, over eight devices.
    assert tensor_of(num_tokens=400) == 1
    assert tensor_of(num_tokens=600) == 2
    # Prompts that leave too little are beside a copy on all devices, but not on those of one process.
    assert tensor_of(num_tokens=1000) == 8
    # Without room for a copy it lies as other models do.
    assert answering_mesh(OPEN, model, held=6900, rows=4) == make_mesh(OPEN, rows=4)
    with pytest.raises(DoesNotFitError):
        answering_mesh(OPEN, model, num_tokens=1000, own=True)


def test_a_prompts_token_has_keys_and_values_in_every_layer():
    assert AnsweringModel.of(SHAPE, PARAMS, "bfloat16") == (PARAMS, 2, 2 * 2 * 2 * 16 * 2)


def test_processes_that_answer_by_themselves_have_their_part_of_the_prompts():
    """And at least a question's, which are together."""
    settings = EvaluateConfig(prompts_per_batch=60, chunks_per_answer=10, sequence_length=100)
    parts = [for_each_process(settings, count) for count in (1, 4, 64)]
    assert [part.prompts_per_batch for part in parts] == [60, 15, 1]
    assert [tokens_at_once(part) for part in parts] == [6000, 1500, 1000]


# ---- what crosses between devices ----


def gathered(program: str) -> set[tuple[int, ...]]:
    """The shapes of all that a program gathers, without axes of 1.

    Of the whole program and not of the loop's body alone: a compiler may move out of a loop what is the same
    in every turn, and gathers of kernels are.
    """
    shapes = set()
    for shape in re.findall(r"\w+\[([\d,]*)\]\S* all-gather\(", program):
        shapes.add(tuple(int(size) for size in shape.split(",") if size not in ("", "1")))
    return shapes


def decoding(config: DecoderConfig, mesh: jax.sharding.Mesh) -> tuple[str, Any]:
    """The compiled loop over tokens on the mesh, and the state that it begins with."""
    module = DecoderLm(config)
    params = put_params(random_params(module, jnp.zeros((1, 4), jnp.int32)), mesh)
    module = module.clone(layout=row_layout(mesh))
    prompts = [[number] * 10 + [number + 1] for number in range(NUM_PROMPTS)]
    batch = build_prefill_batch(split_shared_prefixes(prompts), placement_of(params))
    prefilled = prefill_shared(module, params, *batch)
    state = init_decode(prefilled, np.zeros((NUM_PROMPTS, 1)), max_new_tokens=8, stops=ENDS)
    return decode_steps.lower(module, params, state, 8, stops=ENDS).compile().as_text() or "", state


def test_no_kernel_is_gathered_for_a_token():
    config = MeshConfig(answering_tensor=2)
    shapes = jax.eval_shape(DecoderLm(SHAPE).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    mesh = answering_mesh(config, AnsweringModel.of(SHAPE, shapes, jnp.float32))
    program, state = decoding(SHAPE, mesh)
    # Two devices have the most probable token of their half of the vocabulary, for each of four prompts.
    assert " while(" in program and gathered(program) == {(4, 2)}
    # A device has the keys of its prompts, and of one of the two heads.
    assert state.cache.keys.sharding.shard_shape(state.cache.keys.shape)[1:3] == (4, 1)
    # In the layout of training all kernels are gathered.
    in_training, _ = decoding(SHAPE, make_mesh(MeshConfig()))
    kernels = {(32, 64), (32, 32), (64, 32), (32, 96), (96, 32), (32, 136)}
    assert kernels <= gathered(in_training)


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
@pytest.mark.parametrize("layers", [3, 12], ids=["unrolled", "loop"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_no_kernel_is_gathered_whatever_the_copies_and_the_network(tensor, layers, family):
    """Also in a loop over layers, with a tied head, and where a head of keys is on several devices."""
    of_family: dict[str, Any] = {}
    if family == "gemma3":
        of_family = {"family": family, "window": 4, "global_every": 2, "tie_embeddings": True}
        of_family |= {"local_rope_theta": 100.0, "query_divisor": 16}
    # Wider than the keys of all prompts, which are gathered where heads are cut.
    wide = {"hidden_size": 256, "ffn_size": 768, "vocab_size": 2048, "head_size": 32, "num_heads": 16}
    shape = replace(SHAPE, num_layers=layers, num_kv_heads=4, **wide, **of_family)
    mesh = make_mesh(MeshConfig(replica=8 // tensor, fsdp=1, tensor=tensor))
    program, _ = decoding(shape, mesh)
    kernels = {(256, 512), (256, 128), (512, 256), (256, 768), (768, 256), (256, 2048), (2048, 256)}
    shapes = {sizes[-2:] for sizes in gathered(program)}
    assert kernels.isdisjoint(shapes)
    parts = {(rows // tensor, columns) for rows, columns in kernels}
    parts |= {(rows, columns // tensor) for rows, columns in kernels}
    assert tensor == 1 or parts.isdisjoint(shapes)
