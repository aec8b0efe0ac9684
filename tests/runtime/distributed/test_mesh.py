"""Eight simulated devices compute what one does, and keep only their share of the state."""

import dataclasses
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from exact import assert_exact, in_float64
from jax.experimental import topologies
from jax.sharding import PartitionSpec as P

from radit_jax.config import (
    BertConfig,
    DecoderConfig,
    LastTokenConfig,
    LoraConfig,
    MeshConfig,
    OptimizerConfig,
)
from radit_jax.data.batches.packing import PrefixTree, concatenate_spans, pack, pack_texts, span, to_batch
from radit_jax.method import losses, optimizers, steps
from radit_jax.method.likelihood import continuation_log_probs, token_log_probs
from radit_jax.models import attention
from radit_jax.models.bert import Bert, encode
from radit_jax.models.decoder import DecoderLm
from radit_jax.models.last_token import LastTokenEncoder
from radit_jax.models.lora import init_adapters, quantized
from radit_jax.runtime.distributed import mesh as meshes
from radit_jax.selfcheck.tiny_models import random_params

LLAMA = DecoderLm(
    DecoderConfig(
        vocab_size=46, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=4, head_size=8, ffn_size=64
    )
)
BERT = Bert(BertConfig(vocab_size=46, hidden_size=32, num_layers=2, num_heads=4, ffn_size=64, max_length=16))
# For what is to be equal.
LLAMA64 = LLAMA.clone(dtype=jnp.float64)
BERT64 = BERT.clone(dtype=jnp.float64)
LLAMA_ARGS = (jnp.zeros((1, 4), jnp.int32),)
BERT_ARGS = (jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool))
READS_GRADIENT = optax.sgd(0.1, momentum=0.9)  # after one step its trace is the gradient
SHAPES = [MeshConfig(), MeshConfig(tensor=2), MeshConfig(replica=2, tensor=2)]


@pytest.fixture(scope="module")
def llama_params():
    return random_params(LLAMA, *LLAMA_ARGS)


@pytest.fixture(scope="module")
def bert_params():
    return random_params(BERT, *BERT_ARGS)


def lm_batch():
    """Rows whose numbers of answer tokens differ, the last one empty: a mean of means would be wrong."""
    rng = np.random.default_rng(0)
    sequences = [
        PrefixTree(
            span(rng.integers(1, 46, 4)),
            (concatenate_spans(span(rng.integers(1, 46, 3)), span(rng.integers(1, 46, 1 + i % 5), 1.0)),),
        )
        for i in range(20)
    ]
    packed = pack(sequences, row_length=32, targets_per_row=16)
    return to_batch(sequences, packed, num_rows=8, row_length=32, targets_per_row=16)


QUERIES = [list(range(1, length)) for length in (3, 7, 5, 2, 4, 6, 3, 5)]


def r_ft_batch():
    """A batch of host arrays, which `put_batch` spreads."""
    rng = np.random.default_rng(0)
    chunk_mask: Any = rng.random((8, 5)) < 0.8
    chunk_mask[3] = False
    target = jnp.asarray(rng.normal(size=(8, 5)))
    embeddings: Any = rng.normal(size=(8, 5, 32))
    log_probs: Any = np.asarray(losses.retrieval_log_prob(target, jnp.asarray(chunk_mask), 0.5))
    return steps.RftBatch(
        queries=pack_texts(QUERIES, row_length=6, num_rows=8),
        chunk_embeddings=embeddings,
        target_log_probs=log_probs,
        chunk_mask=chunk_mask,
    )


def one_step(make_step, params, batch, mesh, tx=READS_GRADIENT, parts=1):
    def init(params):
        return steps.init_state(params, tx)

    with jax.enable_x64(True):
        state, shardings = meshes.init_sharded(init, mesh, in_float64(params))
        state, metrics = make_step(tx, shardings)(state, meshes.put_batch(batch, mesh, parts))
    return state, metrics["loss"]


def one_device():
    return meshes.make_mesh(MeshConfig(), jax.devices()[:1])


