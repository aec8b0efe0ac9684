"""The retriever: embedding texts, and R-ft's step over stored vectors of chunks."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.bench import Bench, drawn, measure, one_device_mesh
from radit_jax.config import OptimizerConfig
from radit_jax.data.batches.packing import pack_lengths, pack_texts
from radit_jax.method.optimizers import make_optimizer
from radit_jax.method.steps import RftBatch, init_state, make_r_ft_step
from radit_jax.models.bert import Bert
from radit_jax.models.flops import encoder_flops
from radit_jax.retrieval.search import encode_batch
from radit_jax.runtime.ahead import IN_FLIGHT, delayed
from radit_jax.runtime.distributed.mesh import init_sharded, put_batch, row_layout

BATCHES = 8  # in a turn
QUERY = (6, 20)  # tokens
ROW = 32  # tokens of the rows that queries share


def embedding(bench: Bench) -> None:
    """Full texts from tokens on the host to vectors on the host, some batches in flight."""
    for dtype in (jnp.bfloat16, jnp.float32):
        name = jnp.dtype(dtype).name
        with bench.trying(name):
            _embed(bench, name, dtype)


def _embed(bench: Bench, name: str, dtype: Any) -> None:
    sizes = bench.sizes
    devices = one_device_mesh()
    rows, length = sizes.texts, sizes.text_length
    tokens = np.random.default_rng(0).integers(3, sizes.encoder.vocab_size, (rows, length), np.int32)
    mask = np.ones((rows, length), bool)
    plain = Bert(sizes.encoder, dtype)
    params = drawn(plain, jnp.float32, tokens[:1], mask[:1])
    module = plain.clone(layout=row_layout(devices))

    def dispatched() -> Iterator[Any]:
        for _ in range(BATCHES):
            yield encode_batch(module, params, *put_batch((tokens, mask), devices))

    def turn() -> Any:
        return [np.asarray(vectors) for vectors in delayed(dispatched(), IN_FLIGHT)]

    clock = measure(turn, most_seconds=sizes.turn_seconds / 2)
    flops = BATCHES * encoder_flops(sizes.encoder, rows=rows, length=length)
    bench.rate(f"{name}, texts of {length}", BATCHES * rows, "texts", clock=clock, flops=flops)


def r_ft(bench: Bench) -> None:
    """Steps on queries in packed rows, each with ten stored vectors, which the host sends."""
    sizes = bench.sizes
    devices = one_device_mesh()
    plain = Bert(sizes.encoder)
    module = plain.clone(layout=row_layout(devices))
    params = drawn(plain, jnp.float32, jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool))
    tx = make_optimizer(OptimizerConfig(steps=1000, peak_lr=1e-5))
    state, shardings = init_sharded(lambda params: init_state(params, tx), devices, params)
    step: Any = make_r_ft_step(module, tx, temperature=1.0, state_shardings=shardings)

    # One batch for all turns; the host packs and sends it each time.
    draw = np.random.default_rng(0)
    lengths = draw.integers(*QUERY, sizes.queries)
    queries = [draw.integers(3, sizes.encoder.vocab_size, length).tolist() for length in lengths]
    num_rows = len(pack_lengths(lengths, row_length=ROW))
    by_chunk = (sizes.queries, sizes.chunks_per_question)
    embeddings = draw.normal(size=(*by_chunk, sizes.encoder.hidden_size)).astype(np.float32)
    target = np.log(draw.dirichlet(np.ones(by_chunk[1]), by_chunk[0])).astype(np.float32)

    def turn() -> Any:
        nonlocal state
        packed = pack_texts(queries, row_length=ROW, num_rows=num_rows)
        arrays = (packed, embeddings, target, np.ones(by_chunk, bool))
        state, metrics = step(state, RftBatch(*put_batch(arrays, devices)))
        return metrics["loss"]

    clock = measure(turn, most_seconds=sizes.turn_seconds / 2, most_turns=100)
    # Forwards, and twice as much backwards.
    tokens = int(lengths.sum())
    flops = 3 * encoder_flops(sizes.encoder, rows=1, length=1) * tokens
    notes = {"ms a step": 1000 * clock.seconds, "loss": float(jax.device_get(turn()))}
    bench.rate(f"{sizes.queries} queries a step", sizes.queries, "queries", clock=clock, flops=flops, **notes)
