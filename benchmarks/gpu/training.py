"""LM-ft: adapters to a large model, and a small model whole, in packed rows as the stage has them."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpu.bench import Bench, drawn, measure, one_device_mesh
from benchmarks.gpu.inputs import Draw
from radit_jax.config import DecoderConfig, LoraConfig, MeshConfig, OptimizerConfig
from radit_jax.lm.training import PackedTrees, initial_state
from radit_jax.method.likelihood import LmBatch
from radit_jax.method.optimizers import make_optimizer
from radit_jax.method.steps import make_lm_step
from radit_jax.models.decoder import DecoderLm
from radit_jax.models.flops import training_flops
from radit_jax.runtime.distributed.mesh import configure_attention, init_sharded, put_batch

BATCHES = 4  # that turns go through
LORA = LoraConfig(rank=16)


def lora(bench: Bench) -> None:
    """Adapters of rank 16 in all projections, over frozen bfloat16 weights that are drawn on the device."""
    config, rows = bench.sizes.large, bench.sizes.lora_rows
    for remat in bench.sizes.remats:
        with bench.trying(f"LoRA, remat {remat}"):
            _train(bench, config, rows, MeshConfig(remat=remat), LORA)


def full(bench: Bench) -> None:
    """All parameters in float32 with AdamW; products in bfloat16."""
    config, rows = bench.sizes.small, bench.sizes.full_rows
    for remat in bench.sizes.remats:
        with bench.trying(f"whole, remat {remat}"):
            _train(bench, config, rows, MeshConfig(remat=remat), LoraConfig())


def _train(bench: Bench, config: DecoderConfig, rows: int, mesh: MeshConfig, lora: LoraConfig) -> None:
    # 1) The state, and the step of the stage.
    length = bench.sizes.row_length
    devices = one_device_mesh(mesh)
    plain = DecoderLm(config, dtype=jnp.bfloat16)
    module = configure_attention(plain, devices, mesh, row_length=length)
    dtype = jnp.bfloat16 if lora.rank else jnp.float32
    params = drawn(plain, dtype, jnp.zeros((1, 2), jnp.int32))
    tx = make_optimizer(OptimizerConfig(steps=1000, peak_lr=1e-4))
    state, shardings = init_sharded(initial_state(tx, lora), devices, params)
    frozen = [params] if lora.rank else []
    del params
    step: Any = make_lm_step(module, tx, lora=lora if lora.rank else None, state_shardings=shardings)

    # 2) Turns over a few batches, whose arrays the host makes as it does for the stage.
    packed = _packed(bench, config, rows)
    numbers: Iterator[int] = itertools.cycle(range(BATCHES))
    all_metrics = []

    def turn() -> Any:
        nonlocal state
        batch: LmBatch = put_batch(packed.in_order(next(numbers)), devices)
        state, metrics = step(state, batch, *frozen)
        all_metrics.append(metrics)
        return metrics["loss"]

    clock = measure(turn, most_seconds=bench.sizes.turn_seconds)

    # 3) The work of a turn, and whether the loss stayed a number.
    values = [
        {name: float(value) for name, value in metrics.items()} for metrics in jax.device_get(all_metrics)
    ]
    losses = [value["loss"] for value in values]
    if not all(map(math.isfinite, losses)):
        raise FloatingPointError(f"expected finite losses, got {losses[:5]}")
    timed = values[2:]  # one was compiled, and one told how many turns there is time for
    totals = {name: sum(value[name] for value in timed) / len(timed) for name in timed[0]}
    flops = training_flops(
        config,
        tokens=totals["tokens"],
        attended=totals["attended"],
        targets=totals["answer_tokens"],
        lora=lora,
    )
    bench.rate(
        f"{_title(lora)}, {rows} rows of {length}, remat {mesh.remat}",
        totals["tokens"],
        "tokens",
        clock=clock,
        flops=flops,
        attention=module.attention,
        fill=totals["fill"],
        targets=totals["answer_tokens"],
        **{"ms a step": 1000 * clock.seconds, "first loss": losses[0], "last loss": losses[-1]},
    )


def _title(lora: LoraConfig) -> str:
    return f"LoRA of rank {lora.rank}" if lora.rank else "whole"


def _packed(bench: Bench, config: DecoderConfig, rows: int) -> PackedTrees:
    """Rows for a few batches, and the last rows, which may be less full, left over."""
    sizes = bench.sizes
    draw = Draw(sizes, config)
    tokens_per_instance = sum(sizes.prompt + sizes.answer) / 2
    num_instances = int((BATCHES * rows + 2) * sizes.row_length / tokens_per_instance)
    trees = [draw.instance() for _ in range(num_instances)]
    return PackedTrees(trees, row_length=sizes.row_length, batch_size=rows, seed=0)