def lm_step(tx, shardings):
    return steps.make_lm_step(fitted(shardings.step.mesh), tx, state_shardings=shardings)


def fitted(mesh):
    return meshes.configure_attention(LLAMA64, mesh, MeshConfig(), row_length=32)


def r_ft_step(tx, shardings):
    return steps.make_r_ft_step(BERT64, tx, temperature=0.5, state_shardings=shardings)


@pytest.fixture(scope="module")
def lm_alone(llama_params):
    return one_step(lm_step, llama_params, lm_batch(), one_device())


@pytest.fixture(scope="module")
def r_ft_alone(bert_params):
    return one_step(r_ft_step, bert_params, r_ft_batch(), one_device())


def assert_same_step(on_one, on_eight, share=0.35):
    (alone, loss), (spread, spread_loss) = on_one, on_eight
    assert largest_share(spread.params) < share and largest_share(spread.opt_state) < share
    grads = [optax.tree.get(state.opt_state, "trace") for state in (alone, spread)]
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads[0])) > 0.01
    assert_exact((spread_loss, grads[1]), (loss, grads[0]))
    assert_exact(spread.params, alone.params)


@pytest.mark.parametrize("config", SHAPES, ids=str)
def test_an_lm_ft_step_on_eight_devices_is_the_step_on_one(lm_alone, llama_params, config):
    assert_same_step(lm_alone, one_step(lm_step, llama_params, lm_batch(), meshes.make_mesh(config)))


LOCAL = {"window": 5, "global_every": 2, "local_rope_theta": 100.0, "query_divisor": 16}


@pytest.mark.parametrize("changes", [{"family": "qwen2"}, {"family": "gemma3", **LOCAL}], ids=str)
def test_a_step_of_another_family_on_eight_devices_is_the_step_on_one(changes):
    """Biases are cut with their heads; rows of some twelve tokens are longer than the window."""
    network = LLAMA.clone(config=dataclasses.replace(LLAMA.config, num_kv_heads=2, **changes))
    params = random_params(network, *LLAMA_ARGS)

    def step(tx, shardings):
        module = network.clone(dtype=jnp.float64)
        module = meshes.configure_attention(module, shardings.step.mesh, MeshConfig(), row_length=32)
        return steps.make_lm_step(module, tx, state_shardings=shardings)

    spread = meshes.make_mesh(MeshConfig(replica=2, tensor=2))
    alone, on_eight = (one_step(step, params, lm_batch(), mesh) for mesh in (one_device(), spread))
    assert_same_step(alone, on_eight)


def test_no_logits_travel_between_devices_that_share_the_vocabulary(llama_params):
    mesh = meshes.make_mesh(MeshConfig(tensor=2))
    module = meshes.configure_attention(LLAMA, mesh, MeshConfig(), row_length=32)
    loss = lambda params, batch: token_log_probs(module, params, batch).sum()  # noqa: E731
    params, batch = meshes.put_params(llama_params, mesh), meshes.put_batch(lm_batch(), mesh)
    assert params["lm_head"]["kernel"].sharding.spec == P("fsdp", "tensor")
    program = jax.jit(jax.grad(loss)).lower(params, batch).compile().as_text() or ""
    sent = re.findall(r"= \(?f32\[([\d,]*)\]\S* (?:all|reduce|collective)-", program)
    assert sent
    assert not [shape for shape in sent if re.search(r"\d+,\d+,(23|46)$", shape)]  # of 46 pieces


def test_a_batch_taken_in_parts_gives_the_step_of_the_whole_on_eight_devices_too(lm_alone, llama_params):
    def step(tx, shardings):
        return steps.make_lm_step(fitted(mesh), tx, accumulate_steps=2, state_shardings=shardings)

    mesh = meshes.make_mesh(MeshConfig(tensor=2))
    assert_same_step(lm_alone, one_step(step, llama_params, lm_batch(), mesh, parts=2))


