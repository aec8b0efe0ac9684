"""Eight simulated devices compute what one does, and keep only their share of the state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from radit_jax.config import BertConfig, LlamaConfig, LoraConfig, MeshConfig, OptimizerConfig
from radit_jax.data.packing import Sequence, join, pack, span, to_batch
from radit_jax.method import losses, steps
from radit_jax.models.bert import Bert
from radit_jax.models.llama import Llama
from radit_jax.models.lora import init_adapters, quantized
from radit_jax.runtime import mesh as meshes
from radit_jax.selfcheck import random_params

LLAMA = Llama(
    LlamaConfig(
        vocab_size=46, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=4, head_size=8, ffn_size=64
    )
)
BERT = Bert(BertConfig(vocab_size=46, hidden_size=32, num_layers=2, num_heads=4, ffn_size=64, max_length=16))
LLAMA_ARGS = (jnp.zeros((1, 4), jnp.int32),)
BERT_ARGS = (jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool))
READS_GRADIENT = optax.sgd(0.1, momentum=0.9)  # after one step its trace is the gradient
SHAPES = [MeshConfig(), MeshConfig(replica=2, tensor=2)]


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
        Sequence(
            span(rng.integers(1, 46, 4)),
            (join(span(rng.integers(1, 46, 3)), span(rng.integers(1, 46, 1 + i % 5), 1.0)),),
        )
        for i in range(20)
    ]
    limits = {"row_length": 32, "targets_per_row": 16}
    return to_batch(sequences, pack(sequences, **limits), num_rows=8, **limits)


def r_ft_batch():
    rng = np.random.default_rng(0)
    chunk_mask = rng.random((8, 5)) < 0.8
    chunk_mask[3] = False
    target = jnp.asarray(rng.normal(size=(8, 5)), jnp.float32)
    return steps.RftBatch(
        query_tokens=rng.integers(1, 46, (8, 6)).astype(np.int32),
        query_mask=np.arange(6) < rng.integers(2, 7, (8, 1)),
        chunk_embeddings=rng.normal(size=(8, 5, 32)).astype(np.float32),
        target_log_probs=np.asarray(losses.retrieval_log_prob(target, jnp.asarray(chunk_mask), 0.5)),
        chunk_mask=chunk_mask,
    )


def one_step(make_step, params, batch, mesh, tx=READS_GRADIENT):
    def init(params):
        return steps.init_state(params, tx)

    state, shardings = meshes.init_sharded(init, mesh, params)
    state, metrics = make_step(tx, shardings)(state, meshes.put_batch(batch, mesh))
    return state, float(metrics["loss"])


def lm_step(tx, shardings):
    return steps.make_lm_step(LLAMA, tx, state_shardings=shardings)


def r_ft_step(tx, shardings):
    return steps.make_r_ft_step(BERT, tx, temperature=0.5, state_shardings=shardings)


@pytest.fixture(scope="module")
def lm_alone(llama_params):
    return one_step(lm_step, llama_params, lm_batch(), meshes.make_mesh(MeshConfig(), jax.devices()[:1]))


@pytest.fixture(scope="module")
def r_ft_alone(bert_params):
    return one_step(r_ft_step, bert_params, r_ft_batch(), meshes.make_mesh(MeshConfig(), jax.devices()[:1]))


def assert_same_step(one_device, eight_devices, share=0.35):
    (alone, loss), (spread, spread_loss) = one_device, eight_devices
    assert abs(loss - spread_loss) <= 1e-5 * abs(loss)
    assert largest_share(spread.params) < share and largest_share(spread.opt_state) < share
    grads = [optax.tree.get(state.opt_state, "trace") for state in (alone, spread)]
    norm = float(optax.tree.norm(grads[0]))
    assert norm > 0.1
    for one, other in zip(*map(jax.tree.leaves, grads), strict=True):
        assert np.abs(np.asarray(one) - np.asarray(other)).max() <= 1e-5 * norm
    for one, other in zip(jax.tree.leaves(alone.params), jax.tree.leaves(spread.params), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("config", SHAPES, ids=str)
def test_an_lm_ft_step_on_eight_devices_is_the_step_on_one(lm_alone, llama_params, config):
    assert_same_step(lm_alone, one_step(lm_step, llama_params, lm_batch(), meshes.make_mesh(config)))


@pytest.mark.parametrize("config", SHAPES, ids=str)
def test_an_r_ft_step_on_eight_devices_is_the_step_on_one(r_ft_alone, bert_params, config):
    assert_same_step(r_ft_alone, one_step(r_ft_step, bert_params, r_ft_batch(), meshes.make_mesh(config)))


def one_lora_step(params, mesh):
    lora, params = LoraConfig(rank=4), meshes.put_params(params, mesh)

    def init(params):
        return steps.init_state(init_adapters(params, lora, jax.random.key(0)), READS_GRADIENT)

    state, shardings = meshes.init_sharded(init, mesh, params)
    step = steps.make_lm_step(LLAMA, READS_GRADIENT, lora=lora, state_shardings=shardings)
    state, metrics = step(state, meshes.put_batch(lm_batch(), mesh), params)
    return state, float(metrics["loss"])


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
    tx = steps.make_optimizer(OptimizerConfig(steps=9, peak_lr=0.1, adam_lr=0.1, name=name))
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


@pytest.mark.parametrize("config", [MeshConfig(replica=3), MeshConfig(fsdp=4), MeshConfig(replica=16)])
def test_a_mesh_that_the_devices_cannot_make_is_an_error(config):
    with pytest.raises(ValueError, match=r"mesh: replica .* does not make 8 devices; set mesh.fsdp=-1"):
        meshes.make_mesh(config)


@pytest.mark.parametrize(("rows", "fitting"), [(12, "8 or 16"), (3, "8")])
def test_a_batch_that_does_not_divide_names_sizes_that_would(rows, fitting):
    mesh = meshes.make_mesh(MeshConfig(replica=2))
    message = rf"a batch of {rows} rows .* replica 2 × fsdp 4 = 8 devices; use a batch size of {fitting}$"
    with pytest.raises(ValueError, match=message):
        meshes.put_batch({"tokens": np.zeros((rows, 4), np.int32)}, mesh)