@pytest.mark.parametrize("config", SHAPES, ids=str)
def test_eight_devices_score_and_embed_as_one_does(llama_params, bert_params, config):
    batch, widths = lm_batch(), np.array([[len(query)] for query in QUERIES])
    mask = np.arange(6) < widths
    score = jax.jit(continuation_log_probs, static_argnums=(0, 3))
    embed = jax.jit(lambda params, *texts: encode(BERT64, params, *texts))

    def on(mesh):
        llama, bert = (meshes.put_params(in_float64(params), mesh) for params in (llama_params, bert_params))
        texts = meshes.put_batch((np.where(mask, np.arange(1, 7), 0), mask), mesh)
        return score(fitted(mesh), llama, meshes.put_batch(batch, mesh), 8), embed(bert, *texts)

    with jax.enable_x64(True):
        alone, spread = (on(mesh) for mesh in (one_device(), meshes.make_mesh(config)))
    assert_exact(spread[0], alone[0])
    assert_exact(spread[1], alone[1])


@pytest.mark.parametrize("config", SHAPES, ids=str)
def test_an_r_ft_step_on_eight_devices_is_the_step_on_one(r_ft_alone, bert_params, config):
    assert_same_step(r_ft_alone, one_step(r_ft_step, bert_params, r_ft_batch(), meshes.make_mesh(config)))


@pytest.mark.parametrize(
    "encoder",
    [
        Bert(dataclasses.replace(BERT.config, family="mpnet")),
        LastTokenEncoder(LastTokenConfig(LLAMA.config)),
    ],
    ids=["mpnet", "decoder"],
)
def test_an_r_ft_step_of_another_encoder_on_eight_devices_is_the_step_on_one(encoder):
    def step(tx, shardings):
        module = encoder.clone(dtype=jnp.float64)
        return steps.make_r_ft_step(module, tx, temperature=0.5, state_shardings=shardings)

    params = random_params(encoder, *BERT_ARGS)
    spread = meshes.make_mesh(MeshConfig(replica=2, tensor=2))
    alone, on_eight = (one_step(step, params, r_ft_batch(), mesh) for mesh in (one_device(), spread))
    assert_same_step(alone, on_eight)


def one_lora_step(params, mesh):
    lora = LoraConfig(rank=4)

    def init(params):
        return steps.init_state(init_adapters(params, lora, jax.random.key(0)), READS_GRADIENT)

    with jax.enable_x64(True):
        params = meshes.put_params(in_float64(params), mesh)
        state, shardings = meshes.init_sharded(init, mesh, params)
        step = steps.make_lm_step(LLAMA64, READS_GRADIENT, lora=lora, state_shardings=shardings)
        state, metrics = step(state, meshes.put_batch(lm_batch(), mesh), params)
    return state, metrics["loss"]


def test_a_lora_step_on_eight_devices_is_the_step_on_one(llama_params):
    alone = one_lora_step(llama_params, meshes.make_mesh(MeshConfig(), jax.devices()[:1]))
    spread = one_lora_step(llama_params, meshes.make_mesh(MeshConfig(replica=2, tensor=2)))
    assert_same_step(alone, spread, share=0.7)  # an adapter's inner axis, its rank, is never cut


def test_an_adapter_is_cut_where_its_kernel_is(llama_params):
    adapters = init_adapters(llama_params, LoraConfig(rank=4), jax.random.key(0))
    shardings = meshes.tree_shardings(adapters, meshes.make_mesh(MeshConfig(replica=2, tensor=2)))
    layers = shardings["model"]["layers"]
    pairs = {**layers["self_attn"], **layers["mlp"]}
    for name, pair in pairs.items():
        across, along = ("tensor", "fsdp") if name in ("o_proj", "down_proj") else ("fsdp", "tensor")
        assert (pair["lora_a"].spec, pair["lora_b"].spec) == (P(None, across, None), P(None, None, along))


def test_a_quantised_kernel_is_cut_where_it_was(llama_params):
    pytest.importorskip("qwix")
    mesh = meshes.make_mesh(MeshConfig(replica=2, tensor=2))
    params = meshes.put_params(quantized(llama_params, LoraConfig(rank=1, quantize="int8")), mesh)
    kernel = params["model"]["layers"]["mlp"]["down_proj"]["kernel"]
    assert kernel.qvalue.sharding.spec == P(None, "tensor", "fsdp")
    assert kernel.scale.sharding.spec == P(None, None, "fsdp")  # one for all inputs


def largest_share(tree):
    """How much of a tree a device holds."""
    held = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(tree))
    return held / sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_parameters_and_optimiser_state_start_sharded(llama_params, name):
    tx = optimizers.make_optimizer(OptimizerConfig(steps=9, peak_lr=0.1, adam_lr=0.1, name=name))
    mesh = meshes.make_mesh(MeshConfig())
    state, _ = meshes.init_sharded(lambda params: steps.init_state(params, tx), mesh, llama_params)
    assert largest_share(state.params) < 1 / 7
    assert largest_share(state.opt_state) < 1 / 7


@pytest.mark.parametrize(("module", "args"), [(LLAMA, LLAMA_ARGS), (BERT, BERT_ARGS)], ids=["llama", "bert"])
def test_every_matrix_of_both_networks_is_in_the_table(module, args):
    mesh = meshes.make_mesh(MeshConfig())
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
    for path, sharding in jax.tree_util.tree_leaves_with_path(meshes.tree_shardings(shapes, mesh)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        is_matrix = path[-1].key in ("kernel", "embedding")
        assert ("fsdp" in sharding.spec) == is_matrix, name


def test_an_axis_that_does_not_divide_stays_whole():
    tree = {"embed_tokens": {"embedding": jax.ShapeDtypeStruct((46, 30), jnp.float32)}}
    [sharding] = jax.tree.leaves(meshes.tree_shardings(tree, meshes.make_mesh(MeshConfig())))
    assert sharding.spec == P("tensor", None)
    [sharding] = jax.tree.leaves(meshes.tree_shardings(tree, meshes.make_mesh(MeshConfig(replica=4))))
    assert sharding.spec == P("tensor", "fsdp")


def test_loaded_parameters_are_laid_out_without_a_change(llama_params):
    placed = meshes.put_params(llama_params, meshes.make_mesh(MeshConfig()))
    jax.tree.map(np.testing.assert_array_equal, placed, llama_params)
    assert placed["model"]["embed_tokens"]["embedding"].addressable_shards[0].data.shape == (46, 4)


def test_the_sizes_of_the_mesh_are_the_settings():
    mesh = meshes.make_mesh(MeshConfig(replica=2, tensor=2))
    assert dict(mesh.shape) == {"replica": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("config", "rows", "shape"),
    [
        (MeshConfig(), 0, (1, 8, 1)),
        (MeshConfig(), 64, (1, 8, 1)),
        (MeshConfig(), 12, (1, 4, 2)),
        (MeshConfig(), 7, (1, 1, 8)),
        (MeshConfig(replica=2), 4, (2, 2, 2)),
        (MeshConfig(fsdp=2), 64, (1, 2, 4)),
        (MeshConfig(tensor=2), 12, (1, 4, 2)),
    ],
)
def test_sizes_that_are_left_open_follow_from_the_devices_and_the_batch(config, rows, shape):
    assert tuple(meshes.make_mesh(config, rows=rows).shape.values()) == shape


@pytest.mark.parametrize(
    "config", [MeshConfig(replica=3), MeshConfig(fsdp=4, tensor=1), MeshConfig(replica=16)]
)
def test_a_mesh_that_the_devices_cannot_make_is_an_error(config):
    with pytest.raises(
        ValueError, match=r"mesh: expected .* to be the 8 devices, got replica .* Set mesh.fsdp=-1"
    ):
        meshes.make_mesh(config)


@pytest.mark.parametrize(("rows", "fitting"), [(12, "8 or 16"), (3, "8")])
def test_a_batch_that_does_not_divide_names_sizes_that_would(rows, fitting):
    mesh = meshes.make_mesh(MeshConfig(replica=2))
    message = rf"over replica 2 × fsdp 4 = 8 devices, got {rows}. Use a batch size of {fitting}.$"
    with pytest.raises(ValueError, match=message):
        meshes.put_batch({"tokens": np.zeros((rows, 4), np.int32)}, mesh)


def test_the_parts_of_a_batch_have_to_divide_too():
    mesh = meshes.make_mesh(MeshConfig())
    message = r" = 8 devices in each of 2 parts, got 24. Use a batch size of 16 or 32.$"
    with pytest.raises(ValueError, match=message):
        meshes.put_batch({"tokens": np.zeros((24, 4), np.int32)}, mesh, parts=2)


@pytest.mark.parametrize(("row_length", "kernel"), [(256, "cudnn"), (512, "xla")])
def test_a_gpu_reads_rows_beyond_the_window_by_the_reference(row_length, kernel, capsys, monkeypatch):
    monkeypatch.setitem(meshes.KERNELS, "cpu", "cudnn")
    monkeypatch.setattr(attention, "missing_cudnn", lambda: None)
    config = dataclasses.replace(LLAMA.config, family="gemma3", **LOCAL | {"window": 256})
    module = LLAMA.clone(config=config, dtype=jnp.bfloat16)
    module = meshes.configure_attention(module, one_device(), MeshConfig(), row_length=row_length)
    assert module.attention == kernel
    printed = "xla in the place of cudnn: it packs segments without a window, here of 256 positions"
    assert (printed in capsys.readouterr().out) == (kernel == "xla")


@pytest.mark.parametrize(
    ("platform", "setting", "changes", "kernel", "printed"),
    [
        ("cpu", "auto", {}, "xla", ""),
        ("tpu", "auto", {}, "splash", ""),
        (
            "tpu",
            "auto",
            {"row_length": 200},
            "xla",
            "xla in the place of splash: rows of 200 are not a multiple",
        ),
        ("gpu", "auto", {}, "xla", "xla in the place of cudnn: it computes in bfloat16, not in float32"),
        ("tpu", "xla", {}, "xla", ""),
        ("cpu", "splash", {}, "splash", ""),
    ],
)
def test_the_attention_is_the_devices_own_or_says_why_not(
    platform, setting, changes, kernel, printed, capsys, monkeypatch
):
    monkeypatch.setitem(meshes.KERNELS, "cpu", {"tpu": "splash", "gpu": "cudnn"}.get(platform, "xla"))
    mesh, config = one_device(), MeshConfig(attention=setting)
    module = meshes.configure_attention(LLAMA, mesh, config, **{"row_length": 256, **changes})
    assert module.attention == kernel
    assert (printed in capsys.readouterr().out) if printed else not capsys.readouterr().out


READ_ROWS = """
import json, sys
import jax, numpy as np
from radit_jax.config import MeshConfig
from radit_jax.data.batches.packing import PrefixTree, concatenate_spans, span
from radit_jax.lm.training import PackedTrees
from radit_jax.runtime.distributed.mesh import make_mesh, put_batch
number, count, port, replica, tensor = map(int, sys.argv[1:])
if count > 1:
    jax.distributed.initialize(f"localhost:{port}", count, number)
trees = [PrefixTree(span([i]), (concatenate_spans(span([9]), span([8], 1.0)),)) for i in range(1, 40)]
packed = PackedTrees(trees, row_length=16, batch_size=4, seed=3)
mesh = make_mesh(MeshConfig(replica=replica, tensor=tensor))
rows = {}
for step in range(3):
    for shard in put_batch(packed.shuffled(step), mesh).tokens.addressable_shards:
        for row, tokens in zip(range(*shard.index[0].indices(4)), np.asarray(shard.data), strict=True):
            rows[f"{step} {row}"] = tokens.tolist()
print(json.dumps(rows))
"""


def rows_read(processes, *, replica, tensor):
    """What rows of three batches each process puts on its devices, of which there are four in all."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={4 // processes}"
    root = pathlib.Path(meshes.__file__).parents[3]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(root)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", READ_ROWS, *map(str, (number, processes, port, replica, tensor))],
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    return [json.loads(process.communicate(timeout=120)[0]) for process in running]


@pytest.mark.slow
@pytest.mark.parametrize(("replica", "tensor"), [(1, 1), (2, 2)])
def test_two_processes_read_between_them_what_one_reads(replica, tensor):
    [alone] = rows_read(1, replica=replica, tensor=tensor)
    first, second = rows_read(2, replica=replica, tensor=tensor)
    assert len(alone) == 12 and not set(first) & set(second)
    assert first | second == alone


@pytest.mark.slow
def test_an_lm_ft_step_compiles_for_a_tpu_with_splash_attention_in_it(monkeypatch):
    """Ahead of time, for 16 chips of v5e; prints the peak of memory (`-s`)."""
    pytest.importorskip("libtpu", reason="needs the TPU's compiler: pip install libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # or it asks the cloud which machine this is
    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4").devices
    mesh, config = meshes.make_mesh(MeshConfig(), list(chips)), MeshConfig(remat="full")
    shape = DecoderConfig(
        vocab_size=32_000,
        hidden_size=1024,
        num_layers=6,
        num_heads=8,
        num_kv_heads=4,
        head_size=128,
        ffn_size=2816,
    )
    plain = DecoderLm(shape, dtype=jnp.bfloat16)
    params = jax.eval_shape(plain.init, jax.random.key(0), *LLAMA_ARGS)["params"]
    tx = optimizers.make_optimizer(OptimizerConfig(steps=9, peak_lr=1e-5))
    state = jax.eval_shape(lambda params: steps.init_state(params, tx), params)
    shardings = meshes.tree_shardings(state, mesh)
    step = steps.make_lm_step(
        meshes.configure_attention(plain, mesh, config, row_length=512), tx, state_shardings=shardings
    )
    batch = to_batch([], [], row_length=512, targets_per_row=128, num_rows=32, continuation_ids=False)

    def abstract(tree, shardings):
        place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
        return jax.tree.map(place, tree, shardings)

    rows = jax.tree.map(lambda _: meshes.batch_sharding(mesh), batch)
    lower: Any = step.lower  # pyright: ignore[reportFunctionMemberAccess]
    compiled = lower(abstract(state, shardings), abstract(batch, rows)).compile()
    program = compiled.as_text()
    assert "splash_mha_fwd" in program and "splash_mha_dkv" in program and "splash_mha_dq" in program
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    memory = compiled.memory_analysis()
    print(f"state {size / 2**30:.2f} GiB, peak {memory.peak_memory_in_bytes / 2**30:.2f} GiB a chip")
    assert memory.argument_size_in_bytes < 1.1 * size / 16
    assert memory.peak_memory_in_bytes < 2**30


def test_what_lies_over_the_mesh_comes_back_whole_and_rows_go_where_the_parameters_are():
    mesh = meshes.make_mesh(MeshConfig(fsdp=4, tensor=2))
    spread = meshes.batch_placer({"w": meshes.put_params(jnp.zeros(3), mesh)})
    rows = (np.arange(8.0).reshape(4, 2), np.arange(4))
    placed = spread(rows)
    assert {shard.data.shape for shard in placed[0].addressable_shards} == {(1, 2)}
    np.testing.assert_array_equal(meshes.gather(placed[0]), rows[0])
    assert spread((np.zeros((6, 2)),))[0].shape == (6, 2)  # 6 rows are on every device
    assert isinstance(spread((np.zeros((6, 2)),))[0], np.ndarray)
    assert meshes.batch_placer({"w": jnp.zeros(3)})(rows) is rows


def test_a_flag_of_any_process_is_one_of_all():
    assert meshes.any_process(True) is True  # by itself a process needs no device to know
    assert meshes.any_process(False) is False
    spread, any_of = meshes._any_of_devices()
    for flags in (np.zeros(8, bool), np.arange(8) == 5):
        assert bool(any_of(meshes.jax.device_put(flags, spread))) == flags.any()
